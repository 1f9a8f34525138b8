"""Operations and bytes of one run of a network's file, from the shapes that OpenVINO infers of it.

OpenVINO reads both files that the kit serves, ONNX and its own IR, so one count serves all variants. Counted are matrix
products, convolutions and recurrent layers, two operations a multiply-add, as torch's FlopCounterMode counts them;
element by element work (softmax, norms, activations) is not. Bytes are the least that memory must give and take: each
weight once a run, of a table the rows that are looked up, inputs and outputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perf.errors import PerfError
from perf.kit.runtimes import openvino

INT8 = "int8"
BYTE_TYPES = {"i8", "u8"}
TYPES = {"f32": "fp32", "f64": "fp32", "f16": "fp16", "bf16": "bf16", "i32": INT8}
"""OpenVINO's element type of a product => type of its operands: products of bytes are added up in 32 bits."""
WEIGHT_TYPES = {"f32", "f64", "f16", "bf16", *BYTE_TYPES}
NOT_COUNTED = {
    *("Einsum", "Loop", "TensorIterator", "If", "ConvolutionBackpropData", "GroupConvolutionBackpropData"),
    *("DeformableConvolution", "LSTMCell", "GRUCell", "RNNCell", "BinaryConvolution"),
}
"""Operations that multiply matrices, or may, and have no count here."""
Shapes = Mapping[str, Sequence[int]]
"""Input name => shape."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run.

    Attributes:
        ops: type of the operands (``fp32``, ``fp16``, ``bf16``, ``int8``) => operations, a multiply-add being two.
        weight_bytes: read once, as they are stored.
        tensor_bytes: of inputs and outputs.
    """

    ops: Mapping[str, float]
    weight_bytes: float
    tensor_bytes: float

    @property
    def total_ops(self) -> float:
        """Of all types."""
        return sum(self.ops.values())

    @property
    def bytes(self) -> float:
        """Weights, inputs and outputs."""
        return self.weight_bytes + self.tensor_bytes


def packed(costs: Iterable[Cost]) -> Cost:
    """What one run would cost that computed all of these rows and read the weights once."""
    ops: Counter[str] = Counter()
    weight_bytes = tensor_bytes = 0.0
    for cost in costs:
        ops.update(cost.ops)
        weight_bytes = max(weight_bytes, cost.weight_bytes)
        tensor_bytes += cost.tensor_bytes
    return Cost(dict(ops), weight_bytes, tensor_bytes)


