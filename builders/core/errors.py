"""The one root of every error that a user can cause, and how such an error is told.

``python -m builders`` prints ``error: <message>`` in one line on stderr and exits with the error's code:

====  ======================================================================================
code  meaning
====  ======================================================================================
0     done
1     any other error: data, a checkpoint, a build, the item store, the model repository
2     the recipe or the command line is wrong; nothing was built (also: Click's usage errors)
3     a variant fails its gate
4     this machine lacks what was asked for: an NVIDIA GPU, TensorRT
====  ======================================================================================
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence

FAILED, WRONG_RECIPE, GATE_FAILED, MACHINE_LACKS = 1, 2, 3, 4
"""Exit codes, see the table above."""


class BuilderError(ValueError):
    """What the builders raise on purpose: the message says what was found, what was expected and what to do next.

    ``python -m builders`` prints it in one line and exits with ``exit_code``.
    """

    exit_code = FAILED


def one_line(error: BaseException) -> str:
    """``error: <message>``, line breaks as spaces."""
    return f"error: {' '.join(str(error).split())}"


@contextlib.contextmanager
def told_in_one_line(roots: Callable[[], tuple[type[Exception], ...]] = lambda: (BuilderError,)) -> Iterator[None]:
    """Around a command's body: an error raised on purpose, or what a disk, a path or LMDB refuses, ends the process as
    the table says, without a trace. Any other keeps its trace: it is a mistake of ours.

    Args:
        roots: gives the classes of errors raised on purpose, once there is an error; ``exit_code`` of each is told.
    """
    try:
        yield
    except Exception as error:
        told: Exception | None = error if isinstance(error, roots()) else refused_by_machine(error)
        if told is None:
            raise
        if told is not error and os.environ.get(TRACE_VARIABLE):
            traceback.print_exception(error)
        print(one_line(told), file=sys.stderr)
        sys.exit(getattr(told, "exit_code", FAILED))


def refused_by_machine(error: Exception) -> BuilderError | None:
    """What the operating system or LMDB refused, as an error that says what to do; None for any other error."""
    if isinstance(error, OSError):
        return BuilderError(_no_room(error) if error.errno in _NO_ROOM else _of_path(error))
    lmdb = sys.modules.get("lmdb")  # not imported here, for it takes a while
    if lmdb is not None and isinstance(error, lmdb.Error):
        return BuilderError(_of_lmdb(error))
    return None


def _no_room(error: OSError) -> str:
    return (
        f"no room on the disk ({error}); what was there before is as it was. 'builders status' tells what takes room, "
        "'builders prune' removes what nothing names; then run this again"
    )


def _of_path(error: OSError) -> str:
    paths = " and ".join(str(path) for path in (error.filename, error.filename2) if path is not None)
    todo = _TODO.get(error.errno or 0, "mend that")
    return f"{paths or 'the system'}: {error.strerror or error}; {todo}, then run this again ({_HOW_TO_TRACE})"


def _of_lmdb(error: Exception) -> str:
    todo = _LMDB_TODO.get(type(error).__name__, "see that this user may write the item store's folder")
    return f"item store: LMDB says {error}; {todo}, then run this again ({_HOW_TO_TRACE})"


TRACE_VARIABLE = "TRITONRANK_TRACE"
_HOW_TO_TRACE = f"{TRACE_VARIABLE}=1 shows where it happened"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_TODO = {
    errno.ENOENT: "check the path",
    errno.EISDIR: "it is a folder, expected a file: name another path",
    errno.ENOTDIR: "part of this path is a file, expected a folder: name another path",
    errno.EEXIST: "remove what lies there, or name another path",
    errno.EACCES: "give this user the right ('ls -l' tells whose it is), or name another path",
    errno.EPERM: "give this user the right ('ls -l' tells whose it is), or name another path",
    errno.EROFS: "mount it writable, or name another path",
    errno.EMFILE: "raise 'ulimit -n'",
    errno.ENAMETOOLONG: "name a shorter path",
}
_LMDB_TODO = {
    "InvalidError": "what lies there is no item store: move it away and run 'make repository', or name another folder",
    "VersionMismatchError": "another LMDB wrote it: move it away and run 'make repository'",
    "CorruptedError": "it is damaged: move it away and run 'make repository'",
    "MapFullError": "run 'python -m builders prune'",
    "LockError": "containers that share a store must share a PID namespace; or end the process that holds it",
    "ReadersFullError": "end processes that read it and hang",
    "DiskError": "make room on the disk",
}


def listed(names: Sequence[str] | Mapping[str, object], limit: int = 3) -> str:
    """Names for a message, quoted: the first ``limit``, and how many more there are; ``none`` where there are none."""
    quoted = [f"'{name}'" for name in names]
    rest = len(quoted) - limit
    return ", ".join(quoted[:limit]) + (f" and {rest} more" if rest > 0 else "") if quoted else "none"


class QuantizationError(BuilderError):
    """The graph cannot be quantized as asked."""
