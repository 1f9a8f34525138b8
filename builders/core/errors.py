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
import sys
from collections.abc import Iterator, Mapping, Sequence

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
def told_in_one_line() -> Iterator[None]:
    """Around a command's body: a :class:`BuilderError`, or a full disk, ends the process as the table says, without a
    trace."""
    try:
        yield
    except BuilderError as error:
        print(one_line(error), file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(one_line(BuilderError(_no_room(error))), file=sys.stderr)
        sys.exit(FAILED)


def _no_room(error: OSError) -> str:
    return (
        f"no room on the disk ({error}); what was there before is as it was. 'builders status' tells what takes room, "
        "'builders prune' removes what nothing names; then run this again"
    )


def listed(names: Sequence[str] | Mapping[str, object], limit: int = 3) -> str:
    """Names for a message, quoted: the first ``limit``, and how many more there are; ``none`` where there are none."""
    quoted = [f"'{name}'" for name in names]
    rest = len(quoted) - limit
    return ", ".join(quoted[:limit]) + (f" and {rest} more" if rest > 0 else "") if quoted else "none"


class QuantizationError(BuilderError):
    """The graph cannot be quantized as asked."""
