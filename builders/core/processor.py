"""What this machine's processor computes with: scores in low precision depend on it."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

LOW_PRECISION = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "avx512_bf16", "amx_bf16")
"""Instruction sets, as Linux calls them, by which runtimes choose their kernels for INT8 and BF16."""


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """The architecture and those of :data:`LOW_PRECISION` that are there."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.is_file() else set()
    return (platform.machine(), *(name for name in LOW_PRECISION if name in flags))


def has_vnni() -> bool:
    """Whether it adds products of bytes up in 32 bits. Without that, libraries add them up in 16 bits, which saturate:
    INT8 loses more quality."""
    return bool({"avx_vnni", "avx512_vnni", "amx_int8"} & set(instruction_sets()))


def has_bf16() -> bool:
    """Whether it multiplies matrices in BF16. Without that, libraries emulate it."""
    return bool({"avx512_bf16", "amx_bf16"} & set(instruction_sets()))
