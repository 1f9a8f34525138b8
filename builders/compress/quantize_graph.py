"""FP32 ONNX => INT8 ONNX: static with explicit QuantizeLinear/DequantizeLinear pairs, dynamic, or embeddings alone.

With static ranges a row's score depends on neither its neighbours in the batch nor the padding, unlike dynamic
quantization. Method and library: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import glob
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from builders.core.errors import QuantizationError
from builders.core.onnx_files import DATA_SUFFIX, copy_model, is_large, load_model
from builders.core.quiet import quiet
from builders.core.runtimes import open_session
from builders.core.steps import Int8, Int8Embeddings
from builders.rankers.base import Sample

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


SENSITIVITY_SAMPLES = 4
"""Requests on which a node's cost is measured."""


class NothingToQuantize(QuantizationError):
    """The graph has no part of the kind; another graph of the same ranker may."""


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """What quantizing one node alone does to the graph's first output.

    Attributes:
        cost: root mean square change, as a share of that output's standard deviation.
        kept_fp32: it was left in FP32 for that.
    """

    graph: str
    node: str
    cost: float
    kept_fp32: bool = False


def int8_from_onnx(source: Path, target: Path, samples: Iterable[Sample], settings: Int8) -> list[str]:
    """Quantize the products with constant weights: INT8 weights per output channel, activations per tensor.

    Activations are UINT8 by default because x86 processors multiply unsigned by signed bytes (VPDPBUSD): on them the
    same graph with symmetric INT8 activations, which TensorRT asks for, runs hardly faster in ONNX Runtime than FP32.
    Products of two activations (attention) stay FP32.

    Args:
        source: FP32 model.
        target: written beside and renamed.
        samples: real requests; the ranges of the activations are taken from them.
        settings: from the recipe, the most sensitive nodes named (:func:`sensitive_named`).

    Returns:
        Names of the quantized nodes.

    Raises:
        QuantizationError: no node to quantize, or no samples.
    """
    with _prepared(source, target, samples) as (prepared, ranges, readings):
        nodes = weighted_products(load_model(prepared, weights=False), settings.keep_fp32)
        if not nodes:
            raise NothingToQuantize(f"{source.name}: no MatMul or Gemm with constant weights is left to quantize")
        quantized = ranges.with_name("quantized.onnx")
        _quantize(prepared, quantized, ranges, readings, nodes, settings)
        copy_model(quantized, target)
    return nodes


def sensitivity(source: Path, samples: Iterable[Sample], settings: Int8) -> dict[str, float]:
    """Node => what it costs, as :class:`LayerCost` says; the most costly first.

    Args:
        source, samples, settings: as for :func:`int8_from_onnx`.

    Raises:
        QuantizationError: no samples.
    """
    with _prepared(source, source, samples) as (prepared, ranges, readings):
        nodes = weighted_products(load_model(prepared, weights=False), settings.keep_fp32)
        costs = _costs(prepared, ranges, readings, nodes, settings)
    return dict(sorted(costs.items(), key=lambda cost: -cost[1]))


def layer_costs(source: Path, samples: Iterable[Sample], settings: Int8, graph: str) -> tuple[LayerCost, ...]:
    """:func:`sensitivity` for a report: which of the nodes ``keep_most_sensitive`` leaves in FP32."""
    costs = sensitivity(source, samples, settings)
    return tuple(
        LayerCost(graph, node, cost, kept_fp32=place < settings.keep_most_sensitive)
        for place, (node, cost) in enumerate(costs.items())
    )


def sensitive_named(
    source: Path, samples: Iterable[Sample], settings: Int8, graph: str
) -> tuple[Int8, tuple[LayerCost, ...]]:
    """(the settings with the ``keep_most_sensitive`` nodes named in ``keep_fp32``, all nodes, the most costly first);
    nothing is measured where none is to be kept. Raises: QuantizationError: no samples."""
    if not settings.keep_most_sensitive:
        return settings, ()
    layers = layer_costs(source, samples, settings, graph)
    named = (*settings.keep_fp32, *(glob.escape(layer.node) for layer in layers if layer.kept_fp32))
    return settings.model_copy(update={"keep_fp32": named, "keep_most_sensitive": 0}), layers


def dynamic_int8_from_onnx(source: Path, target: Path) -> None:
    """Weights INT8, activations quantized anew in each run. Raises: QuantizationError: nothing to quantize."""
    with tempfile.TemporaryDirectory(dir=_existing(target.parent)) as scratch:
        prepared, quantized = Path(scratch) / "prepared.onnx", Path(scratch) / "quantized.onnx"
        _prepare(source, prepared)
        nodes = weighted_products(load_model(prepared, weights=False))
        if not nodes:
            raise NothingToQuantize(f"{source.name}: no MatMul or Gemm with constant weights to quantize")
        with quiet():
            quantize_dynamic(
                prepared,
                quantized,
                nodes_to_quantize=nodes,
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=is_large(prepared),
            )
        copy_model(quantized, target)


