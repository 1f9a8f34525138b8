"""FP32 ONNX => ONNX whose own types are FP16, for TensorRT, where a builder flag would silently give FP32.

The converter is ModelOpt's AutoCast where its dependencies are installed, else ONNX Runtime's; what stays FP32 is
decided here, from real samples, so that both keep the same nodes. Inputs and outputs keep their types. Knows nothing of
TensorRT and of what the graph is for.

Sources: https://nvidia.github.io/Model-Optimizer/guides/8_autocast.html,
https://onnxruntime.ai/docs/performance/model-optimizations/float16.html
"""

from __future__ import annotations

import fnmatch
import importlib.util
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builders.core.errors import BuilderError
from builders.core.onnx_files import (
    as_file,
    copy_model,
    fits_one_file,
    load_model,
    refuse_large,
    save_model,
    without_weights,
)
from builders.core.quiet import quiet
from builders.core.versions import check_onnx_versions, opset_of

if TYPE_CHECKING:
    import onnxruntime

    from builders.rankers.base import Sample

FP16_MAX = float(np.finfo(np.float16).max)
FP16_TINY = float(np.finfo(np.float16).smallest_subnormal)
KEPT_TYPES = ("LayerNormalization", "SimplifiedLayerNormalization", "Softmax", "LogSoftmax", "ReduceL2", "CumSum")
"""Operators that add up many terms or exponentials; a node of another type that bears one of these names, too."""
_AUTOCAST_NEEDS = ("modelopt", "onnx_graphsurgeon", "onnxslim", "onnxconverter_common", "lief", "polygraphy")
_FP16_QUANTIZERS_FROM = 19
"""Opset from which QuantizeLinear and DequantizeLinear take FP16."""


class HalfPrecisionError(BuilderError):
    """The graph cannot be computed in FP16, or not on the given samples."""


def fp16_from_onnx(source: Path, target: Path, samples: Iterable[Sample], keep_fp32: Sequence[str] = ()) -> list[str]:
    """Convert to FP16 what FP16 can hold.

    A node stays FP32 when it is of :data:`KEPT_TYPES`, when a value that it reads or writes on the samples exceeds
    FP16's range (an attention mask's lowest finite FP32, say), when it reads a constant that FP16 rounds to 0, or when
    ``keep_fp32`` names it.

    Args:
        source: FP32 model; one with explicit Q/DQ pairs comes out as INT8 with FP16 between them, at opset 19 or later.
        target: written beside and renamed.
        samples: real requests, input name => array in the contract's dtypes.
        keep_fp32: patterns of further nodes' names (``fnmatch``), as ``python -m builders bisect`` prints them.

    Returns:
        Names of the nodes that read or write FP32, but for the casts.

    Raises:
        HalfPrecisionError: no samples; nothing became FP16; or on a sample an output is NaN or infinite, or a value in
            between overflows FP16.
        VersionError: the converter wrote an opset that a supported release does not read.
    """
    readings = list(samples)
    if not readings:
        raise HalfPrecisionError(f"{source.name}: no samples; wanted at least one real request")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fp16-") as folder:
        named, converted = Path(folder) / "fp32.onnx", Path(folder) / "fp16.onnx"
        save_model(_named_and_upgraded(load_model(source)), named)
        kept = nodes_to_keep(load_model(named), readings, keep_fp32)
        save_model(_converted(named, kept), converted)
        check_half_precision(converted, readings)
        check_onnx_versions(converted)
        copy_model(converted, target)
    return fp32_nodes(load_model(target, weights=False))


def nodes_to_keep(model: onnx.ModelProto, samples: Sequence[Sample], keep_fp32: Sequence[str] = ()) -> list[str]:
    """Names of the nodes that FP16 would spoil, by type, by what they read and write on the samples, by constants, and
    of those that a pattern of ``keep_fp32`` matches."""
    largest = largest_magnitudes(model, samples)
    too_small = {name for name, array in constants(model) if _vanishes(array)}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in KEPT_TYPES
        or any(kind.lower() in node.name.lower() for kind in KEPT_TYPES)
        or any(fnmatch.fnmatch(node.name, pattern) for pattern in keep_fp32)
        or too_small.intersection(node.input)
        or any(largest.get(name, 0.0) > FP16_MAX for name in (*node.input, *node.output))
    ]


