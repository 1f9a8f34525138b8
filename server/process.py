"""A child process that never outlives its parent, with everything it starts: see guard.py."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

GUARD = Path(__file__).with_name("guard.py")
KILL_TIMEOUT_S = 5.0


class GuardedProcess:
    """A command that runs under guard.py, in a process group of its own.

    command   what to run, in `folder`, with the variables `environ`
    log       where its output goes; None for this terminal
    grace_s   how long it may take to end after SIGTERM before it is killed
    drain_s   how long tritonserver answers on, unready, before a stop that drains
    answer_within_s  how long an endpoint's canary may take; 0 = none is sent

    Linux ends it when the calling thread ends: call from one that lives as long as the command shall.
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        folder: Path,
        log: IO[bytes] | None,
        grace_s: float,
        drain_s: float = 0.0,
        answer_within_s: float = 0.0,
    ):
        self.grace_s, self.drain_s = grace_s, drain_s
        read_end, write_end = os.pipe()
        guarded = [
            sys.executable, "-IS", str(GUARD), f"--launcher={os.getpid()}", f"--pid-fd={write_end}",
            f"--drain-s={drain_s}", f"--grace-s={grace_s}", f"--answer-within-s={answer_within_s}", "--", *command,
        ]  # fmt: skip
        self._guard = subprocess.Popen(
            guarded,
            env=dict(environ),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[write_end],
        )
        os.close(write_end)
        with os.fdopen(read_end) as pid_line:
            self.pid = int(pid_line.readline() or 0)  # 0: the guard ended before it could start the command

    @property
    def group(self) -> int:
        """The process group of the command, of all that it starts, and of its guard."""
        return self._guard.pid

    def exit_code(self) -> int | None:
        """Return the command's exit code, the signal's number where one ended it, None while it runs."""
        return self._guard.poll()

    def wait(self) -> int:
        """Wait for the end of the command and of all that it has started; return its exit code."""
        return self._guard.wait()

    def stop(self, *, drains: bool = False) -> None:
        """Ask the command to end, and wait until it has; killed after `grace_s`. Safe to call again.

        drains: answer on for `drain_s` first; a second call without it cuts that short.
        """
        if self.exit_code() is None:
            self._guard.send_signal(signal.SIGTERM if drains else signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(self.drain_s * drains + self.grace_s + KILL_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End the command and all that it has started at once."""
        if self.exit_code() is None and self.pid:
            # Its guard then kills and collects what it has left. Killed with the group, they might stay as zombies.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(KILL_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)
        self._guard.wait()
