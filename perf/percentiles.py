"""Percentiles of latencies with what they are worth: how many requests they ask for, and their intervals."""

from __future__ import annotations

import math

import numpy as np

LEAST_BEYOND = 30
"""Requests slower than a percentile, from which on it says something."""
CONFIDENCE = 0.95

Interval = tuple[float | None, float | None]
"""Low and high end; None where there are too few requests for that end."""


def requests_for(percentile: float) -> int:
    """The least number of requests of which ``LEAST_BEYOND`` are slower than the percentile: 3,000 for 99."""
    return math.ceil(round(LEAST_BEYOND / (1 - percentile / 100), 6))


def percentile_interval(latencies_ms: np.ndarray, percentile: float) -> Interval:
    """Of a percentile, by order statistics, at 95% confidence, in milliseconds.

    It takes requests for independent, which neighbours in a queue are not: the spread of repeated measurements comes
    on top.

    Args:
        latencies_ms: float64 [requests].
        percentile: 0 to 100.
    """
    from scipy import stats  # takes a second

    tested = stats.quantile_test(latencies_ms, q=0.0, p=percentile / 100)
    low, high = tested.confidence_interval(CONFIDENCE)
    return _finite(low), _finite(high)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
