"""Drop-in for Triton's C++ OpenVINO backend, on the CPU.

A Python-based backend: placed as `openvino/model.py` in a backend directory it answers to `backend: "openvino"`, so
that a model repository written for the container is served unchanged by a Triton that has no C++ OpenVINO backend.
What it does as the C++ backend does, and where it differs: ../CONFORMANCE.md.

Source of the behaviour: https://github.com/triton-inference-server/openvino_backend, src/openvino.cc.
Knows nothing of rankers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from batching import Arrays, BatchFailed, RunFailed, RunLimits, run_joined, run_parts
from configuration import complete_configuration
from deadlines import Deadlines
from model_configuration import LoadErrors, run_limits
from ov_core import (
    compile_model,
    create_core,
    lacks_asked_bf16,
    model_file,
    openvino_errors,
    read_model,
    refuse_unsupported,
)
from score_cache import open_score_cache
from signature import fit_to_configuration, fixed_rows, takes_any_rows
from untracked_openvino import ov


class TritonPythonModel:
    """One model instance: one process, one compiled model, one infer request."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Complete missing inputs, outputs, max_batch_size and scheduler from the model; raise where it cannot."""
        config = auto_complete_model_config.as_dict()
        with LoadErrors(config["name"]):
            model = read_model(create_core(config), model_file(config, Path(pb_utils.get_model_dir())))
            complete_configuration(config, model)
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Fit the model to the configuration and compile it; raise with the reason where they do not fit."""
        self.config = json.loads(args["model_config"])
        version_folder = Path(args["model_repository"]) / args["model_version"]
        with LoadErrors(args["model_name"]):
            refuse_unsupported(self.config, args["model_instance_kind"])
            core = create_core(self.config)
            if lacks_asked_bf16(self.config, core):
                pb_utils.Logger.log_warn("HINT_BF16 is YES, but this CPU has no bf16: OpenVINO computes in f32")
            model = fit_to_configuration(read_model(core, model_file(self.config, version_folder)), self.config)
            self.fixed_rows = fixed_rows(self.config)
            self.limits = run_limits(self.config, takes_any_rows(model))
            self.joins = not self.limits.row_inputs and (
                self.limits != RunLimits() or (self.config["max_batch_size"] > 0 and self.fixed_rows is None)
            )
            self.cache = open_score_cache(
                self.config,
                args,
                self.limits,
                f"openvino {ov.__version__}",
                rows_apart=self.joins or bool(self.limits.row_inputs),
            )
            self.request = compile_model(core, model).create_infer_request()
        self.deadlines = Deadlines()
        self.output_names = [output["name"] for output in self.config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that fails does not fail its batch, one that is too late is refused (Deadlines)."""
        return self.deadlines.answer(requests, self._execute)

    def _execute(self, requests: list[Any]) -> list[Any]:
        inputs = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        results = self.cache.results(requests, inputs, self._results) if self.cache else self._results(inputs)
        return [self._response(request, result) for request, result in zip(requests, results, strict=True)]

    def finalize(self) -> None:
        """Release the model."""
        if self.cache:
            self.cache.close()
        del self.request

    def _results(self, inputs: Sequence[Arrays]) -> list[Arrays | RunFailed]:
        return run_joined(self._run, inputs, self.limits) if self.joins else [*map(self._run_alone, inputs)]

    def _run_alone(self, inputs: Arrays) -> Arrays | RunFailed:
        try:
            return run_parts(self._run, inputs, self.limits) if self.limits.row_inputs else self._run(inputs)
        except RunFailed as failure:
            return failure

    def _run(self, inputs: Arrays) -> Arrays:
        self._check_rows(inputs)
        with openvino_errors("running inference"):
            # The inputs are not copied. The outputs are: the next run writes over those of the infer request.
            results = self.request.infer(inputs, share_inputs=True)
        return {name: results[name] for name in self.output_names}

    def _check_rows(self, inputs: Arrays) -> None:
        rows = {len(array) for array in inputs.values()} if self.fixed_rows else set()
        if rows - {self.fixed_rows}:
            raise BatchFailed(
                f"expected requests with batch size '{self.fixed_rows}', got '{min(rows)}'... this error can be "
                "avoided by setting 'ENABLE_BATCH_PADDING' parameter in model configuration to 'YES'"
            )

    def _response(self, request: Any, result: Arrays | RunFailed) -> Any:
        if isinstance(result, RunFailed):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(result), pb_utils.TritonError.INTERNAL))
        wanted = [name for name in self.output_names if name in request.requested_output_names()]
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, result[name]) for name in wanted])
