"""TensorRT: ``model.plan`` with its manifest beside it, on the GPU that it was built for.

A plan is built from a variant's ONNX graph (:mod:`builders.engines`); its ``config.pbtxt`` has profiles and CUDA graphs
(:mod:`builders.publish.tensorrt_config`). No GPU has run :class:`PlanSession` yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from builders.core.cuda_runtime import offer_cuda_runtime
from builders.core.runtimes.base import Precision, Runtime, Session

if TYPE_CHECKING:
    from builders.core.runtimes.base import Sample


def manifest_path(plan: Path) -> Path:
    """``model.plan`` => ``model.plan.json``."""
    return plan.with_name(f"{plan.name}.json")


class PlanSession(Session):
    """TensorRT by Polygraphy, with a runner for each optimisation profile."""

    def __init__(self, path: Path, threads: int, precision: Precision) -> None:
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
        import numpy as np

        place = next(place for place, largest in enumerate(self._largest) if _fits(sample, largest))
        found = self._runners[place].infer({name: sample[name] for name in self._largest[place]})
        return {name: np.array(array) for name, array in found.items()}


def _fits(sample: Sample, largest: Mapping[str, Sequence[int]]) -> bool:
    return all(
        size <= limit for name, shape in largest.items() for size, limit in zip(sample[name].shape, shape, strict=True)
    )


TRT = Runtime(
    name="trt",
    suffix=".plan",
    backend="tensorrt",
    precisions=frozenset({"fp32", "fp16"}),
    open=PlanSession,
    files_beside=lambda path: {"model.plan.json": manifest_path(path)},
    needs_gpu=True,
)
