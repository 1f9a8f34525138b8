"""What a model repository serves: the endpoints in it, and the steps and files behind each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as triton

from builders.core.runtimes import RUNTIMES
from builders.publish import pbtxt
from builders.publish.manifest import CONFIG, CONTRACT, FUSED, MANIFEST, Manifest, read_manifest
from builders.publish.repository import left_out, published_names, served_variant, tune_machine

__all__ = [
    "CONFIG",
    "FUSED",
    "MANIFEST",
    "Manifest",
    "Step",
    "can_serve",
    "endpoint_inputs",
    "is_fused",
    "left_out",
    "published_names",
    "read_manifest",
    "scorer_files",
    "served_variant",
    "steps_of",
    "tune_machine",
]


@dataclasses.dataclass(frozen=True)
class Step:
    """A model that an endpoint names, at the version that it names.

    Attributes:
        backend: empty where the model's configuration is not there.
        config: the model's configuration.
        folder: of the version.
    """

    backend: str
    config: Path
    folder: Path

    @property
    def files(self) -> list[Path]:
        """Of the version, by name, those of the steps in it included."""
        return [path for path in sorted(self.folder.rglob("*")) if path.is_file()]

    @property
    def folders(self) -> list[Path]:
        """The version's, and those of the steps that it fuses, in the order in which a request passes them."""
        contract = self.folder / CONTRACT
        inner = json.loads(contract.read_text(encoding="utf-8"))["parameters"] if contract.is_file() else {}
        return [self.folder, *(self.folder / name for name in inner.get("steps", ()))]


def can_serve(repository: Path, endpoint: str) -> bool:
    """Whether there is such an endpoint, and all versions that it names are there."""
    return endpoint in published_names(repository) and all(
        step.folder.is_dir() for step in steps_of(repository, endpoint)
    )


def endpoint_inputs(repository: Path, endpoint: str) -> set[str]:
    """Names of the tensors that the endpoint reads."""
    return {tensor.name for tensor in _config(repository / endpoint / CONFIG).input}


def steps_of(repository: Path, endpoint: str) -> list[Step]:
    """The models behind the endpoint, in the order in which a request passes them."""
    steps = []
    for step in _config(repository / endpoint / CONFIG).ensemble_scheduling.step:
        config = repository / step.model_name / CONFIG
        backend = _config(config).backend if config.is_file() else ""
        steps.append(Step(backend, config, config.parent / str(step.model_version)))
    return steps


def is_fused(repository: Path, endpoint: str) -> bool:
    """Whether one process runs all that is behind the endpoint."""
    return any(step.config.parent.name.endswith(FUSED) for step in steps_of(repository, endpoint))


def scorer_files(repository: Path, endpoint: str) -> list[Path]:
    """The networks' files behind the endpoint, in the order in which a request passes them."""
    scorers = [f"model{runtime.suffix}" for runtime in RUNTIMES.values() if not runtime.needs_gpu]
    folders = [folder for step in steps_of(repository, endpoint) for folder in step.folders]
    found = [folder / name for folder in folders for name in scorers]
    return [path for path in found if path.is_file()]


def _config(path: Path) -> triton.ModelConfig:
    return pbtxt.read(path)
