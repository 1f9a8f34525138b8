"""The runtimes that score a variant, a file each: sessions, files, conversion, Triton's backend and its parameters."""

from __future__ import annotations

from pathlib import Path

from builders.core.errors import BuilderError
from builders.core.runtimes.base import Precision, Runtime, Session
from builders.core.runtimes.onnx import ONNX
from builders.core.runtimes.openvino import OPENVINO
from builders.core.runtimes.parts import PartedSession
from builders.core.runtimes.trt import TRT

__all__ = [
    "ONNX",
    "OPENVINO",
    "RUNTIMES",
    "TRT",
    "PartedSession",
    "Precision",
    "Runtime",
    "RuntimeUnknown",
    "Session",
    "open_session",
    "runtime_of",
]

RUNTIMES = {runtime.name: runtime for runtime in (ONNX, OPENVINO, TRT)}


class RuntimeUnknown(BuilderError):
    """A scorer's file that no runtime of the kit runs."""


def runtime_of(path: Path) -> Runtime:
    """By the scorer file's suffix. Raises: RuntimeUnknown."""
    for runtime in RUNTIMES.values():
        if runtime.suffix == path.suffix:
            return runtime
    wanted = ", ".join(runtime.suffix for runtime in RUNTIMES.values())
    raise RuntimeUnknown(f"{path}: no runtime of this process runs '{path.suffix}'; wanted one of {wanted}")


def open_session(path: Path, *, threads: int = 0, precision: Precision = "fp32") -> Session:
    """Load a scorer by its suffix.

    Args:
        threads: of one run, 0 = the runtime's choice.
        precision: that it computes in, besides what the graph's own types say.

    Raises:
        RuntimeUnknown: another suffix.
    """
    return runtime_of(path).open(path, threads, precision)
