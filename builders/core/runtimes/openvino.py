"""OpenVINO on the CPU: ONNX => its IR, ``model.xml`` with ``model.bin`` beside it, as it is or quantized by NNCF.

Quantization: https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html
(SmoothQuant, arXiv:2211.10438, and fast bias correction for encoders).
"""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builders.core.errors import QuantizationError
from builders.core.onnx_files import load_model
from builders.core.quiet import quiet
from builders.core.runtimes.base import Precision, Runtime, Session

if TYPE_CHECKING:
    import onnx

    from builders.core.runtimes.base import Sample


class OpenVinoSession(Session):
    """OpenVINO's CPU plugin in latency mode, set as the served model's parameters set it."""

    def __init__(self, path: Path, threads: int, precision: Precision) -> None:
        from builders.core.untracked import openvino

        compiled = openvino.Core().compile_model(path, "CPU", openvino_properties(threads, precision))
        self._request = compiled.create_infer_request()
        self._inputs = [tensor.names for tensor in compiled.inputs]  # a tensor may have several names
        self._outputs = [tensor.names for tensor in compiled.outputs]

    def run(self, sample: Sample) -> Sample:
        """As :meth:`Session.run`."""
        import numpy as np

        given = {name: sample[name] for names in self._inputs for name in names if name in sample}
        found = self._request.infer(given, share_inputs=True)
        return {name: np.array(found[name]) for names in self._outputs for name in names}


def openvino_properties(threads: int, precision: Precision) -> dict[str, str | int]:
    """What a session is compiled with. threads: 0 = OpenVINO's choice."""
    limit = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    return {**limit, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}


def product_types(path: Path, precision: Precision, sample: Sample) -> frozenset[str]:
    """Of the kernels that the CPU plugin chose for matrix products: ``fp32``, ``fp16``, ``bf16``, ``int8``.

    Their names end in the type of the arithmetic, such as ``jit_gemm_i8`` and ``gemm_mlas_f32``; ``runtimePrecision``
    is that of the tensors, which may be wider or narrower. The sample is not run.
    """
    from builders.core.untracked import openvino

    compiled = openvino.Core().compile_model(path, "CPU", openvino_properties(1, precision))
    kernels = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    products = [one for one in kernels if one["layerType"].astype(str) in ("FullyConnected", "MatMul")]
    found = {str(one["primitiveType"].astype(str)).rsplit("_", 1)[-1].lower() for one in products}
    return frozenset(_TYPES.get(name, name) for name in found)


_TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}


def _parameters(threads: int, precision: Precision) -> Mapping[str, str]:
    """Latency mode: one stream of all the instance's threads. Without a hint OpenVINO computes in BF16 where the
    processor has it, so FP32 is asked for as well, by a parameter that the container's backend does not know."""
    hint = {"HINT_BF16": "YES"} if precision == "bf16" else {"inference_precision_hint": "f32"}
    return {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1", **hint}


def ir_from_onnx(source: Path, target: Path, precision: Precision = "fp32") -> None:
    """Convert.

    Args:
        target: ``.xml``; the weights come to lie beside it as ``.bin``.
        precision: with "bf16" weights are stored as FP16, which bf16 arithmetic reads without further loss.
    """
    from builders.core.untracked import openvino

    _save(openvino.Core().read_model(source), target, half_weights=precision == "bf16")


def int8_ir_from_onnx(
    source: Path, target: Path, samples: Sequence[Sample], keep_fp32: Sequence[str] = (), *, transformer: bool
) -> None:
    """Convert and quantize: INT8 weights per channel, activations per tensor, ranges from real samples.

    Args:
        samples: input name => array, one a request.
        keep_fp32: patterns of names of ONNX nodes (``fnmatch``).
        transformer: attention inside: its products stay in FP32 and SmoothQuant moves outliers into the weights.

    Raises:
        QuantizationError: no samples, or NNCF finds nothing to quantize.
    """
    from builders.core.untracked import nncf, openvino

    if not samples:
        raise QuantizationError(f"{source.name}: no calibration samples; wanted at least one request")
    nncf.set_log_level(logging.ERROR)
    ignored = nncf.IgnoredScope(patterns=_ignored(load_model(source, weights=False), keep_fp32), validate=False)
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
    openvino.save_model(model, target, compress_to_fp16=half_weights)


OPENVINO = Runtime(
    name="openvino",
    suffix=".xml",
    backend="openvino",
    precisions=frozenset({"fp32", "bf16"}),
    open=OpenVinoSession,
    parameters=_parameters,
    thread_parameter="INFERENCE_NUM_THREADS",
    joins_requests=False,  # with a max_batch_size its backend takes exactly so many rows, and cannot pad free lengths
    files_beside=lambda path: {"model.bin": path.with_suffix(".bin")},
    computes_in=product_types,
    converts=ir_from_onnx,
    quantizes=int8_ir_from_onnx,
    int8_methods=frozenset({"minmax"}),
)
