"""Tests of INT8 arithmetic that hold only where the processor's does."""

from __future__ import annotations

import pytest

from builders.core.processor import has_vnni

needs_vnni = pytest.mark.skipif(not has_vnni(), reason="this processor has no VNNI: sums of INT8 products saturate")
