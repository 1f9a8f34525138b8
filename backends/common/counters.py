"""Counters among Triton's own metrics.

Shared by the drop-in backends and, copied beside them, by the served models. Triton's module only.
"""

from __future__ import annotations

import triton_python_backend_utils as pb_utils


class Counter:
    """A counter of Triton's own metrics, labelled with the model's name."""

    def __init__(self, name: str, description: str, model: str) -> None:
        # The family must outlive its metric, or Triton drops both.
        self._family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
        self._metric = self._family.Metric(labels={"model": model})

    def add(self, amount: int) -> None:
        """Add ``amount`` >= 0."""
        if amount:
            self._metric.increment(amount)
