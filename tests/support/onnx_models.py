"""Small ONNX models and model repositories, made with onnx.helper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY = 10

CONFIG = """
backend: "onnxruntime"
max_batch_size: 1024
input [{ name: "tokens" data_type: TYPE_INT64 dims: [-1] }]
output [{ name: "score" data_type: TYPE_FP32 dims: [1] reshape { shape: [] } }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""

Dims = Sequence[int | str]


def tensor(name: str, kind: int, dims: Dims) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(dims))


def save(graph: onnx.GraphProto, path: Path) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def save_summing_model(path: Path, rows: int | str = "rows", factor: float = 1) -> None:
    """tokens int64 [rows, length], below VOCABULARY => score float32 [rows]: ``factor`` times the sum of their ids.

    A token that is not below VOCABULARY makes ONNX Runtime fail: Gather checks its indices.
    """
    table = numpy_helper.from_array(np.arange(VOCABULARY, dtype=np.float32) * np.float32(factor), "table")
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["weights"]),
        helper.make_node("ReduceSum", ["weights", "axes"], ["score"], keepdims=0),
    ]
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    inputs = [tensor("tokens", TensorProto.INT64, [rows, "length"])]
    outputs = [tensor("score", TensorProto.FLOAT, [rows])]
    save(helper.make_graph(nodes, "summing", inputs, outputs, [table, axes]), path)


def save_always_failing_model(path: Path) -> None:
    """As the summing model, but each token is looked up beyond the vocabulary: every run fails."""
    table = numpy_helper.from_array(np.arange(VOCABULARY, dtype=np.float32), "table")
    beyond = numpy_helper.from_array(np.array(VOCABULARY, np.int64), "beyond")
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    nodes = [
        helper.make_node("Add", ["tokens", "beyond"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["weights"]),
        helper.make_node("ReduceSum", ["weights", "axes"], ["score"], keepdims=0),
    ]
    inputs = [tensor("tokens", TensorProto.INT64, ["rows", "length"])]
    outputs = [tensor("score", TensorProto.FLOAT, ["rows"])]
    save(helper.make_graph(nodes, "failing", inputs, outputs, [table, beyond, axes]), path)


def save_row_counting_model(path: Path) -> None:
    """x float32 [rows, length] => rows_in_run int64 [rows]: how many rows the run had, the same in each row."""
    nodes = [
        helper.make_node("Shape", ["x"], ["count"], start=0, end=1),
        helper.make_node("Expand", ["count", "count"], ["rows_in_run"]),
    ]
    inputs = [tensor("x", TensorProto.FLOAT, ["rows", "length"])]
    outputs = [tensor("rows_in_run", TensorProto.INT64, ["rows"])]
    save(helper.make_graph(nodes, "counting", inputs, outputs), path)


def save_sharing_model(path: Path) -> None:
    """x float32 [rows, length], shared float32 [n] => rows_in_run int64 [rows], as the row-counting model; and
    total float32 [rows]: the sum of ``shared``, the same in each row."""
    nodes = [
        helper.make_node("Shape", ["x"], ["count"], start=0, end=1),
        helper.make_node("Expand", ["count", "count"], ["rows_in_run"]),
        helper.make_node("ReduceSum", ["shared"], ["sum"], keepdims=0),
        helper.make_node("Expand", ["sum", "count"], ["total"]),
    ]
    inputs = [tensor("x", TensorProto.FLOAT, ["rows", "length"]), tensor("shared", TensorProto.FLOAT, ["n"])]
    outputs = [tensor("rows_in_run", TensorProto.INT64, ["rows"]), tensor("total", TensorProto.FLOAT, ["rows"])]
    save(helper.make_graph(nodes, "sharing", inputs, outputs), path)


def save_identity_model(path: Path, kind: int, dims: Dims, rows_out: Dims | None = None) -> None:
    """x => y, of any type and shape."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    save(helper.make_graph(nodes, "identity", [tensor("x", kind, dims)], [tensor("y", kind, rows_out or dims)]), path)


def save_optional_input_model(path: Path) -> None:
    """x float32 [n], factor float32 [1], 2 where it is absent => y float32 [n], x times factor."""
    factor = numpy_helper.from_array(np.array([2], np.float32), "factor")
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    inputs = [tensor("x", TensorProto.FLOAT, ["n"]), tensor("factor", TensorProto.FLOAT, [1])]
    save(helper.make_graph(nodes, "optional", inputs, [tensor("y", TensorProto.FLOAT, ["n"])], [factor]), path)


def write_config(repository: Path, model: str, config: str) -> Path:
    """Write a model's config.pbtxt; return the folder of its version 1."""
    version = repository / model / "1"
    version.mkdir(parents=True, exist_ok=True)
    (repository / model / "config.pbtxt").write_text(config)
    return version
