"""Small OpenVINO models, made from those of onnx_models and a few more, and their model configurations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

from tests.support.onnx_models import save, tensor

CONFIG = """
backend: "openvino"
max_batch_size: 64
input [{ name: "tokens" data_type: TYPE_INT64 dims: [-1] }]
output [{ name: "score" data_type: TYPE_FP32 dims: [1] reshape { shape: [] } }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""
WIDTH = 64


def parameter(name: str, value: object) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'


ANY_ROWS = parameter("ENABLE_BATCH_PADDING", "YES")


def save_ir(path: Path, save_onnx: Callable[..., None], *arguments: Any, layout: str | None = None) -> None:
    """Write what `save_onnx(path, *arguments)` makes as OpenVINO IR, in f32; with a layout at each tensor if given."""
    with tempfile.TemporaryDirectory() as folder:
        save_onnx(Path(folder) / "model.onnx", *arguments)
        model = ov.Core().read_model(Path(folder) / "model.onnx")
        if layout:
            for port in [*model.inputs, *model.outputs]:
                ov.layout_helpers.set_layout(port, ov.Layout(layout))
        path.parent.mkdir(parents=True, exist_ok=True)
        ov.save_model(model, path, compress_to_fp16=False)


def save_dividing_model(path: Path) -> None:
    """tokens int64 [rows, length] => score float32 [rows]: the sum of the tokens' ids.

    A run fails where its largest token does not divide the number of its tokens: it is used as a length.
    """
    nodes = [
        helper.make_node("ReduceMax", ["tokens"], ["largest"], keepdims=0),
        helper.make_node("Reshape", ["largest", "one"], ["columns"]),
        helper.make_node("Concat", ["any", "columns"], ["shape"], axis=0),
        helper.make_node("Reshape", ["tokens", "shape"], ["table"]),
        helper.make_node("ReduceSum", ["table"], ["of_table"], keepdims=0),
        helper.make_node("ReduceSum", ["tokens"], ["of_tokens"], keepdims=0),
        helper.make_node("Sub", ["of_table", "of_tokens"], ["zero"]),
        helper.make_node("ReduceSum", ["tokens", "one"], ["of_rows"], keepdims=0),
        helper.make_node("Add", ["of_rows", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["score"], to=TensorProto.FLOAT),
    ]
    constants = [
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array([-1], np.int64), "any"),
    ]
    inputs = [tensor("tokens", TensorProto.INT64, ["rows", "length"])]
    outputs = [tensor("score", TensorProto.FLOAT, ["rows"])]
    save(helper.make_graph(nodes, "dividing", inputs, outputs, constants), path)


def save_dense_model(path: Path) -> None:
    """x float32 [rows, WIDTH] => y float32 [rows, 1]: two layers with a ReLU between them."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal((WIDTH, WIDTH), np.float32) / 8, "first"),
        numpy_helper.from_array(random.standard_normal((WIDTH, 1), np.float32) / 8, "second"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["product"]),
        helper.make_node("Relu", ["product"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["y"]),
    ]
    inputs = [tensor("x", TensorProto.FLOAT, ["rows", WIDTH])]
    save(helper.make_graph(nodes, "dense", inputs, [tensor("y", TensorProto.FLOAT, ["rows", 1])], weights), path)
