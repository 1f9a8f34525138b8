"""What this machine's processor can do."""

from __future__ import annotations

from pathlib import Path

import pytest


def has_vnni() -> bool:
    """Whether it adds products of bytes in 32 bits. Without that, libraries add them in 16 bits, which saturate."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    return any(flag in flags.split() for flag in ("avx512_vnni", "avx_vnni"))


needs_vnni = pytest.mark.skipif(not has_vnni(), reason="this processor has no VNNI: sums of INT8 products saturate")
