"""Which layers of a compressed graph lose accuracy: its values against those of FP32, layer by layer, on real samples.

Runs in ONNX Runtime, so it needs no GPU. There FP16 nodes compute in FP32 between rounded tensors: on a GPU, where
they do not, compare a plan with the same files by the Polygraphy command that the report ends with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from builders.compress.fp16 import session_of, tensor_types
from builders.core.errors import BuilderError
from builders.core.onnx_files import load_model

if TYPE_CHECKING:
    from builders.rankers.base import Sample

TENSORS_AT_ONCE = 24
"""Tensors held of each graph at a time: all of a transformer's at once would be gigabytes."""
MIN_GROWTH = 0.01
"""Error that a layer must add to be worth an exclusion."""
WORST_LAYERS = 10
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


class BisectError(BuilderError):
    """Two graphs that cannot be compared."""


@dataclasses.dataclass(frozen=True)
class LayerError:
    """One node that computes in the lower precision.

    Attributes:
        node: its name in the compressed graph, as exclusions name it.
        operator: its ONNX type.
        error: root mean square of its output's difference, over that of the FP32 output.
        growth: how much larger that is than the largest such error among its inputs.
    """

    node: str
    operator: str
    error: float
    growth: float


def bisect(reference: Path, variant: Path, samples: Sequence[Sample]) -> str:
    """Lines for a reader: the error at the end, the layers that add most of it, the exclusions to add.

    Args:
        reference: FP32 ONNX.
        variant: FP16, INT8 or mixed ONNX made from it.
        samples: real requests, input name => array.

    Raises:
        BisectError: no samples, or the graphs share no tensor.
    """
    exact, found = load_model(reference), load_model(variant)
    errors = tensor_errors(exact, found, samples)
    at_end = {value.name: errors[value.name] for value in exact.graph.output}
    layers = layer_errors(exact, found, errors)
    if not any(layer.growth for layer in layers) and any(node.op_type == "QuantizeLinear" for node in found.graph.node):
        exact = without_pairs(found)  # exported anew, with names of its own
        layers = layer_errors(exact, found, tensor_errors(exact, found, samples))
    return "\n".join(_report(variant, at_end, layers))


def without_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph whose QuantizeLinear/DequantizeLinear pairs pass their input on; weights stored in INT8 stay."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    given = {node.output[0]: node.input[0] for node in bare.graph.node if node.op_type == "QuantizeLinear"}
    passed = {
        node.output[0]: given[node.input[0]]
        for node in bare.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in given
    }
    nodes = [node for node in bare.graph.node if node.output[0] not in given and node.output[0] not in passed]
    del bare.graph.node[:]
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = passed.get(name, name)
    bare.graph.node.extend(nodes)
    del bare.graph.value_info[:]
    return bare


def tensor_errors(reference: onnx.ModelProto, variant: onnx.ModelProto, samples: Sequence[Sample]) -> dict[str, float]:
    """Tensor name => relative root mean square difference, the worst over samples, of all that both graphs compute.

    Raises:
        BisectError: no samples, or the graphs share no tensor.
    """
    if not samples:
        raise BisectError("no samples; wanted at least one real request")
    models = reference, variant
    shared = _shared_tensors(*models)
    if not shared:
        raise BisectError("the two graphs share no tensor; wanted a variant and the graph that it was made from")
    worst = dict.fromkeys(shared, 0.0)
    for start in range(0, len(shared), TENSORS_AT_ONCE):
        names = shared[start : start + TENSORS_AT_ONCE]
        of_reference, of_variant = (session_of(_with_outputs(model, names)) for model in models)
        for sample in samples:
            feeds = {value.name: sample[value.name] for value in of_reference.get_inputs()}
            for name, exact, found in zip(
                names, of_reference.run(names, feeds), of_variant.run(names, feeds), strict=True
            ):
                worst[name] = max(worst[name], _relative_error(exact, found))
    return worst


def layer_errors(reference: onnx.ModelProto, variant: onnx.ModelProto, errors: Mapping[str, float]) -> list[LayerError]:
    """The FP32 graph's nodes that compute in the lower precision, those that add most error first.

    Args:
        errors: from :func:`tensor_errors`; a tensor without one counts as exact.
    """
    lowered = lowered_nodes(variant)
    found = []
    for node in reference.graph.node:
        known = [name for name in node.output if name in errors]
        names = [lowered[key] for key in (node.name, *node.output) if key in lowered]
        if known and names:
            error = max(errors[name] for name in known)
            growth = error - max((errors.get(name, 0.0) for name in node.input), default=0.0)
            found.append(LayerError(names[0], node.op_type, error, growth))
    return sorted(found, key=lambda layer: layer.growth, reverse=True)


def lowered_nodes(variant: onnx.ModelProto) -> dict[str, str]:
    """Name and outputs => name of each node that reads FP16 or dequantized values, but for casts: quantizers give a
    product that they join with its sum another name, and leave its output's."""
    types = tensor_types(variant)
    dequantized = {
        output for node in variant.graph.node if node.op_type == "DequantizeLinear" for output in node.output
    }
    return {
        key: node.name
        for node in variant.graph.node
        if node.op_type != "Cast"
        and any(name in dequantized or types.get(name) == TensorProto.FLOAT16 for name in node.input)
        for key in (node.name, *node.output)
    }


def exclusions(layers: Sequence[LayerError]) -> list[str]:
    """Names for ``keep_fp32``: the layers that add at least MIN_GROWTH, the worst first, WORST_LAYERS at most."""
    return [layer.node for layer in layers if layer.growth >= MIN_GROWTH][:WORST_LAYERS]


def _report(variant: Path, outputs: Mapping[str, float], layers: Sequence[LayerError]) -> Iterator[str]:
    for name, error in outputs.items():
        yield f"{variant.name}: output '{name}' differs from FP32's by {error:.2%} of its root mean square"
    yield f"{len(layers)} layers compute in the lower precision; those that add most error (to what they were given):"
    for layer in layers[:WORST_LAYERS]:
        yield f"  {layer.growth:+8.2%} to {layer.error:7.2%}  {layer.operator:<18} {layer.node}"
    keep = ", ".join(f'"{name}"' for name in exclusions(layers))
    yield f"keep_fp32 = [{keep}]" if keep else f"No layer adds {MIN_GROWTH:.0%} by itself; there is nothing to exclude."
    yield (
        f"With a GPU: polygraphy run {variant.name} --trt --onnxrt --strongly-typed --trt-outputs mark all "
        "--onnx-outputs mark all"
    )


def _shared_tensors(reference: onnx.ModelProto, variant: onnx.ModelProto) -> list[str]:
    """Floating-point tensors that nodes of both graphs compute, in the order of the FP32 graph."""
    of_reference, of_variant = tensor_types(reference), tensor_types(variant)
    computed = {output for node in variant.graph.node for output in node.output}
    return [
        output
        for node in reference.graph.node
        for output in node.output
        if output in computed and of_reference.get(output) in _FLOATS and of_variant.get(output) in _FLOATS
    ]


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    types = tensor_types(model)
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    del marked.graph.output[:]
    marked.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in names)
    return marked


def _relative_error(exact: np.ndarray, found: np.ndarray) -> float:
    exact, found = exact.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where(exact == found, 0.0, found - exact)
    if not np.isfinite(difference).all():
        return float("inf")
    finite = exact[np.isfinite(exact)]
    size = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    error = float(np.sqrt(np.mean(difference**2))) if difference.size else 0.0
    return error / size if size else (0.0 if error == 0 else float("inf"))
