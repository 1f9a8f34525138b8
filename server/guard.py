"""Runs a command and sees to it that nothing of it is left when it, or the launcher, ends.

Usage: guard.py LAUNCHER_PID PID_FD GRACE_S COMMAND...

Stands between the launcher and tritonserver. It writes the command's process id to PID_FD, hands SIGTERM on (the kernel
sends one when the launcher ends, however that came), kills a command that has not ended GRACE_S seconds later, and then
what the command has left: a stub that is busy in a model's code does not notice that tritonserver is gone. It exits
with the command's exit code. A script of its own, because a `preexec_fn` is unsafe beside the launcher's threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
LIBC = ctypes.CDLL(None, use_errno=True)


def main(launcher: int, pid_fd: int, grace_s: float, command: list[str]) -> int:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the command leaves behind becomes a child of this process
    signal.signal(signal.SIGTERM, _stop)
    if os.getppid() != launcher:
        return 1
    child = subprocess.Popen(command, preexec_fn=_end_with_parent)
    os.write(pid_fd, f"{child.pid}\n".encode())
    os.close(pid_fd)
    try:
        return child.wait()
    except _Stop:
        return _stop_child(child, grace_s)
    finally:
        _kill_children()


class _Stop(Exception):
    """SIGTERM came."""


def _stop(signal_number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stop


def _end_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop_child(child: subprocess.Popen[bytes], grace_s: float) -> int:
    child.send_signal(signal.SIGTERM)
    try:
        return child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _kill_children() -> None:
    """Kill and collect the children of this process until there are none; those of a killed one become its own."""
    while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for pid in map(int, children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.exit(abs(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])))
