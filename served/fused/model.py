"""A whole endpoint in one process: its steps in turn, each by the very code that an ensemble runs of it.

Beside this file lies a folder a step, with what its version folder holds and, of a scorer, the code of the drop-in
backend that runs it and its configuration as that backend is given it. Steps are joined by the names of their tensors,
as those of an ensemble are, but nothing is copied or encoded on the way, and no process waits for another. Requests are
computed one at a time in each instance: Triton joins none of different requests here.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

MODEL_CONFIG = "model_config.json"
"""In a scorer's folder: its configuration as JSON, in the form in which Triton hands it to a backend."""


class TritonPythonModel:
    """inputs and outputs: the endpoint's; the contract beside this file names the steps."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load every step and warm it up. Raises: what the steps raise."""
        folder = Path(args["model_repository"]) / args["model_version"]
        contract = json.loads((folder / "contract.json").read_text(encoding="utf-8"))
        self.output_names = [tensor["name"] for tensor in contract["outputs"]]
        self.steps = [Step(folder / name, args) for name in contract["parameters"]["steps"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request: the last step's, or that of the step that refuses it."""
        tensors = [{tensor.name(): tensor for tensor in request.inputs()} for request in requests]
        refused: dict[int, Any] = {}
        for step in self.steps:
            rows = [row for row in range(len(requests)) if row not in refused]
            for row, response in zip(rows, step.execute([(requests[row], tensors[row]) for row in rows]), strict=True):
                if response.has_error():
                    refused[row] = response
                else:
                    tensors[row].update((tensor.name(), tensor) for tensor in response.output_tensors())
        return [refused.get(row) or self._response(tensors[row]) for row in range(len(requests))]

    def _response(self, tensors: Mapping[str, Any]) -> Any:
        return pb_utils.InferenceResponse([tensors[name] for name in self.output_names])

    def finalize(self) -> None:
        """Let every step give up what it holds."""
        for step in self.steps:
            step.model.finalize()


class Step:
    """A step's model in this process.

    Args:
        folder: its version folder, called as it.
        args: what Triton hands to ``TritonPythonModel.initialize`` of the model that the step is part of: its name is
            that of the step's metrics, its parameters stand in place of the scorer's own.
    """

    def __init__(self, folder: Path, args: Mapping[str, str]) -> None:
        contract = json.loads((folder / "contract.json").read_text(encoding="utf-8"))
        self.input_names = {tensor["name"] for tensor in contract["inputs"]}
        self.output_names = [tensor["name"] for tensor in contract["outputs"]]
        self.model = _code_of(folder).TritonPythonModel()
        config = _config_of(folder, json.loads(args["model_config"]))
        within = {"model_repository": str(folder.parent), "model_version": folder.name}
        self.model.initialize({**args, **within, "model_config": json.dumps(config)})
        for sample in config.get("model_warmup", ()):
            self._warm_up(sample, batches=config["max_batch_size"] > 0)

    def execute(self, asked: Iterable[tuple[Any, Mapping[str, Any]]]) -> Sequence[Any]:
        """A response each of (the endpoint's request, the tensors so far)."""
        requests = [StepRequest(self, tensors, request) for request, tensors in asked]
        return self.model.execute(requests) if requests else []

    def _warm_up(self, sample: Mapping[str, Any], *, batches: bool) -> None:
        """Raises: pb_utils.TritonModelException: the run fails."""
        rows = [int(sample["batch_size"])] if batches else []
        tensors = {
            name: np.zeros([*rows, *map(int, tensor["dims"])], pb_utils.triton_string_to_numpy(tensor["data_type"]))
            for name, tensor in sample["inputs"].items()
        }
        [response] = self.model.execute(
            [StepRequest(self, {name: pb_utils.Tensor(name, array) for name, array in tensors.items()})]
        )
        if response.has_error():
            raise pb_utils.TritonModelException(f"warm-up '{sample['name']}': {response.error().message()}")


class StepRequest:
    """A request as one step is given it. request: the endpoint's, which knows its time; None of a warm-up."""

    def __init__(self, step: Step, tensors: Mapping[str, Any], request: Any = None) -> None:
        self._step, self._tensors, self._request = step, tensors, request

    def inputs(self) -> list[Any]:
        """Those of the tensors so far that the step reads."""
        return [tensor for name, tensor in self._tensors.items() if name in self._step.input_names]

    def requested_output_names(self) -> list[str]:
        """All of the step."""
        return self._step.output_names

    def timeout(self) -> int:
        """Microseconds; 0 = as long as it takes."""
        return 0 if self._request is None else int(self._request.timeout())

    def parameters(self) -> str:
        """JSON object."""
        return "{}" if self._request is None else str(self._request.parameters())


def _code_of(folder: Path) -> Any:
    """The step's ``model.py``. What it imports lies beside it; files of one name are the same file in every step."""
    sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(f"step_{folder.name}", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _config_of(folder: Path, whole: Mapping[str, Any]) -> dict[str, Any]:
    """The scorer's configuration, with what ``whole`` says of the parameters that it has, as a tuned machine's does;
    ``whole`` itself of pre- and post-processing, which read none."""
    path = folder / MODEL_CONFIG
    if not path.is_file():
        return {**whole, "model_warmup": []}
    config = json.loads(path.read_text(encoding="utf-8"))
    own = config.get("parameters", {})
    return {**config, "parameters": {name: whole["parameters"].get(name, value) for name, value in own.items()}}