def largest_magnitudes(model: onnx.ModelProto, samples: Sequence[Sample]) -> dict[str, float]:
    """Tensor name => largest magnitude on any sample, of every FP32 and FP16 tensor, constants included.

    Computed inside the graph, so that no more than one number a tensor is ever held.
    """
    tensors = [name for name, kind in tensor_types(model).items() if kind in (TensorProto.FLOAT, TensorProto.FLOAT16)]
    made = {output for node in model.graph.node for output in node.output}
    inputs = {value.name for value in model.graph.input}
    watched = [name for name in tensors if name in made or name in inputs]
    session = session_of(_with_magnitudes(model, watched))
    found = {name: _largest(array) for name, array in constants(model)}
    names = [_magnitude(name) for name in watched]
    for sample in samples:
        feeds = {value.name: sample[value.name] for value in session.get_inputs()}
        for name, value in zip(watched, session.run(names, feeds), strict=True):
            found[name] = max(found.get(name, 0.0), float(value))
    return found


def check_half_precision(path: Path, samples: Sequence[Sample]) -> None:
    """Run the converted model in ONNX Runtime.

    Its CPU kernels compute FP16 nodes in FP32 and often skip the rounding between two of them: the ranges are true, an
    accuracy measured so is that of rounded weights. What rounded activations cost shows on the GPU.

    Raises:
        HalfPrecisionError: no FP16 in it; an output is NaN or infinite; an FP16 tensor overflows.
    """
    model = load_model(path)
    types = tensor_types(model)
    if TensorProto.FLOAT16 not in types.values():
        raise HalfPrecisionError(f"{path.name}: nothing became FP16; a graph without a product gains nothing by it")
    session = session_of(model)
    names = [output.name for output in session.get_outputs()]
    for sample in samples:
        feeds = {value.name: sample[value.name] for value in session.get_inputs()}
        for name, array in zip(names, session.run(names, feeds), strict=True):
            if not np.isfinite(array).all():
                raise HalfPrecisionError(
                    f"{path.name}: output '{name}' holds NaN or infinity on a real sample. Find the layer with "
                    "'python -m builders bisect VARIANT'"
                )
    largest = largest_magnitudes(model, samples)
    overflowing = [name for name, kind in types.items() if kind == TensorProto.FLOAT16 and largest[name] > FP16_MAX]
    if overflowing:
        raise HalfPrecisionError(
            f"{path.name}: {', '.join(overflowing[:5])} exceed FP16's {FP16_MAX:.0f} on a real sample. Give samples "
            "that reach as far when converting: nodes that overflow on them stay FP32"
        )


def fp32_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that read or write FP32, but for the casts."""
    types = tensor_types(model)
    return [
        node.name
        for node in model.graph.node
        if node.op_type != "Cast" and TensorProto.FLOAT in {types.get(name) for name in (*node.input, *node.output)}
    ]


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor name => ONNX element type: inputs, outputs, constants and all that lies between."""
    graph = onnx.shape_inference.infer_shapes(without_weights(model), strict_mode=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    typed = {value.name: value.type.tensor_type.elem_type for value in values}
    return {**{one.name: one.data_type for one in graph.initializer}, **typed}


def constants(model: onnx.ModelProto) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of the floating-point initializers and Constant nodes, one at a time."""
    tensors = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                tensors[node.output[0]] = attribute.t
    floating = (TensorProto.FLOAT, TensorProto.FLOAT16)
    return ((name, numpy_helper.to_array(one)) for name, one in tensors.items() if one.data_type in floating)


def _largest(array: np.ndarray) -> float:
    """Largest magnitude, without an array of magnitudes; 0 of an empty one."""
    return max(float(np.max(array, initial=0.0)), -float(np.min(array, initial=0.0)))


def autocast_is_installed() -> bool:
    """Whether ModelOpt's AutoCast can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in _AUTOCAST_NEEDS)


def converter() -> str:
    """Which one there is: graphs by one are not those by the other."""
    return "AutoCast" if autocast_is_installed() else "ONNX Runtime"


def _converted(path: Path, kept: Sequence[str]) -> onnx.ModelProto:
    return _by_autocast(path, kept) if autocast_is_installed() else _by_onnxruntime(path, kept)


def _by_autocast(path: Path, kept: Sequence[str]) -> onnx.ModelProto:
    from modelopt.onnx.autocast import convert_to_mixed_precision  # seconds to import, and not everywhere there

    for name in ("modelopt.onnx", "modelopt.onnx.autocast"):  # each sets a level of its own when it is imported
        logging.getLogger(name).setLevel(logging.ERROR)
    with quiet():
        model: onnx.ModelProto = convert_to_mixed_precision(
            str(path),
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in kept],
            op_types_to_exclude=list(KEPT_TYPES),
            data_max=np.inf,  # what overflows is in nodes_to_exclude; AutoCast itself would look at random inputs
            keep_io_types=True,
            opset=opset_of(load_model(path, weights=False)),
        )
        del model.graph.value_info[:]  # some are of tensors that are gone
        _share_equal_constants(model)
    return model


