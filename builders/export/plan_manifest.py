"""``model.plan.json``: what a TensorRT plan was built from and for, written beside each plan.

Standard library only. Whoever serves plans reads the file, not this module: a plan for another GPU or TensorRT is not
loaded, and the model named by ``fallback`` takes its place.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from builders.core.errors import BuilderError
from builders.core.files import write_atomically
from builders.core.runtimes.trt import manifest_path


class ManifestError(BuilderError):
    """A manifest that cannot be read as one."""


@dataclasses.dataclass(frozen=True)
class EngineManifest:
    """Facts of one plan.

    Attributes:
        tensorrt: version of the library that built it, ``10.13.3.9``; no other loads it.
        cuda: version of the CUDA driver interface, ``12.4``.
        driver: release of the GPU's driver, ``550.54.15``; empty where the machine does not say.
        compute_capability: of the GPU that it was built on, ``9.0``.
        gpu: the GPU's name.
        onnx_sha256: of the ONNX file that it was built from.
        profiles: in the order of Triton's ``instance_group.profile``; input name => ``min``, ``opt``, ``max`` => shape.
        build_seconds: building alone, without conversion and checks.
        plan_bytes: size of the plan.
        options: name => value of every build option, the precision among them.
        fallback: ONNX model whose files take the plan's place on another machine.
        layer_precisions: ``FP32``, ``FP16``, ``INT8`` => how many layers read or write it; ``opaque`` => those that the
            engine inspector does not look into.
    """

    tensorrt: str
    cuda: str
    driver: str
    compute_capability: str
    gpu: str
    onnx_sha256: str
    profiles: Sequence[Mapping[str, Mapping[str, Sequence[int]]]]
    build_seconds: float
    plan_bytes: int
    options: Mapping[str, Any]
    fallback: str
    layer_precisions: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """Stable text: keys in declaration order, one trailing newline."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> EngineManifest:
        """Inverse of :meth:`to_json`. Raises: ManifestError when a field is missing, unknown or no JSON."""
        try:
            return cls(**json.loads(text))
        except (TypeError, json.JSONDecodeError) as error:
            raise ManifestError(f"model.plan.json is no manifest ({error}); run 'make build-engines'") from error


def write_manifest(plan: Path, manifest: EngineManifest) -> None:
    """Beside the plan, by rename."""
    write_atomically(manifest_path(plan), manifest.to_json())


def read_manifest(plan: Path) -> EngineManifest:
    """Raises: ManifestError when there is none, or it is not one."""
    path = manifest_path(plan)
    if not path.is_file():
        raise ManifestError(f"{plan} has no {path.name}; run 'make build-engines'")
    return EngineManifest.from_json(path.read_text(encoding="utf-8"))
