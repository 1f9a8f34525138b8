"""How many requests a percentile asks for, and what it is worth with fewer."""

from __future__ import annotations

import numpy as np
import pytest

from perf.percentiles import LEAST_BEYOND, percentile_interval, requests_for


@pytest.mark.parametrize(("percentile", "requests"), [(50, 60), (90, 300), (99, 3000), (99.9, 30000)])
def test_thirty_requests_lie_beyond_a_percentile(percentile: float, requests: int) -> None:
    assert requests_for(percentile) == requests
    latencies_ms = np.arange(requests, dtype=np.float64)
    assert (latencies_ms > np.percentile(latencies_ms, percentile)).sum() == LEAST_BEYOND


def test_an_interval_holds_the_true_percentile_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    true_ms = -np.log(0.01)
    ends = [percentile_interval(draw.exponential(size=3000), 99) for _ in range(200)]
    held = [low is not None and high is not None and low <= true_ms <= high for low, high in ends]
    assert 0.9 <= np.mean(held) <= 0.99


def test_an_interval_of_too_few_requests_has_no_upper_end() -> None:
    low, high = percentile_interval(np.arange(100, dtype=np.float64), 99)
    assert low is not None
    assert high is None