def _share_equal_constants(model: onnx.ModelProto) -> None:
    """AutoCast makes two of a table that two nodes read. Equal to the bit: ONNX Runtime's own function for this takes
    an epsilon of 1e-12 for 0."""
    from onnxruntime.transformers.onnx_model import OnnxModel

    shared = OnnxModel(model)
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    for one in model.graph.initializer:
        key = (one.data_type, tuple(one.dims), numpy_helper.to_array(one).tobytes())
        if first.setdefault(key, one.name) != one.name:
            shared.replace_input_of_all_nodes(one.name, first[key])
    shared.prune_graph()


def _by_onnxruntime(path: Path, kept: Sequence[str]) -> onnx.ModelProto:
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    logging.getLogger(float16.__name__).setLevel(logging.ERROR)
    model: onnx.ModelProto = float16.convert_float_to_float16(
        str(path),  # of a model it would take no more than 2 GiB
        keep_io_types=True,
        op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *KEPT_TYPES],
        node_block_list=list(kept),
    )
    del model.graph.value_info[:]  # some are of tensors that have changed
    ordered = OnnxModel(model)
    ordered.topological_sort()  # the converter puts its casts last
    _join_kept_nodes(ordered.model)
    ordered.prune_graph()
    return ordered.model


def _join_kept_nodes(model: onnx.ModelProto) -> None:
    """What one FP32 node hands to another does not pass through FP16, where a mask's lowest FP32 is infinite."""
    types = tensor_types(model)
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    before = {
        wide: casts[narrow]
        for wide, narrow in casts.items()
        if narrow in casts
        and [types[casts[narrow]], types[narrow], types[wide]]
        == [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT]
    }
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = before.get(name, name)


def _named_and_upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every node with a name of its own, and an opset whose Q/DQ pairs take FP16: a cast between DequantizeLinear and
    the product would keep TensorRT from joining the two to an INT8 product."""
    quantized = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    if quantized and opset_of(model) < _FP16_QUANTIZERS_FROM:
        refuse_large(model, f"onnx's conversion to opset {_FP16_QUANTIZERS_FROM}, which FP16 between Q/DQ pairs needs,")
        model = onnx.version_converter.convert_version(model, _FP16_QUANTIZERS_FROM)
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{place}"
    return model


def _vanishes(array: np.ndarray) -> bool:
    """Whether a lone constant, such as an epsilon, is lost; a weight among many may round to 0."""
    return array.size == 1 and 0 < abs(float(array.item())) < FP16_TINY


def _with_magnitudes(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The model with one more output a tensor: FP32 [], its largest magnitude."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for name in tensors:
        watched.graph.node.extend(_magnitude_nodes(name, opset_of(model)))
        watched.graph.output.append(helper.make_tensor_value_info(_magnitude(name), TensorProto.FLOAT, []))
    return watched


def _magnitude_nodes(name: str, opset: int) -> Iterator[onnx.NodeProto]:
    yield helper.make_node("Cast", [name], [f"{name}/fp32"], to=TensorProto.FLOAT)
    yield helper.make_node("Abs", [f"{name}/fp32"], [f"{name}/abs"])
    yield helper.make_node("ReduceMax", [f"{name}/abs"], [_magnitude(name)], keepdims=0)


def _magnitude(name: str) -> str:
    return f"{name}/largest"


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """One thread; every optimization but those of the memory layout."""
    import onnxruntime  # not at the top: who builds engines reads graphs' types here, and runs none

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # With every optimization ONNX Runtime 1.32 crashes on an FP16 Transpose before a MatMul (its NCHWc pass).
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if fits_one_file(model):
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with as_file(model) as path:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
