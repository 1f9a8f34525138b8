"""What the figures were measured on."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from pathlib import Path

import psutil

from server.environment import find_environment
from server.errors import EnvironmentUnfit

TRITON_OF_PYTRITON = {"0.7.0": "2.51.0 (24.10)"}


@dataclasses.dataclass(frozen=True)
class Machine:
    """CPU, memory and the versions that matter to a figure."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    load_average: float
    versions: dict[str, str]


def this_machine() -> Machine:
    """Of this process, now; ``load_average`` is that of the last minute, over all cores."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(psutil.Process().cpu_affinity() or []) or psutil.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        load_average=round(psutil.getloadavg()[0], 2),
        versions={**_server_versions(), **_versions("torch", "transformers", "tritonclient")},
    )


def _cpu_model() -> str:
    """Python's own platform.processor() is empty on Linux."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _server_versions() -> dict[str, str]:
    try:
        environment = find_environment()
    except EnvironmentUnfit:
        return {}
    pytriton = environment.version_of("nvidia-pytriton") or "missing"
    runtime = environment.version_of("onnxruntime") or "missing"
    return {"Triton": TRITON_OF_PYTRITON.get(pytriton, f"of nvidia-pytriton {pytriton}"), "ONNX Runtime": runtime}


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}
