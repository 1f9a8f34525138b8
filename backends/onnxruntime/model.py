"""Drop-in for Triton's C++ ONNX Runtime backend, on the CPU.

A Python-based backend: placed as `onnxruntime/model.py` in a backend directory it answers to `backend: "onnxruntime"`,
so that a model repository written for the container is served unchanged by a Triton that has no C++ ONNX Runtime.
What it does as the C++ backend does, and where it differs: ../CONFORMANCE.md.

Source of the behaviour: https://github.com/triton-inference-server/onnxruntime_backend, src/onnxruntime.cc.
Knows nothing of rankers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import triton_python_backend_utils as pb_utils
from batching import Arrays, RunFailed, run_joined, run_parts, run_whole
from configuration import complete_configuration, needs_completion
from deadlines import Deadlines
from model_configuration import LoadErrors, run_limits
from ort_session import OrtError, OrtInvalidArgument, create_run_options, create_session, onnx_file
from score_cache import open_score_cache
from signature import check_configuration, is_scalar, read_signature


class TritonPythonModel:
    """One model instance: one process, one ONNX Runtime session."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Complete missing inputs, outputs, max_batch_size and scheduler from the ONNX file; raise where it cannot."""
        config = auto_complete_model_config.as_dict()
        if needs_completion(config):
            with LoadErrors(config["name"]):
                complete_configuration(config, read_signature(onnx_file(config, Path(pb_utils.get_model_dir()))))
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Create the session and check the configuration against it; raise with the reason where they do not fit."""
        self.config = json.loads(args["model_config"])
        version_folder = Path(args["model_repository"]) / args["model_version"]
        with LoadErrors(args["model_name"]):
            self.session = create_session(
                self.config, onnx_file(self.config, version_folder), args["model_instance_kind"]
            )
            check_configuration(self.config, self.session)
            self.run_options = create_run_options(self.config)
            self.batches = self.config["max_batch_size"] > 0
            self.limits = run_limits(self.config, takes_any_rows=self.batches)
            self.cache = open_score_cache(
                self.config,
                args,
                self.limits,
                f"onnxruntime {onnxruntime.__version__}",
                rows_apart=self.batches or bool(self.limits.row_inputs),
            )
        self.deadlines = Deadlines()
        self.output_names = [output["name"] for output in self.config["output"]]
        self.scalar_shapes = _scalar_shapes(self.config, self.session)
        self.string_inputs = {i["name"] for i in self.config["input"] if i["data_type"] == "TYPE_STRING"}
        self.scalar_inputs = {i.name for i in self.session.get_inputs() if is_scalar(i)}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that fails does not fail its batch, one that is too late is refused (Deadlines)."""
        return self.deadlines.answer(requests, self._execute)

    def _execute(self, requests: list[Any]) -> list[Any]:
        inputs = [self._inputs(request) for request in requests]
        results = self.cache.results(requests, inputs, self._results) if self.cache else self._results(inputs)
        return [self._response(request, result) for request, result in zip(requests, results, strict=True)]

    def finalize(self) -> None:
        """Release the session."""
        if self.cache:
            self.cache.close()
        del self.session

    def _results(self, inputs: Sequence[Arrays]) -> list[Arrays | RunFailed]:
        return run_joined(self._run, inputs, self.limits) if self.batches else [*map(self._run_alone, inputs)]

    def _run_alone(self, inputs: Arrays) -> Arrays | RunFailed:
        try:
            if self.limits.row_inputs:
                return run_parts(self._run_whole, inputs, self.limits)
            return self._run_whole(inputs)
        except RunFailed as failure:
            return failure

    def _run_whole(self, inputs: Arrays) -> Arrays:
        return run_whole(self._run, inputs, self.scalar_inputs, self.scalar_shapes)

    def _run(self, inputs: Arrays) -> Arrays:
        try:
            return dict(
                zip(self.output_names, self.session.run(self.output_names, inputs, self.run_options), strict=True)
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise OrtError.of(error) from error

    def _inputs(self, request: Any) -> Arrays:
        arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        # ONNX Runtime reads an object array's elements with str(), which would turn b"a" into "b'a'".
        return {name: array.astype("S") if name in self.string_inputs else array for name, array in arrays.items()}

    def _response(self, request: Any, result: Arrays | RunFailed) -> Any:
        if isinstance(result, RunFailed):
            faulty = isinstance(result, OrtInvalidArgument)
            code = pb_utils.TritonError.INVALID_ARG if faulty else pb_utils.TritonError.INTERNAL
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(result), code))
        wanted = [name for name in self.output_names if name in request.requested_output_names()]
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, _as_triton(result[name])) for name in wanted])


def _as_triton(array: Any) -> Any:
    """Triton's BYTES are bytes, ONNX Runtime's strings are str."""
    if array.dtype != object:
        return array
    encoded = [text.encode() if isinstance(text, str) else text for text in array.ravel()]
    out = array.copy()
    out.ravel()[:] = encoded
    return out


def _scalar_shapes(config: dict[str, Any], session: Any) -> dict[str, list[int]]:
    """Output name => configured dims, for outputs that are scalars in the ONNX graph."""
    scalars = {output.name for output in session.get_outputs() if is_scalar(output)}
    return {
        output["name"]: [int(dim) for dim in output["dims"]] for output in config["output"] if output["name"] in scalars
    }
