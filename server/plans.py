"""TensorRT plans: which of a repository this machine can load, and what is served in place of the others.

A plan runs on the kind of GPU and the TensorRT release that it was built for; `model.plan.json` beside it names them.
Where they are not this machine's, the plan is not loaded: Triton gets a view of the repository, a folder of links to
its models, in which the plan's model holds the files and the configuration of its ONNX fallback, under its own name
and version, so that every ensemble finds it. A view is written only where a plan is refused.

What is published or rolled back in the repository while serving is seen through the links, except in a refused plan's
model, which is looked at again when the server is started again, as are models that are new.

As a program, with the system's Python and no package: prints the repository to serve, and says on stderr why it is
not the one it was given.

    python3 plans.py --repository /models --view /tmp/view

Standard library only, imports nothing of this package. Reads the few lines of a config.pbtxt that it needs.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLAN = "model.plan"
MANIFEST = "model.plan.json"
MANIFEST_KEYS = (
    "tensorrt", "cuda", "driver", "compute_capability", "gpu", "onnx_sha256", "profiles", "build_seconds",
    "plan_bytes", "options", "fallback",
)  # fmt: skip
CONFIG = "config.pbtxt"
PLAN_SUFFIX, ONNX_SUFFIX = "_trt", "_onnx"
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute of cuda.h
NAME_BYTES = 256
AMPERE = 8  # major compute capability

_NAME = re.compile(r'^name:\s*"[^"]*"', re.MULTILINE)
_VERSION_POLICY = re.compile(r"^version_policy\s*:?\s*\{[^{}]*(?:\{[^{}]*\}[^{}]*)?\}", re.MULTILINE)


@dataclass(frozen=True)
class Gpu:
    """A GPU as CUDA names it, with its compute capability, such as "9.0"."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class Machine:
    """The GPUs that CUDA sees, and the TensorRT that would load a plan; None where there is none."""

    gpus: tuple[Gpu, ...]
    tensorrt: str | None


@dataclass(frozen=True)
class Refusal:
    """A model whose plan cannot be loaded here; `versions` are those that it serves."""

    model: str
    versions: tuple[int, ...]
    reason: str
    fallback: str | None

    @property
    def line(self) -> str:
        instead = f"'{self.fallback}' is served in its place" if self.fallback else "nothing can take its place"
        return f"plan of '{self.model}' not loaded: {self.reason}; {instead}. Run 'make build-engines' on this machine."


def servable_repository(repository: Path, view: Path, tensorrt: Callable[[], str | None]) -> tuple[Path, list[Refusal]]:
    """Return the repository where this machine can load its plans, else a new view of it below `view`, and why.

    tensorrt: tells the version that would load the plans; asked only where there are any.
    """
    if not any(repository.glob(f"*/*/{PLAN}")):
        return repository, []
    refused = refusals(repository, Machine(visible_gpus(), tensorrt()))
    return (write_view(repository, view, refused) if refused else repository), refused


def refusals(repository: Path, machine: Machine) -> list[Refusal]:
    """Return the models with a plan, in a version that they serve, which this machine cannot load."""
    found = []
    for folder in sorted({path.parent.parent for path in repository.glob(f"*/*/{PLAN}")}):
        versions = served_versions(folder)
        reasons = {v: reason for v in versions if (reason := _reason_to_refuse(folder / str(v), machine))}
        if reasons:
            version, reason = max(reasons.items())
            fallback = _fallback_of(folder / str(version), repository)
            found.append(Refusal(folder.name, versions, f"version {version}: {reason}", fallback))
    return found


def served_versions(model: Path) -> tuple[int, ...]:
    """Return the versions that a model's configuration serves: those it names, else the newest."""
    present = sorted(int(path.name) for path in model.iterdir() if path.name.isdigit())
    policy = _VERSION_POLICY.search(_config_of(model))
    named = {int(number) for number in re.findall(r"\d+", policy[0])} if policy and "specific" in policy[0] else None
    if named is not None:
        return tuple(version for version in present if version in named)
    return tuple(present if policy and "all" in policy[0] else present[-1:])


def write_view(repository: Path, view: Path, refused: Sequence[Refusal]) -> Path:
    """Write links to all of the repository but the refused models, and these with their fallbacks' files."""
    view.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=view, prefix="repository_"))
    folder.chmod(0o755)
    names = {refusal.model for refusal in refused}
    for entry in repository.absolute().iterdir():
        if entry.name not in names:
            (folder / entry.name).symlink_to(entry)
    for refusal in refused:
        if refusal.fallback:
            _write_fallback(refusal, repository.absolute() / refusal.fallback, folder / refusal.model)
    return folder


def visible_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA's driver shows to this process, so as CUDA_VISIBLE_DEVICES leaves them."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_gpu(driver, number) for number in range(count.value))


def linked_tensorrt() -> str | None:
    """Return the version of the libnvinfer that the dynamic linker finds, as Triton's C++ backend loads it."""
    name = ctypes.util.find_library("nvinfer")
    try:
        return _version_text(ctypes.CDLL(name).getInferLibVersion()) if name else None
    except (OSError, AttributeError):
        return None


def _gpu(driver: Any, number: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, NAME_BYTES, device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device)
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}")


