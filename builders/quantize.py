"""FP32 ONNX => INT8 ONNX with explicit QuantizeLinear/DequantizeLinear pairs (static: ranges fixed by calibration).

With static ranges a row's score depends on neither its neighbours in the batch nor the padding, unlike dynamic
quantization. Method and library: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import fnmatch
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from builders.files import write_atomically
from builders.ranker import Sample
from builders.recipe import Quantization

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class QuantizationError(ValueError):
    """The graph cannot be quantized as asked."""


def int8_from_onnx(source: Path, target: Path, samples: Iterable[Sample], settings: Quantization) -> list[str]:
    """Quantize the products with constant weights: INT8 weights per output channel, UINT8 activations per tensor.

    Activations are UINT8 because x86 processors multiply unsigned by signed bytes (VPDPBUSD): on them the same graph
    with INT8 activations ran no faster than FP32. Products of two activations (attention) stay FP32.

    Args:
        source: FP32 model.
        target: written beside and renamed.
        samples: real requests; the ranges of the activations are taken from them.
        settings: from the recipe.

    Returns:
        Names of the quantized nodes.

    Raises:
        QuantizationError: no node to quantize, or no samples.
    """
    readings = list(samples)
    if not readings:
        raise QuantizationError(f"{source.name}: no calibration samples; wanted at least one request")
    with tempfile.TemporaryDirectory(dir=_existing(target.parent)) as scratch:
        prepared, quantized = Path(scratch) / "prepared.onnx", Path(scratch) / "quantized.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        nodes = weighted_products(onnx.load(prepared), settings.keep_fp32)
        if not nodes:
            raise QuantizationError(f"{source.name}: no MatMul or Gemm with constant weights is left to quantize")
        _quantize(prepared, quantized, readings, nodes, settings)
        write_atomically(target, quantized.read_bytes())
    return nodes


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


def _quantize(source: Path, target: Path, samples: list[Sample], nodes: list[str], settings: Quantization) -> None:
    # The quantizer logs each node it leaves alone.
    logging.getLogger().setLevel(logging.ERROR)
    quantize_static(
        source,
        target,
        _Samples(samples),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_quantize=nodes,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=_METHODS[settings.method],
        extra_options={
            "WeightSymmetric": True,
            "ActivationSymmetric": False,
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],  # results go on in FP32: half the error
            "CalibPercentile": settings.percentile,
        },
    )


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class _Samples(CalibrationDataReader):
    def __init__(self, samples: list[Sample]) -> None:
        self._left = iter(samples)

    def get_next(self) -> Sample | None:
        """The next request, None after the last."""
        return next(self._left, None)
