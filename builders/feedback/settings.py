"""What a user sets of an export. Standard library alone, for the command line's help."""

from __future__ import annotations

from typing import Literal

Bias = Literal["none", "inverse-propensity"]
"""Whether clicks are corrected by the propensity of their position."""
LEAST_IMPRESSIONS = 10
"""Of a pair of query and item that is graded."""
