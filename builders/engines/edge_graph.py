"""ONNX => the same graph as TensorRT 8.5 reads it: opset 17, LayerNormalization taken apart.

JetPack 5 on Jetson carries that release. Its parser's operators:
https://github.com/onnx/onnx-tensorrt/blob/release/8.5-GA/docs/operators.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builders.compress.fp16 import tensor_types
from builders.core.versions import TENSORRT_8, VersionError, opset_of

ONNX_NEEDED = (1, 22)
"""Release of the package ``onnx`` from which the older form is right: 1.21 and earlier leave a reduction's axes in a
form that is none of opset 17."""


def onnx_for_tensorrt_8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert down; the scores stay the same but for rounding.

    Raises:
        VersionError: an operator has no form in the older opset, or a LayerNormalization not over the last axis; or the
            package ``onnx`` is older than ONNX_NEEDED.
    """
    _check_converter()
    if any(types == TensorProto.FLOAT16 for types in _scale_types(model)):
        raise VersionError(
            f"{model.graph.name}: INT8 with FP16 scales, which {TENSORRT_8.name} has not. Build the INT8 variant there"
        )
    try:
        older = onnx.version_converter.convert_version(model, min(opset_of(model), TENSORRT_8.max_opset))
    except RuntimeError as error:
        raise VersionError(
            f"{model.graph.name}: no opset {TENSORRT_8.max_opset} form, which {TENSORRT_8.name} needs ({error}). "
            "Serve its ONNX variant there"
        ) from error
    _drop_newer_attributes(older)
    types = tensor_types(older)
    nodes = list(older.graph.node)
    del older.graph.node[:]
    for node in nodes:
        parts = _layer_norm_parts(node, types) if node.op_type == "LayerNormalization" else [node]
        older.graph.node.extend(parts)
    older.ir_version = TENSORRT_8.max_ir_version
    onnx.checker.check_model(older)
    return older


def _check_converter() -> None:
    if tuple(int(part) for part in onnx.__version__.split(".")[:2]) < ONNX_NEEDED:
        wanted = ".".join(map(str, ONNX_NEEDED))
        raise VersionError(
            f"onnx {onnx.__version__} converts graphs wrongly to opset {TENSORRT_8.max_opset}, which "
            f"{TENSORRT_8.name} needs; wanted {wanted} or later. Run 'pip install \"onnx>={wanted}\"'"
        )


def _scale_types(model: onnx.ModelProto) -> Iterator[int]:
    types = tensor_types(model)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield types[node.input[1]]


def _drop_newer_attributes(model: onnx.ModelProto) -> None:
    """The converter turns a reduction's axes back to an attribute, but leaves one that came with axes as an input."""
    for node in model.graph.node:
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
            kept = [one for one in node.attribute if one.name != "noop_with_empty_axes"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _layer_norm_parts(node: onnx.NodeProto, types: dict[str, int]) -> Iterator[onnx.NodeProto]:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + shift, as ONNX defines LayerNormalization."""
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if attributes.get("axis", -1) != -1:
        raise VersionError(
            f"{node.name}: LayerNormalization over axis {attributes['axis']}, wanted -1; {TENSORRT_8.name} has none"
        )
    source, scale, *shift = node.input
    dtype = helper.tensor_dtype_to_np_dtype(types[source])
    epsilon = numpy_helper.from_array(np.array(attributes.get("epsilon", 1e-5), dtype=dtype))

    def part(operator: str, inputs: list[str], suffix: str, output: str = "", **attribute: Any) -> onnx.NodeProto:
        name = f"{node.name}/{suffix}"
        return helper.make_node(operator, inputs, [output or name], name=name, **attribute)

    yield part("ReduceMean", [source], "mean", axes=[-1], keepdims=1)
    yield part("Sub", [source, f"{node.name}/mean"], "centred")
    yield part("Mul", [f"{node.name}/centred", f"{node.name}/centred"], "squared")
    yield part("ReduceMean", [f"{node.name}/squared"], "variance", axes=[-1], keepdims=1)
    yield part("Constant", [], "epsilon", value=epsilon)
    yield part("Add", [f"{node.name}/variance", f"{node.name}/epsilon"], "shielded")
    yield part("Sqrt", [f"{node.name}/shielded"], "deviation")
    yield part("Div", [f"{node.name}/centred", f"{node.name}/deviation"], "normed")
    yield part("Mul", [f"{node.name}/normed", scale], "scaled", output="" if shift else node.output[0])
    if shift:
        yield part("Add", [f"{node.name}/scaled", shift[0]], "shifted", output=node.output[0])
