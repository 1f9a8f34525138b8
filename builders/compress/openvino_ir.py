"""ONNX => OpenVINO's IR (``.xml`` and ``.bin``), as it is or quantized by NNCF.

Quantization: https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html
(SmoothQuant, arXiv:2211.10438, and fast bias correction for encoders). Knows nothing of Triton.
"""

from __future__ import annotations

import fnmatch
import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from builders.compress.quantize_graph import QuantizationError
from builders.core.files import write_atomically
from builders.core.quiet import quiet
from builders.core.steps import Int8
from builders.rankers.base import Sample


def ir_from_onnx(source: Path, target: Path, *, half_weights: bool = False) -> None:
    """Convert.

    Args:
        target: ``.xml``; the weights come to lie beside it as ``.bin``. Both written beside and renamed, weights first.
        half_weights: store weights as FP16, which bf16 arithmetic reads without further loss.
    """
    from builders.core.untracked import openvino

    _save(openvino.Core().read_model(source), target, half_weights)


def int8_ir_from_onnx(
    source: Path, target: Path, samples: Sequence[Sample], settings: Int8, *, transformer: bool
) -> None:
    """Convert and quantize: INT8 weights per channel, activations per tensor, ranges from real samples.

    Args:
        samples: input name => array, one a request.
        settings: ``keep_fp32`` names ONNX nodes.
        transformer: attention inside: its products stay in FP32 and SmoothQuant moves outliers into the weights.

    Raises:
        QuantizationError: no samples, or NNCF finds nothing to quantize.
    """
    from builders.core.untracked import nncf, openvino

    if not samples:
        raise QuantizationError(f"{source.name}: no calibration samples; wanted at least one request")
    nncf.set_log_level(logging.ERROR)
    ignored = nncf.IgnoredScope(patterns=_ignored(onnx.load(source), settings.keep_fp32), validate=False)
    with quiet():  # its progress bars
        quantized = nncf.quantize(
            openvino.Core().read_model(source),
            nncf.Dataset(list(samples)),
            subset_size=len(samples),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            ignored_scope=ignored,
        )
    if not any(map(_is_quantized_product, quantized.get_ops())):
        raise QuantizationError(f"{source.name}: NNCF quantized nothing; leave the step out, or relax keep_fp32")
    _save(quantized, target, half_weights=False)


def _ignored(model: onnx.ModelProto, keep_fp32: Sequence[str]) -> list[str]:
    """Patterns of the names that IR gives these nodes: their own, their output's where that is the graph's, and their
    own with a suffix where one node became several operations."""
    kept = [node for node in model.graph.node if any(fnmatch.fnmatch(node.name, each) for each in keep_fp32)]
    return [rf"{re.escape(name)}(/.*)?\Z" for node in kept for name in (node.name, *node.output)]


def _is_quantized_product(operation: Any) -> bool:
    inputs = [value.get_source_output().get_node().get_type_name() for value in operation.inputs()]
    return operation.get_type_name() in ("MatMul", "Convolution", "GroupConvolution") and "FakeQuantize" in inputs


def _save(model: object, target: Path, half_weights: bool) -> None:
    from builders.core.untracked import openvino

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / "model.xml"
        openvino.save_model(model, made, compress_to_fp16=half_weights)
        write_atomically(target.with_suffix(".bin"), made.with_suffix(".bin").read_bytes())
        write_atomically(target, made.read_bytes())
