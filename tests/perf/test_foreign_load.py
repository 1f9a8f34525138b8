"""Load of other programs is told from our own, and disturbed measurements are made again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from perf import foreign_load
from perf.foreign_load import FOREIGN_SHARE_LIMIT, ForeignLoad, undisturbed

BUSY = "while True: pass"


@pytest.fixture(autouse=True)
def three_runs(measured_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it."""
    monkeypatch.setattr(foreign_load, "RUNS", 3)


@contextlib.contextmanager
def busy_stranger() -> Iterator[None]:
    """A process that is no descendant of this one and never sleeps, for each processor."""
    command = f"for i in $(seq {psutil.cpu_count()}); do {sys.executable} -c '{BUSY}' >/dev/null 2>&1 & echo $!; done"
    started = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    pids = [int(pid) for pid in started.stdout.split()]
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def spin(seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass


def test_a_busy_program_of_somebody_else_disturbs_a_measurement_which_is_made_again() -> None:
    made: list[int] = []

    def measure() -> int:
        made.append(len(made))
        spin(0.5)
        return made[-1]

    with busy_stranger():
        watched = undisturbed(measure)
    assert watched.disturbed and watched.foreign_share > FOREIGN_SHARE_LIMIT
    assert watched.runs == len(made) == 3
    assert watched.found in made


def test_what_our_own_processes_take_is_not_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that has ended, and one that runs: all that they took is taken off the machine's."""
    before_s = foreign_load._own_s()
    ended = subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert ended.returncode == 0
    with subprocess.Popen([sys.executable, "-c", BUSY]) as running:
        child = psutil.Process(running.pid)
        while child.cpu_times().user < 0.3:
            spin(0.05)
        own_s = foreign_load._own_s() - before_s
        running.kill()
    assert own_s >= 0.55
    busy = iter([100.0, 100.0 + 0.5])
    monkeypatch.setattr(foreign_load, "_busy_s", lambda: next(busy))
    own = iter([50.0, 50.5])
    monkeypatch.setattr(foreign_load, "_own_s", lambda: next(own))
    assert ForeignLoad().share() == 0.0


def test_the_least_disturbed_of_all_is_kept_and_a_quiet_one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.5, 0.2, 0.3, 0.4, 0.05])
    monkeypatch.setattr(ForeignLoad, "share", lambda self: next(shares))
    found = iter("abcde")
    marked = undisturbed(lambda: next(found))
    assert (marked.found, marked.foreign_share, marked.runs, marked.disturbed) == ("b", 0.2, 3, True)
    quiet = undisturbed(lambda: next(found))
    assert (quiet.found, quiet.runs, quiet.disturbed) == ("e", 2, False)