def _version_text(number: int) -> str:
    """8503 => "8.5.3", 101303 => "10.13.3": from TensorRT 10 on the major version counts 10,000s (NvInferVersion.h)."""
    major, rest = divmod(number, 10_000 if number >= 100_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _reason_to_refuse(version_folder: Path, machine: Machine) -> str | None:
    """Why the plan of a version cannot be loaded here; None where it can, or where there is no plan."""
    plan = version_folder / PLAN
    if not plan.is_file():
        return None
    try:
        manifest = _read_manifest(version_folder)
    except ValueError as error:
        return str(error)
    if plan.stat().st_size != manifest["plan_bytes"]:
        return f"{PLAN} has {plan.stat().st_size} bytes, {MANIFEST} says {manifest['plan_bytes']}"
    return _other_gpu(manifest, machine.gpus) or _other_tensorrt(manifest["tensorrt"], machine.tensorrt)


def _read_manifest(version_folder: Path) -> dict[str, Any]:
    """Raises ValueError with what is wrong with it."""
    try:
        manifest = json.loads((version_folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no {MANIFEST} beside {PLAN}, so nobody knows what it was built for") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {error}") from error
    missing = [key for key in MANIFEST_KEYS if not isinstance(manifest, dict) or key not in manifest]
    if missing:
        raise ValueError(f"{MANIFEST} lacks {', '.join(missing)}")
    return dict(manifest)


def _other_gpu(manifest: dict[str, Any], gpus: Sequence[Gpu]) -> str | None:
    wanted = Gpu(str(manifest["gpu"]), str(manifest["compute_capability"]))
    if gpus and all(gpu == wanted or (_runs_on_any(manifest) and _is_ampere_or_later(gpu)) for gpu in gpus):
        return None
    found = ", ".join(sorted({_gpu_text(gpu) for gpu in gpus})) or "no NVIDIA GPU"
    return f"built for {_gpu_text(wanted)}, this machine has {found}"


def _runs_on_any(manifest: dict[str, Any]) -> bool:
    """Built with the option hardware_compatible: for Ampere and all later GPUs."""
    return isinstance(manifest["options"], dict) and manifest["options"].get("hardware_compatible") is True


def _is_ampere_or_later(gpu: Gpu) -> bool:
    return int(gpu.compute_capability.split(".")[0]) >= AMPERE


def _gpu_text(gpu: Gpu) -> str:
    return f"{gpu.name} (compute capability {gpu.compute_capability})"


def _other_tensorrt(wanted: str, found: str | None) -> str | None:
    """Compares as many parts of the versions as both have: a library tells three, a package four."""
    if found and all(a == b for a, b in zip(str(wanted).split("."), found.split("."), strict=False)):
        return None
    return f"built by TensorRT {wanted}, this machine has {'TensorRT ' + found if found else 'no TensorRT'}"


def _fallback_of(version_folder: Path, repository: Path) -> str | None:
    """The manifest's fallback; where it names none that is there, the ONNX variant whose name begins alike."""
    try:
        named = [str(json.loads((version_folder / MANIFEST).read_text(encoding="utf-8"))["fallback"])]
    except (OSError, ValueError, KeyError, TypeError):
        named = []
    candidates = [*named, *_similar_names(version_folder.parent.name)]
    return next((name for name in candidates if name and _serves_onnx(repository / name)), None)


def _similar_names(model: str) -> list[str]:
    """`cross_encoder_l3_fp16_trt` => `cross_encoder_l3_fp16_onnx`, `cross_encoder_l3_fp32_onnx`, and so on, shorter."""
    parts = model.removesuffix(PLAN_SUFFIX).split("_")
    stems = ["_".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return [stem + end for stem in stems for end in (ONNX_SUFFIX, "_fp32" + ONNX_SUFFIX)]


def _serves_onnx(model: Path) -> bool:
    return model.is_dir() and any((model / str(version) / "model.onnx").exists() for version in served_versions(model))


def _write_fallback(refusal: Refusal, fallback: Path, target: Path) -> None:
    target.mkdir()
    source = fallback / str(served_versions(fallback)[-1])
    for version in refusal.versions:
        (target / str(version)).symlink_to(source)
    for config in [fallback / CONFIG, *fallback.glob("configs/*.pbtxt")]:
        written = target / config.relative_to(fallback)
        written.parent.mkdir(exist_ok=True)
        written.write_text(_renamed(config.read_text(encoding="utf-8"), refusal), encoding="utf-8")


def _renamed(config: str, refusal: Refusal) -> str:
    """The fallback's configuration under the refused model's name and versions."""
    named = _NAME.sub(f'name: "{refusal.model}"', _VERSION_POLICY.sub("", config))
    return f"{named}\nversion_policy {{ specific {{ versions: {list(refusal.versions)} }} }}\n"


def _config_of(model: Path) -> str:
    path = model / CONFIG
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the repository to serve; return 0, or 1 where there is no repository."""
    parser = argparse.ArgumentParser(prog="plans.py", description="Prints the repository that this machine can serve.")
    parser.add_argument("--repository", type=Path, required=True, help="Triton model repository")
    parser.add_argument("--view", type=Path, required=True, help="writable folder, in which a view is made if needed")
    options = parser.parse_args(arguments)
    if not options.repository.is_dir():
        print(f"error: model repository {options.repository}: no such folder; mount one there.", file=sys.stderr)
        return 1
    served, refused = servable_repository(options.repository, options.view, linked_tensorrt)
    for refusal in refused:
        print(refusal.line, file=sys.stderr)
    print(served)
    return 0


if __name__ == "__main__":
    sys.exit(main())
