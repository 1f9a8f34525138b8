"""What can go wrong while measuring, and which errors ``python -m perf`` tells in one line."""

from __future__ import annotations

from builders.core.errors import BuilderError
from server.errors import ServerError


class PerfError(RuntimeError):
    """Something cannot be measured; the message says what was found, what was wanted and what to run next."""

    exit_code = 1


def roots() -> tuple[type[Exception], ...]:
    """The one root of each package that a measurement goes through: of errors raised on purpose."""
    from tritonrank_client import TritonRankError  # takes NumPy and gRPC with it

    return PerfError, BuilderError, ServerError, TritonRankError
