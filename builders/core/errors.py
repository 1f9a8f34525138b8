"""The one root of every error that a user can cause, and how such an error is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class BuilderError(ValueError):
    """What the builders raise on purpose: the message says what was found, what was expected and what to do next.

    ``python -m builders`` prints it in one line and exits with ``exit_code``.
    """

    exit_code = 1


def listed(names: Sequence[str] | Mapping[str, object], limit: int = 3) -> str:
    """Names for a message, quoted: the first ``limit``, and how many more there are; ``none`` where there are none."""
    quoted = [f"'{name}'" for name in names]
    rest = len(quoted) - limit
    return ", ".join(quoted[:limit]) + (f" and {rest} more" if rest > 0 else "") if quoted else "none"


class QuantizationError(BuilderError):
    """The graph cannot be quantized as asked."""
