"""Both forms of an endpoint are driven in turn, and their figures are of the same rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perf import forms
from perf.analyzer import Measurement
from perf.bench_base import in_turn


def test_ratios_are_of_neighbours_in_time_and_neither_form_always_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"at ensemble": iter([100.0, 50.0, 80.0]), "at fused": iter([110.0, 75.0, 96.0])}
    asked: list[str] = []

    def measured(url: str, model: str, requests: Path, **settings: Any) -> Measurement:
        asked.append(url)
        return Measurement(np.array([1.0, 2.0, 9.0]), next(rates[url]), ())

    monkeypatch.setattr(forms, "measure", measured)
    urls = {form: f"at {form}" for form in forms.FORMS}
    found = forms.figures_of(urls, "rank", Path(), 3, 100, None)
    assert asked == [f"at {form}" for form in ("ensemble", "fused", "fused", "ensemble", "ensemble", "fused")]
    assert (found.ratio_low, found.ratio, found.ratio_high) == pytest.approx((1.1, 1.2, 1.5))
    assert (found.ensemble_per_s, found.fused_per_s, found.fused_p50_ms) == (80.0, 96.0, 2.0)


def test_calls_in_turn_begin_with_another_one_each_time_and_keep_their_places() -> None:
    called: list[str] = []

    def call(name: str) -> str:
        called.append(name)
        return name

    calls = [lambda name=name: call(name) for name in "abc"]  # type: ignore[misc]
    assert [in_turn(calls, first=first) for first in range(3)] == [[*"abc"]] * 3
    assert called == [*"abcbcacab"]