class CountedGraph:
    """A network's file, read once; each shape is counted once.

    Args:
        path: ``.onnx`` or ``.xml``.

    Raises:
        PerfError: OpenVINO does not read it, or it has an operation that is not counted.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._model = openvino.Core().read_model(path)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise PerfError(
                f"{path}: OpenVINO does not read it, so its operations are not counted: {reason}"
            ) from error
        strangers = sorted({_kind(node) for node in self._model.get_ops()} & NOT_COUNTED)
        if strangers:
            raise PerfError(
                f"{path}: {', '.join(strangers)} multiply matrices and have no count; wanted a graph of "
                f"{', '.join(sorted(_COUNTS))}. Add theirs to perf/graph_cost.py"
            )
        self._inputs = {name: port for port in self._model.inputs for name in port.names}
        self._counted: dict[tuple[tuple[str, tuple[int, ...]], ...], Cost] = {}

    def cost(self, shapes: Shapes) -> Cost:
        """Of one run on inputs of these shapes; what the graph does not take is ignored.

        Raises:
            PerfError: the graph does not take such shapes.
        """
        key = tuple((name, tuple(shape)) for name, shape in sorted(shapes.items()) if name in self._inputs)
        if key not in self._counted:
            try:
                self._model.reshape({self._inputs[name]: list(shape) for name, shape in key})
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise PerfError(f"{self._model.friendly_name}: not of shapes {dict(key)}: {reason}") from error
            self._counted[key] = _cost(self._model)
        return self._counted[key]


def _cost(model: Any) -> Cost:
    """Of a model whose every shape is known."""
    nodes = model.get_ordered_ops()
    constant = _constants(nodes)
    ops: dict[str, float] = {}
    for node in nodes:
        if _kind(node) in _COUNTS and _id(node) not in constant:
            type_ = _operand_type(node)
            ops[type_] = ops.get(type_, 0.0) + _COUNTS[_kind(node)](node)
    tensor_bytes = float(sum(map(_stored, (*model.inputs, *model.outputs))))
    return Cost(ops, _weight_bytes(nodes, constant), tensor_bytes)


# ---------------------------------------------------------------- operations
def _product(node: Any) -> float:
    left = _shape(node.input(0))
    inner = left[-2] if node.get_attributes()["transpose_a"] and len(left) > 1 else left[-1]
    return 2.0 * math.prod(_shape(node.output(0))) * inner


def _convolution(node: Any) -> float:
    """Weights [out, in, kernel ...]."""
    return 2.0 * math.prod(_shape(node.output(0))) * math.prod(_shape(node.input(1))[1:])


def _group_convolution(node: Any) -> float:
    """Weights [groups, out, in, kernel ...] of one group."""
    return 2.0 * math.prod(_shape(node.output(0))) * math.prod(_shape(node.input(1))[2:])


def _attention(node: Any) -> float:
    """Queries with keys, and weights with values."""
    query, key, value = (_shape(node.input(place)) for place in range(3))
    return 2.0 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(weights: int) -> Callable[[Any], float]:
    """X [batch, length, inputs] times W and R [directions, gates, ...] at every step. weights: place of W."""

    def count(node: Any) -> float:
        batch, length = _shape(node.input(0))[:2]
        return 2.0 * batch * length * sum(math.prod(_shape(node.input(weights + place))) for place in range(2))

    return count


_COUNTS: Mapping[str, Callable[[Any], float]] = {
    "MatMul": _product,
    "Convolution": _convolution,
    "GroupConvolution": _group_convolution,
    "ScaledDotProductAttention": _attention,
    "LSTMSequence": _recurrent(4),
    "GRUSequence": _recurrent(3),
    "RNNSequence": _recurrent(3),
}


def _operand_type(node: Any) -> str:
    """INT8 where both operands are quantized, as every runtime asks for; else the type of the result."""
    if _kind(node) in ("MatMul", "Convolution", "GroupConvolution") and all(
        _is_quantized(node.input(place)) for place in range(2)
    ):
        return INT8
    name = node.output(0).get_element_type().get_type_name()
    if name not in TYPES:
        raise PerfError(f"{node.get_friendly_name()}: a product of {name}, wanted one of {', '.join(TYPES)}")
    return TYPES[name]


def _is_quantized(port: Any) -> bool:
    """Behind FakeQuantize, or bytes that were made numbers of: ``(convert(bytes) - zero point) * scale``."""
    node = _source(port)
    while _kind(node) in ("Reshape", "Transpose", "Unsqueeze", "Squeeze"):
        node = _source(node.input(0))
    if _kind(node) == "FakeQuantize":
        return bool(node.get_attributes()["levels"] <= 256)
    for kind in ("Multiply", "Subtract"):
        if _kind(node) == kind:
            node = _source(node.input(0))
    return _kind(node) == "Convert" and node.input(0).get_element_type().get_type_name() in BYTE_TYPES


# ---------------------------------------------------------------- bytes
def _constants(nodes: Sequence[Any]) -> set[str]:
    """Ids of what is computed from constants alone: once, when the network is loaded."""
    found: set[str] = set()
    for node in nodes:  # in the order of the data
        inputs = [_id(_source(port)) for port in node.inputs()]
        if _kind(node) == "Constant" or (inputs and all(one in found for one in inputs)):
            found.add(_id(node))
    return found


def _weight_bytes(nodes: Sequence[Any], constant: set[str]) -> float:
    return sum(_read_of(node, constant) for node in nodes if _is_weight(node))


def _is_weight(node: Any) -> bool:
    return _kind(node) == "Constant" and node.output(0).get_element_type().get_type_name() in WEIGHT_TYPES


def _read_of(weight: Any, constant: set[str]) -> float:
    """Bytes of one constant that a run reads: all of it, or the rows that Gather takes of it."""
    uses, quantized = _uses(weight, constant)
    element = 1 if quantized else weight.output(0).get_element_type().size
    whole = float(element * math.prod(_shape(weight.output(0))))
    if all(_kind(node) == "Gather" and place == 0 for node, place in uses):
        return min(whole, sum(float(element * math.prod(_shape(node.output(0)))) for node, _ in uses))
    return whole


def _uses(weight: Any, constant: set[str]) -> tuple[list[tuple[Any, int]], bool]:
    """(operation, place of its input) that take what is computed of it; and whether FakeQuantize lies between."""
    uses, quantized, waiting = [], False, [weight]
    while waiting:
        for port in waiting.pop().output(0).get_target_inputs():
            node = port.get_node()
            if _id(node) in constant:
                quantized |= _kind(node) == "FakeQuantize" and port.get_index() == 0
                waiting.append(node)
            else:
                uses.append((node, port.get_index()))
    return uses, quantized


# ---------------------------------------------------------------- OpenVINO's nodes
def _kind(node: Any) -> str:
    return str(node.get_type_name())


def _id(node: Any) -> str:
    return str(node.get_name())


def _source(port: Any) -> Any:
    return port.get_source_output().get_node()


def _shape(port: Any) -> list[int]:
    return list(port.get_shape())


def _stored(port: Any) -> int:
    return int(port.get_element_type().size * math.prod(_shape(port)))
