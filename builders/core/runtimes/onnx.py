"""ONNX Runtime on the CPU: ``model.onnx``, as it is, with its weights beside it where it is large."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builders.core.onnx_files import external_files
from builders.core.runtimes.base import Precision, Runtime, Session

if TYPE_CHECKING:
    from builders.core.runtimes.base import Sample


class OnnxSession(Session):
    """ONNX Runtime."""

    def __init__(self, path: Path, threads: int, precision: Precision) -> None:
        import onnxruntime

        options = _session_options(threads, precision)
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]

    def run(self, sample: Sample) -> Sample:
        """As :meth:`Session.run`."""
        arrays = self._session.run(self._outputs, {name: sample[name] for name in self._inputs})
        return dict(zip(self._outputs, arrays, strict=True))


def _session_options(threads: int, precision: Precision) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if precision == "fp16":  # see ONNX.graph_level
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # it warns of each initializer that a fused node no longer needs
    return options


def product_types(path: Path, precision: Precision, sample: Sample) -> frozenset[str]:
    """Of the matrix products that one profiled run computes: ``fp32``, ``fp16``, ``bf16``, ``int8``.

    Source: https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html
    """
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="tritonrank_profile_") as folder:
        options = _session_options(1, precision)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        session.run(None, {tensor.name: sample[tensor.name] for tensor in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event["args"] for event in events if "input_type_shape" in event.get("args", {})]
    return frozenset(_product_type(one) for one in kernels if re.search("MatMul|Gemm", one["op_name"]))


def _product_type(kernel: Mapping[str, Any]) -> str:
    """Of one kernel's profile: one that takes bytes among its operands multiplies in INT8."""
    operands = [name for shapes in kernel["input_type_shape"] for name in shapes]
    return "int8" if {"int8", "uint8"} & set(operands) else _TYPES.get(operands[0], operands[0])


_TYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def _parameters(threads: int, precision: Precision) -> Mapping[str, str]:
    return {"intra_op_thread_count": str(threads), "inter_op_thread_count": "1"}


ONNX = Runtime(
    name="onnx",
    suffix=".onnx",
    backend="onnxruntime",
    precisions=frozenset({"fp32", "fp16"}),
    open=OnnxSession,
    parameters=_parameters,
    thread_parameter="intra_op_thread_count",
    fuses=True,
    files_beside=external_files,
    computes_in=product_types,
    graph_level={"fp16": 1},  # the layout pass of the highest level crashes on some FP16 graphs
)
