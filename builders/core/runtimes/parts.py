"""A session that runs a request in parts, as the drop-in backends run the served model: by the same code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from builders.core.runtimes.base import Session

if TYPE_CHECKING:
    from backends.common.batching import RunLimits
    from builders.core.runtimes.base import Sample


class PartedSession(Session):
    """Runs each sample in the parts that the limits ask for.

    Args:
        session: of a scorer whose rows do not look at each other, and whose outputs all have the rows.
    """

    def __init__(self, session: Session, limits: RunLimits) -> None:
        self._session = session
        self._limits = limits

    def run(self, sample: Sample) -> Sample:
        """As :meth:`Session.run`. Raises: RunFailed: an output has not a row for each of the input's."""
        from backends.common.batching import run_parts

        return run_parts(self._session.run, sample, self._limits)
