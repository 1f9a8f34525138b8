"""Tests run beside each other, so every measurement would be disturbed and made again."""

from __future__ import annotations

import pytest

from perf import foreign_load


@pytest.fixture(autouse=True)
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much other programs disturb it."""
    monkeypatch.setattr(foreign_load, "RUNS", 1)
