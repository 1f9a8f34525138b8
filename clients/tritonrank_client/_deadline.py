"""A time budget that several steps share."""

from __future__ import annotations

import time

import numpy as np

from ._errors import DeadlineExceeded, InvalidRequest

MAX_TIMEOUT_S = 3600.0


class Deadline:
    """The moment `timeout_s` seconds from now.

    Raises: InvalidRequest when timeout_s is not above 0 and at most MAX_TIMEOUT_S.
    """

    def __init__(self, timeout_s: float):
        if not isinstance(timeout_s, (int, float, np.number)) or not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise InvalidRequest(
                f"timeout_s: found {timeout_s!r}, wanted seconds above 0 and at most {MAX_TIMEOUT_S:g}", "timeout_s"
            )
        self.timeout_s = float(timeout_s)
        self._end_s = time.monotonic() + self.timeout_s

    def remaining_s(self) -> float:
        """Seconds left, above 0. Raises: DeadlineExceeded when none are."""
        remaining_s = self._end_s - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExceeded(f"timeout_s={self.timeout_s:g} was spent before the server could be asked")
        return remaining_s

    def left_s(self) -> float:
        """Seconds left, 0 when none are."""
        return max(0.0, self._end_s - time.monotonic())

    def first(self, share: float) -> Deadline:
        """One that ends when `share` of what is left is over. Raises: DeadlineExceeded when nothing is."""
        return Deadline(self.remaining_s() * share)
