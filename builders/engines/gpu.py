"""Which GPU, driver and CUDA this process would use, from the CUDA driver itself.

``libcuda`` is on every machine that can run an engine, a Jetson included, and follows ``CUDA_VISIBLE_DEVICES``, which
``nvidia-smi`` does not. Source: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__DEVICE.html
"""

from __future__ import annotations

import ctypes
import dataclasses
import re
from pathlib import Path

from builders.core.errors import MACHINE_LACKS, BuilderError

_LIBRARY = "libcuda.so.1"
_DRIVER = Path("/proc/driver/nvidia/version")
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


class GpuMissing(BuilderError):
    """No GPU that CUDA can use."""

    exit_code = MACHINE_LACKS


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The first visible GPU; the fields are those of :class:`builders.export.plan_manifest.EngineManifest`."""

    name: str
    compute_capability: str
    driver: str
    cuda: str


def visible_gpu(library: str = _LIBRARY, driver_file: Path = _DRIVER) -> Gpu:
    """The GPU that an engine would be built on.

    Raises:
        GpuMissing: no CUDA driver, or no GPU visible to it.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        raise GpuMissing(f"no NVIDIA driver here ({error})") from error
    _call(cuda, "cuInit", ctypes.c_uint(0))
    name, version, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    device = ctypes.c_int()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), 0)
    _call(cuda, "cuDeviceGetName", name, len(name), device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
    _call(cuda, "cuDriverGetVersion", ctypes.byref(version))
    return Gpu(
        name=name.value.decode(),
        compute_capability=f"{major.value}.{minor.value}",
        driver=_driver_release(driver_file),
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _call(cuda: ctypes.CDLL, function: str, *arguments: object) -> None:
    code = getattr(cuda, function)(*arguments)
    if code != 0:
        raise GpuMissing(f"{function} of {_LIBRARY} answered error {code}; is a GPU visible to this process?")


def _driver_release(file: Path) -> str:
    """Empty where the driver does not say, as on a Jetson."""
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", file.read_text()) if file.is_file() else None
    return found[1] if found else ""
