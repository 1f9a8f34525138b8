"""Drop-in for Triton's C++ TensorRT backend.

A Python-based backend: placed as `tensorrt/model.py` in a backend directory it answers to `backend: "tensorrt"`, so
that a model repository with plans, written for the container, is served unchanged by a Triton that has no C++ TensorRT.
What it does as the C++ backend does, and where it differs: ../CONFORMANCE.md.

Source of the behaviour: https://github.com/triton-inference-server/tensorrt_backend, src/instance_state.cc.
Knows nothing of rankers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from batching import Arrays, RunFailed, RunLimits, run_joined, run_parts
from deadlines import Deadlines
from model_configuration import LoadErrors, run_limits
from plan_signature import allocation_strategy, check_configuration, check_supported, hints_not_followed, plan_file
from profiles import choose_profile, most_rows, profile_indices
from score_cache import open_score_cache

TENSORRT_VARIABLE = "TRITONRANK_TENSORRT"
"""Names a folder with the packages tensorrt and polygraphy, where the server's environment has none."""


class TritonPythonModel:
    """One model instance: one process, one plan on one GPU."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the plan and check the configuration against it; raise with the reason where they do not fit."""
        self.config = json.loads(args["model_config"])
        version_folder = Path(args["model_repository"]) / args["model_version"]
        with LoadErrors(args["model_name"]):
            check_supported(self.config, args["model_instance_kind"])
            self.batches = self.config["max_batch_size"] > 0
            self.limits = run_limits(self.config, takes_any_rows=self.batches)
            self.engine = _open_engine(self.config, version_folder, int(args["model_instance_device_id"]))
            check_configuration(self.config, self.engine.tensors)
            indices = profile_indices(self.config, args["model_instance_name"], self.engine.profile_count)
            self.profiles = [self.engine.profile(index) for index in indices]
            self.engine.allocate(self.profiles)
            runtime = f"tensorrt {self.engine.runtime_version}"
            self.cache = open_score_cache(self.config, args, self.limits, runtime, rows_apart=self.batches)
        self.deadlines = Deadlines()
        self.output_names = [output["name"] for output in self.config["output"]]
        _log_hints(args["model_name"], hints_not_followed(self.config))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request, those of equal shapes in one enqueue; what is too late is refused, see Deadlines."""
        return self.deadlines.answer(requests, self._execute)

    def _execute(self, requests: list[Any]) -> list[Any]:
        inputs = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        results = self.cache.results(requests, inputs, self._results) if self.cache else self._results(inputs)
        return [self._response(request, result) for request, result in zip(requests, results, strict=True)]

    def finalize(self) -> None:
        """Give back what the GPU holds."""
        if self.cache:
            self.cache.close()
        self.engine.free()

    def _results(self, inputs: Sequence[Arrays]) -> list[Arrays | RunFailed]:
        return run_joined(self._run, inputs, RunLimits()) if self.batches else [*map(self._run_alone, inputs)]

    def _run(self, inputs: Arrays) -> Arrays:
        """Run rows in as few enqueues as the profiles and the limits of a run allow."""
        rows = most_rows(self.profiles, _shapes(inputs), self.limits.rows_of_a_run(inputs))
        return run_parts(self._enqueue, inputs, replace(self.limits, rows=rows, tokens=None))

    def _run_alone(self, inputs: Arrays) -> Arrays | RunFailed:
        try:
            return self._enqueue(inputs)
        except RunFailed as failure:
            return failure

    def _enqueue(self, inputs: Arrays) -> Arrays:
        return self.engine.run(choose_profile(self.profiles, _shapes(inputs)), inputs)

    def _response(self, request: Any, result: Arrays | RunFailed) -> Any:
        if isinstance(result, RunFailed):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(result), pb_utils.TritonError.INTERNAL))
        wanted = [name for name in self.output_names if name in request.requested_output_names()]
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, result[name]) for name in wanted])


def _shapes(inputs: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in inputs.items()}


def _open_engine(config: dict[str, Any], version_folder: Path, device: int) -> Any:
    """Import TensorRT only here, so that a machine without it learns the next step."""
    plan = plan_file(config, version_folder)
    folder = os.environ.get(TENSORRT_VARIABLE)
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)  # NumPy is the environment's own: Triton's stub has imported it by now
    try:
        from cuda_engine import CudaEngine
    except ImportError as error:
        raise ImportError(
            f"{error}; a plan needs the packages tensorrt and polygraphy in the server's environment or in the folder "
            f"that {TENSORRT_VARIABLE} names, or the Triton container; without them serve the ONNX variant"
        ) from error
    return CudaEngine(plan, device, allocation_strategy(config))


def _log_hints(model_name: str, hints: list[str]) -> None:
    if hints:
        pb_utils.Logger.log_info(
            f"model '{model_name}': {len(hints)} settings of speed are not followed by the tensorrt drop-in; "
            "backends/CONFORMANCE.md names them"
        )