def int8_embeddings_from_onnx(
    source: Path, target: Path, samples: Iterable[Sample], settings: Int8Embeddings
) -> list[str]:
    """Tables that are looked up as INT8, one scale each: ``DequantizeLinear(table)`` before the look-up, which runtimes
    do after it, so that only the rows asked for are dequantized.

    Returns:
        Names of the tables.

    Raises:
        QuantizationError: no FP32 table of ``min_rows`` rows is looked up, or no samples.
    """
    readings = _some(source, samples)
    model = load_model(source, weights=False)
    tables = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims and tensor.dims[0] >= settings.min_rows
    }
    lookups = [node.name for node in model.graph.node if node.op_type == "Gather" and node.input[0] in tables]
    if not lookups:
        raise NothingToQuantize(f"{source.name}: no embedding table of {settings.min_rows} rows or more")
    with tempfile.TemporaryDirectory(dir=_existing(target.parent)) as scratch:
        quantized = Path(scratch) / "quantized.onnx"
        with quiet():
            quantize_static(
                source,
                quantized,
                _Samples(readings),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Gather"],
                nodes_to_quantize=lookups,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QInt8,
                use_external_data_format=is_large(source),
                extra_options={"WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": ["Gather"]},
            )
        copy_model(quantized, target)
    return [node.input[0] for node in model.graph.node if node.name in lookups]


def weighted_products(model: onnx.ModelProto, keep_fp32: Iterable[str] = ()) -> list[str]:
    """Names of the MatMul and Gemm nodes with a constant operand whose names match no pattern of ``keep_fp32``."""
    constants = {initializer.name for initializer in model.graph.initializer}
    patterns = tuple(keep_fp32)
    return [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
        and constants.intersection(node.input)
        and not any(fnmatch.fnmatch(node.name, pattern) for pattern in patterns)
    ]


@contextlib.contextmanager
def _prepared(source: Path, target: Path, samples: Iterable[Sample]) -> Iterator[tuple[Path, Path, list[Sample]]]:
    """(the graph as the quantizer wants it, where ranges are kept from one call to the next, samples)."""
    readings = _some(source, samples)
    with tempfile.TemporaryDirectory(dir=_existing(target.parent)) as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        _prepare(source, prepared)
        yield prepared, Path(scratch) / "ranges.json", readings


def _prepare(source: Path, prepared: Path) -> None:
    """The graph as the quantizer wants it."""
    location = f"{prepared.name}{DATA_SUFFIX}" if is_large(source) else None
    quant_pre_process(
        source,
        prepared,
        skip_symbolic_shape=True,
        save_as_external_data=location is not None,
        all_tensors_to_one_file=True,
        external_data_location=location,
    )


def _some(source: Path, samples: Iterable[Sample]) -> list[Sample]:
    readings = list(samples)
    if not readings:
        raise QuantizationError(f"{source.name}: no calibration samples; wanted at least one request")
    return readings


def _costs(prepared: Path, ranges: Path, samples: list[Sample], nodes: list[str], settings: Int8) -> dict[str, float]:
    wanted = _first_outputs(prepared, samples[:SENSITIVITY_SAMPLES])
    costs = {}
    for node in nodes:
        quantized = prepared.with_name("one.onnx")
        _quantize(prepared, quantized, ranges, samples, [node], settings)
        found = _first_outputs(quantized, samples[:SENSITIVITY_SAMPLES])
        costs[node] = float(np.sqrt(np.mean((found - wanted) ** 2)) / np.std(wanted))
    return costs


def _first_outputs(path: Path, samples: list[Sample]) -> np.ndarray:
    session = open_session(path)
    return np.concatenate([next(iter(session.run(sample).values())).ravel() for sample in samples])


def _quantize(
    source: Path, target: Path, ranges: Path, samples: list[Sample], nodes: list[str], settings: Int8
) -> None:
    with quiet():
        quantize_static(
            source,
            target,
            _Samples(samples),
            calibration_cache_path=ranges,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=QuantType.QUInt8 if settings.activations == "uint8" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=_METHODS[settings.method],
            use_external_data_format=is_large(source),
            extra_options={
                "WeightSymmetric": True,
                "ActivationSymmetric": settings.activations == "int8",
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],  # results go on in FP32: half the error
                "CalibPercentile": settings.percentile,
                # requests differ in shape, and histograms are made of what one call of the calibrator collects
                "CalibStridedMinMax": None if settings.method == "minmax" else 1,
            },
        )


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class _Samples(CalibrationDataReader):
    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples
        self._left = iter(samples)

    def __len__(self) -> int:
        return len(self._samples)

    def set_range(self, start_index: int, end_index: int) -> None:
        """From here on only these."""
        self._left = iter(self._samples[start_index:end_index])

    def get_next(self) -> Sample | None:
        """The next request, None after the last."""
        return next(self._left, None)
