"""The learning rate of every training here: a linear rise, then a linear fall to 0."""

from __future__ import annotations

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; after it falls to 0, both linearly."""


def rate_factor(step: int, steps: int) -> float:
    """Of the highest learning rate, in ``step`` of ``steps``, 0 the first: for ``torch``'s ``LambdaLR``."""
    return min(1.0, (step + 1) / (WARM_UP * steps)) * max(0.0, 1 - step / steps)
