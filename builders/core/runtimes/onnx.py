"""ONNX Runtime on the CPU: ``model.onnx``, as it is, with its weights beside it where it is large."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from builders.core.onnx_files import external_files
from builders.core.runtimes.base import Precision, Runtime, Session

if TYPE_CHECKING:
    from builders.core.runtimes.base import Sample


class OnnxSession(Session):
    """ONNX Runtime."""

    def __init__(self, path: Path, threads: int, precision: Precision) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if precision == "fp16":  # see ONNX.graph_level
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # it warns of each initializer that a fused node no longer needs
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]

    def run(self, sample: Sample) -> Sample:
        """As :meth:`Session.run`."""
        arrays = self._session.run(self._outputs, {name: sample[name] for name in self._inputs})
        return dict(zip(self._outputs, arrays, strict=True))


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
    graph_level={"fp16": 1},  # the layout pass of the highest level crashes on some FP16 graphs
)
