"""A session that runs a request in parts, by the limits that the drop-in backends are given for the served model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from builders.core.contract import MAX_ROWS_PER_RUN, rows_per_run
from builders.core.runtimes.base import Session

if TYPE_CHECKING:
    from builders.core.runtimes.base import Sample


def parts_of(sample: Sample, row_inputs: Collection[str], *, sequences: bool) -> Iterator[Sample]:
    """The sample in parts of at most :func:`rows_per_run` rows, with what is not of rows whole in every part.

    Args:
        row_inputs: names of the inputs whose first dimension is the rows.
        sequences: whether their second dimension is a padded length.
    """
    of_rows = {name: array for name, array in sample.items() if name in row_inputs}
    rows = max(map(len, of_rows.values()), default=1)
    length = max((array.shape[1] for array in of_rows.values() if array.ndim > 1), default=1)
    step = rows_per_run(length) if sequences else MAX_ROWS_PER_RUN
    for start in range(0, max(rows, 1), step):
        yield {**sample, **{name: array[start : start + step] for name, array in of_rows.items()}}


class PartedSession(Session):
    """Runs the :func:`parts_of` each sample.

    Args:
        session: of a scorer whose rows do not look at each other, and whose outputs all have the rows.
        row_inputs, sequences: as for :func:`parts_of`.
    """

    def __init__(self, session: Session, row_inputs: Collection[str], *, sequences: bool) -> None:
        self._session = session
        self._row_inputs = row_inputs
        self._sequences = sequences

    def run(self, sample: Sample) -> Sample:
        """As :meth:`Session.run`."""
        import numpy as np

        parts = parts_of(sample, self._row_inputs, sequences=self._sequences)
        outputs = [self._session.run(part) for part in parts]
        return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}
