"""Runs tritonserver, watches what it starts, and sees to it that nothing of it is left when it, or its caller, ends.

    guard.py [--launcher PID --pid-fd FD] [--drain-s S] [--grace-s S] [--answer-within-s S] -- COMMAND...

Stands between the launcher, or a container's init, and tritonserver.

    SIGTERM  drains: Triton says that it is not ready, answers all requests for S seconds, and is then asked to end.
             Without the seconds requests would be lost: a stopping Triton refuses the next step of those under way
    SIGINT   asks it to end at once, also in the middle of a drain. The kernel sends one when the launcher ends

It kills a command that has not ended after the grace, and then what the command has left: a stub that is busy in a
model's code does not notice that tritonserver is gone. It ends the command when a stub has died or stands still, since
Triton does not heal that (server/stubs.py), or when an endpoint has stopped answering (server/canary.py).

Exits with the command's code, the signal's number where one ended it, or FAULT where this program ended it. A program
of its own, because a `preexec_fn` is unsafe beside the launcher's threads.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it runs isolated, from any folder

from server import drain
from server.canary import silent_endpoint
from server.stubs import StubWatch

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
LIBC = ctypes.CDLL(None, use_errno=True)
LOOK_S = 0.2  # a stub that stands still for a second can end tritonserver
ASK_EVERY_S = 10.0
FAULT = 70  # EX_SOFTWARE of sysexits.h


def main(options: argparse.Namespace) -> int:
    """Run the command to its end; return the code to exit with."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the command leaves behind becomes a child of this process
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    if options.launcher and os.getppid() != options.launcher:
        return 1
    with _empty_repository() as repository:
        command = [*options.command, f"--model-repository={repository}"] if options.drain_s else options.command
        child = subprocess.Popen(command, preexec_fn=_end_with_parent)
        _tell_pid(child.pid, options.pid_fd)
        watch = Watch(child.pid, command, options.answer_within_s)
        try:
            return _watched(child, watch) or 0
        except _Stop as stop:
            if stop.drains and options.drain_s:
                _drain(child, watch, command, repository, options.drain_s)
            return _stop_child(child, watch, options.grace_s)
        finally:
            _kill_children()


class Watch:
    """What is wrong with a tritonserver: dead and paused stubs, and endpoints that do not answer.

    An endpoint is asked its canary every ASK_EVERY_S, or `answer_within_s` where that is less; never where it is 0.
    """

    def __init__(self, server: int, command: Sequence[str], answer_within_s: float):
        self._stubs = StubWatch(server)
        self._command = command
        self._loaded = False
        self._silent: str | None = None
        if answer_within_s:
            threading.Thread(target=self._ask, args=(command, answer_within_s), daemon=True).start()

    def look(self) -> str | None:
        """Return what is wrong; None where all is well."""
        if not self._loaded and drain.listens(self._command):
            self._loaded = True
            self._stubs.count_as_loaded()
        return self._stubs.look() or self._silent

    def settled_look(self) -> str | None:
        """As `look`, after as many as it takes to be sure."""
        while not (fault := self.look()) and self._stubs.suspects:
            time.sleep(LOOK_S)
        return fault

    def _ask(self, command: Sequence[str], answer_within_s: float) -> None:
        host, port = drain.http_address(command)
        repository = Path(drain.option(command, "model-repository", "."))
        while self._silent is None:
            time.sleep(min(ASK_EVERY_S, answer_within_s))
            with contextlib.suppress(OSError, ValueError):  # a manifest that cannot be read is not this one's business
                if endpoint := silent_endpoint(host, port, repository, answer_within_s):
                    self._silent = f"'{endpoint}' has not answered within {answer_within_s:g} s"


class _Stop(Exception):
    """SIGTERM or SIGINT came."""

    def __init__(self, drains: bool):
        self.drains = drains


def _stop(signal_number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if signal_number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise _Stop(drains=signal_number == signal.SIGTERM)


def _end_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def _empty_repository() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tritonrank_drain_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tell_pid(pid: int, pid_fd: int | None) -> None:
    if pid_fd is not None:
        os.write(pid_fd, f"{pid}\n".encode())
        os.close(pid_fd)


def _watched(child: subprocess.Popen[bytes], watch: Watch, for_s: float = float("inf")) -> int | None:
    """Return the code to exit with when the command has ended, or had to; None where it runs after `for_s`."""
    end = time.monotonic() + for_s
    while (left_s := end - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(min(LOOK_S, left_s))
        if fault := watch.look():
            _say(f"error: {fault}; Triton does not heal that, it is ended")
            child.kill()
            child.wait()
            return FAULT
    return None


def _drain(
    child: subprocess.Popen[bytes], watch: Watch, command: Sequence[str], repository: Path, drain_s: float
) -> None:
    """Let it answer, unready, until `drain_s` are over, or SIGINT comes, or it has ended."""
    with contextlib.suppress(_Stop):
        if fault := drain.report_unready(command, repository):
            _say(f"warning: cannot report that this server is not ready: {fault}")
        _say(f"draining: not ready any more, answering for another {drain_s:g} s")
        _watched(child, watch, drain_s)


def _stop_child(child: subprocess.Popen[bytes], watch: Watch, grace_s: float) -> int:
    if watch.settled_look():
        child.kill()  # it would wait for the stub as long as it may
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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", type=int, help="end unless this process is still the parent")
    parser.add_argument("--pid-fd", type=int, help="file descriptor to write the command's process id to")
    parser.add_argument("--drain-s", type=float, default=0.0, help="seconds of answering, unready, after SIGTERM")
    parser.add_argument("--grace-s", type=float, default=15.0, help="seconds to end in, after SIGTERM")
    parser.add_argument("--answer-within-s", type=float, default=0.0, help="an endpoint's canary; 0 = it is not asked")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(abs(main(_parse())))
