"""Load of other programs during a measurement: the machine's processor time less that of our own process tree.

Our own tree is this process with all that it started: the server, its stubs, perf_analyzer. Time that a hypervisor gave
to other machines counts as foreign.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import psutil

T = TypeVar("T")

FOREIGN_SHARE_LIMIT = 0.1
"""Of the machine's processor time, from which on a measurement is disturbed: on two cores a fifth of one."""
RUNS = 3
"""Of a measurement at most, while each is disturbed."""


@dataclasses.dataclass(frozen=True)
class Watched(Generic[T]):
    """What was measured.

    Attributes:
        foreign_share: of the machine's processor time meanwhile, 0 to 1.
        runs: the last, or the least disturbed, of so many.
    """

    found: T
    foreign_share: float
    runs: int

    @property
    def disturbed(self) -> bool:
        """Whether other programs took more than ``FOREIGN_SHARE_LIMIT``."""
        return self.foreign_share > FOREIGN_SHARE_LIMIT


class ForeignLoad:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._start_s, self._busy_s, self._own_s = time.monotonic(), _busy_s(), _own_s()

    def share(self) -> float:
        """Of the machine's processor time since then that neither was idle nor ours, 0 to 1."""
        foreign_s = (_busy_s() - self._busy_s) - (_own_s() - self._own_s)
        possible_s = (time.monotonic() - self._start_s) * (psutil.cpu_count() or 1)
        return min(max(foreign_s / possible_s, 0.0), 1.0)


def undisturbed(measure: Callable[[], T]) -> Watched[T]:
    """Measure again, at most ``RUNS`` times in all, while other programs disturb it; else the least disturbed of them.

    Raises:
        What ``measure`` raises.
    """
    kept: list[tuple[float, T]] = []
    for run in range(1, RUNS + 1):
        load = ForeignLoad()
        found = measure()
        watched = Watched(found, load.share(), run)
        if not watched.disturbed:
            return watched
        kept.append((watched.foreign_share, found))
    share, found = min(kept, key=lambda pair: pair[0])
    return Watched(found, share, RUNS)


def _busy_s() -> float:
    """Of all processors together, since the machine started."""
    times = psutil.cpu_times()
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    counted_twice_s = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # in user and nice already
    return float(sum(times) - idle_s - counted_twice_s)


def _own_s() -> float:
    """Of this process and its descendants, with those that have ended and were waited for."""
    this = psutil.Process()
    total_s = 0.0
    for process in [this, *this.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total_s += times.user + times.system + times.children_user + times.children_system
    return total_s
