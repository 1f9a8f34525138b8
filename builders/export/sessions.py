"""One scorer file => a session in this process, whatever runtime serves it: what offline figures are made with.

``model.onnx`` runs in ONNX Runtime and ``model.xml`` (with ``model.bin`` beside it) in OpenVINO, both on the CPU;
``model.plan`` (with its manifest beside it) in TensorRT, on the GPU that it was built for.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from builders.core.cuda_runtime import offer_cuda_runtime
from builders.export.plan_manifest import manifest_path
from builders.rankers.base import Sample

ONNX, OPENVINO, PLAN = ".onnx", ".xml", ".plan"


class Session(abc.ABC):
    """A loaded scorer."""

    @abc.abstractmethod
    def run(self, sample: Sample) -> Sample:
        """Output name => array. sample: input name => array; what the graph does not take is ignored."""


class OnnxSession(Session):
    """ONNX Runtime."""

    def __init__(self, path: Path, threads: int, fp16: bool) -> None:
        options = onnxruntime.SessionOptions()
        if fp16:  # the layout pass of the highest level crashes on some FP16 graphs
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # it warns of each initializer that a fused node no longer needs
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]

    def run(self, sample: Sample) -> Sample:
        """As :meth:`Session.run`."""
        arrays: list[np.ndarray] = self._session.run(self._outputs, {name: sample[name] for name in self._inputs})
        return dict(zip(self._outputs, arrays, strict=True))


class OpenVinoSession(Session):
    """OpenVINO's CPU plugin in latency mode, set as the served model's parameters set it."""

    def __init__(self, path: Path, threads: int, bf16: bool) -> None:
        from builders.core.untracked import openvino

        compiled = openvino.Core().compile_model(path, "CPU", openvino_properties(threads, bf16))
        self._request = compiled.create_infer_request()
        self._inputs = [tensor.names for tensor in compiled.inputs]  # a tensor may have several names
        self._outputs = [tensor.names for tensor in compiled.outputs]

    def run(self, sample: Sample) -> Sample:
        """As :meth:`Session.run`."""
        given = {name: sample[name] for names in self._inputs for name in names if name in sample}
        found = self._request.infer(given, share_inputs=True)
        return {name: np.array(found[name]) for names in self._outputs for name in names}


class PlanSession(Session):
    """TensorRT by Polygraphy, with a runner for each optimisation profile. No GPU has run it yet."""

    def __init__(self, path: Path) -> None:
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        offer_cuda_runtime()
        engine = EngineFromBytes(BytesFromPath(str(path)))()
        profiles = json.loads(manifest_path(path).read_text(encoding="utf-8"))["profiles"]
        self._largest = [{name: shapes[-1] for name, shapes in profile.items()} for profile in profiles]
        self._runners = [TrtRunner(engine, optimization_profile=place) for place in range(len(profiles))]
        for runner in self._runners:
            runner.activate()

    def run(self, sample: Sample) -> Sample:
        """As :meth:`Session.run`, in the first profile that takes the sample's shapes."""
        place = next(place for place, largest in enumerate(self._largest) if _fits(sample, largest))
        found = self._runners[place].infer({name: sample[name] for name in self._largest[place]})
        return {name: np.array(array) for name, array in found.items()}


def _fits(sample: Sample, largest: Mapping[str, Sequence[int]]) -> bool:
    return all(
        size <= limit for name, shape in largest.items() for size, limit in zip(sample[name].shape, shape, strict=True)
    )


def openvino_properties(threads: int, bf16: bool) -> dict[str, str | int]:
    """What a session is compiled with. threads: 0 = OpenVINO's choice."""
    limit = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    return {**limit, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"}


def open_session(path: Path, *, threads: int = 0, fp16: bool = False, bf16: bool = False) -> Session:
    """Load a scorer by its suffix.

    Args:
        threads: of one run, 0 = the runtime's choice.
        fp16: the graph holds FP16.
        bf16: OpenVINO shall compute in BF16.

    Raises:
        ValueError: another suffix.
    """
    if path.suffix == ONNX:
        return OnnxSession(path, threads, fp16)
    if path.suffix == OPENVINO:
        return OpenVinoSession(path, threads, bf16)
    if path.suffix == PLAN:
        return PlanSession(path)
    raise ValueError(f"{path}: no runtime of this process runs '{path.suffix}'; wanted {ONNX}, {OPENVINO} or {PLAN}")


def files_of(path: Path) -> dict[str, Path]:
    """What the served version's folder holds: file name => file."""
    named = {f"model{path.suffix}": path}
    beside = {OPENVINO: {"model.bin": path.with_suffix(".bin")}, PLAN: {"model.plan.json": manifest_path(path)}}
    return named | beside.get(path.suffix, {})
