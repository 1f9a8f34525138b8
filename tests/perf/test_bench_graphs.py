"""The part of bench that holds exported graphs against plain exports: what it makes of what it measured."""

from __future__ import annotations

import numpy as np
import pytest

from perf.bench_base import paired_ms
from perf.bench_graphs import COST_LIMIT, figure_of

SAMPLE = {"input_ids": np.zeros((40, 48), dtype=np.int32)}


@pytest.mark.parametrize(("cost", "passed"), [(0.97, True), (COST_LIMIT, True), (1.05, False)])
def test_the_figure_is_the_median_of_pairs(cost: float, passed: bool) -> None:
    plain_ms = np.array([100.0, 200.0, 100.0])  # a slow moment slows both of a pair
    figure = figure_of("mine", SAMPLE, np.stack([plain_ms * [cost, cost, 9.0], plain_ms], axis=1))
    assert (figure.value, figure.passed) == (pytest.approx(cost), passed)
    assert "40 rows of 48 tokens" in figure.name and "n 3" in figure.detail


def test_either_may_be_timed_first_by_any_clock() -> None:
    ran: list[str] = []
    seconds = iter([0.0, 1.0, 5.0, 7.0])
    spans_ms = paired_ms(
        lambda: ran.append("first"), lambda: ran.append("second"), swap=True, clock=lambda: next(seconds)
    )
    assert spans_ms == (2000.0, 1000.0)
    assert ran == ["second", "first"]
