"""A child process that never outlives its parent, with everything it starts.

tritonserver starts one stub process per Python model instance. They share its process group, and each ends itself when
tritonserver is gone, so what must be made sure of is that tritonserver itself ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# Runs in the child before tritonserver takes its place. A `preexec_fn` would do the same inside fork(), which Python's
# documentation calls unsafe beside threads (gRPC's, say). 1 is PR_SET_PDEATHSIG, see prctl(2); the check after it is
# for a parent that ended before the call.
_END_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the launcher has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


def start(
    command: Sequence[str], environ: Mapping[str, str], folder: Path, log: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    """Start `command` in a process group of its own, in `folder`; its output goes to `log`, None for this terminal.

    The kernel sends it SIGTERM when the calling thread ends: call from one that lives as long as the server shall.
    """
    wrapped = [sys.executable, "-I", "-c", _END_WITH_PARENT, str(os.getpid()), *command]
    return subprocess.Popen(
        wrapped, env=dict(environ), cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )


def stop(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Ask the process to end, wait up to `timeout_s`, then kill what is left of its group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole process group at once: tritonserver and its stubs."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
