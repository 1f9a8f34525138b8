"""Instances and threads are chosen by what was measured, among what this process may use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from perf.tune import Measured, Split, choose, splits, usable_cpus
from server.environment import REPOSITORY_ROOT


def test_every_split_uses_all_cpus() -> None:
    assert splits(1) == [Split(1, 1)]
    assert splits(6) == [Split(1, 6), Split(2, 3), Split(3, 2), Split(6, 1)]


@pytest.mark.parametrize(
    ("rates", "latencies", "chosen"),
    [
        ((100, 120), (10, 15), Split(2, 1)),  # the higher rate
        ((116, 120), (10, 15), Split(1, 2)),  # nearly as high, and sooner for one caller
        ((120, 100), (15, 10), Split(1, 2)),
    ],
)
def test_the_highest_rate_is_chosen_or_what_is_nearly_as_high_and_answers_sooner(
    rates: tuple[float, float], latencies: tuple[float, float], chosen: Split
) -> None:
    found = {
        split: Measured([rate, 0.9 * rate, 9 * rate], [latency])
        for split, rate, latency in zip((Split(1, 2), Split(2, 1)), rates, latencies, strict=True)
    }
    assert choose(found) == chosen


def test_only_cpus_that_this_process_may_use_are_shared_out() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from perf.tune import usable_cpus; print(usable_cpus())"
    told = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "1"
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))
