"""Joins the rows of several requests into runs, parts what is too large for one or has rows of several lengths, and
hands each request its own rows back. numpy only.

Arrays are keyed by tensor name; in a batching model each has the rows as its first dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]


class RunFailed(Exception):
    """A run failed; its text goes to the client. Backends derive from it."""


class BatchFailed(RunFailed):
    """The model's output does not have a row for each row of its input."""


@dataclass(frozen=True)
class RunLimits:
    """How much one run may take.

    rows: None for any number. tokens: rows times the longest second dimension, None for any; one row always runs.
    row_inputs: whose first dimension is the rows; the others are whole in every run. Empty for all of them.
    mask, lengths: the input [rows, length] whose zeros behind a row's last token are padding, and the lengths that a
    run may have, shortest first: rows of alike lengths are then run together, without the padding that none of them
    needs. "" where every run has the length that the request brings.
    """

    rows: int | None = None
    tokens: int | None = None
    row_inputs: frozenset[str] = frozenset()
    mask: str = ""
    lengths: tuple[int, ...] = ()

    def of_rows(self, inputs: Arrays) -> Arrays:
        """Return the inputs whose first dimension is the rows."""
        return {name: array for name, array in inputs.items() if not self.row_inputs or name in self.row_inputs}

    def rows_of_a_run(self, inputs: Arrays) -> int | None:
        """Return how many rows of such inputs one run may have; None for any number."""
        return self.rows_of_length(
            max((array.shape[1] for array in self.of_rows(inputs).values() if array.ndim > 1), default=1)
        )

    def rows_of_length(self, length: int) -> int | None:
        """Return how many rows of that length one run may have; None for any number."""
        by_tokens = None if self.tokens is None else max(self.tokens // max(length, 1), 1)
        return min((cap for cap in (self.rows, by_tokens) if cap is not None), default=None)


def run_joined(run: Run, requests: Sequence[Arrays], limits: RunLimits) -> list[Arrays | RunFailed]:
    """Run requests, those that are alike together, and return the outputs or the failure of each, in their order.

    One that fails does not fail those that it was joined with.
    """
    results: list[Arrays | RunFailed] = [RunFailed("not run")] * len(requests)
    for group in merge_alike(requests):
        for index, result in zip(group, _run_group(run, [requests[i] for i in group], limits), strict=True):
            results[index] = result
    return results


def _run_group(run: Run, requests: Sequence[Arrays], limits: RunLimits) -> list[Arrays | RunFailed]:
    """Run alike requests together; each on its own where that fails, to tell which one is at fault."""
    try:
        return list(run_rows(run, requests, limits))
    except RunFailed as failure:
        if len(requests) == 1:
            return [failure]
        return [result for one in requests for result in _run_group(run, [one], limits)]


def merge_alike(requests: Sequence[Arrays]) -> list[list[int]]:
    """Group the indices of requests whose tensors have equal names and equal shapes but for the rows."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, inputs in enumerate(requests):
        groups.setdefault(tuple((name, inputs[name].shape[1:]) for name in sorted(inputs)), []).append(index)
    return list(groups.values())


def run_rows(run: Run, requests: Sequence[Arrays], limits: RunLimits) -> Iterator[Arrays]:
    """Run the rows of all requests, at most as many at once as `limits` allow, and yield each request's outputs.

    requests: alike by merge_alike. Raises BatchFailed, and what `run` raises.
    """
    rows = [_rows(inputs) for inputs in requests]
    outputs = run_parts(run, _concatenate(requests), limits)
    for start, stop in pairwise(accumulate(rows, initial=0)):
        yield {name: array[start:stop] for name, array in outputs.items()}


def run_parts(run: Run, inputs: Arrays, limits: RunLimits) -> Arrays:
    """Run one request in the parts that `limits` ask for, each with what is not of rows. Raises as run_rows."""
    parts = [(rows, _run_checked(run, part, limits)) for rows, part in parts_of(inputs, limits)]
    outputs = _concatenate([part for _, part in parts])
    if limits.mask not in inputs:
        return outputs
    as_asked = np.argsort(np.concatenate([rows for rows, _ in parts]))
    return {name: array[as_asked] for name, array in outputs.items()}


def parts_of(inputs: Arrays, limits: RunLimits) -> Iterator[tuple[NDArray[np.intp], Arrays]]:
    """Which rows each run of a request has, and its inputs: one run at least, and every row once."""
    of_rows = limits.of_rows(inputs)
    rows = np.arange(_rows(of_rows))
    shared = {name: array for name, array in inputs.items() if name not in of_rows}
    if limits.mask in of_rows:
        mask = of_rows[limits.mask]
        for chosen, length in _alike(mask, limits):
            yield chosen, {**{name: _cut(array, mask, chosen, length) for name, array in of_rows.items()}, **shared}
        return
    step = limits.rows_of_a_run(inputs) or max(len(rows), 1)
    for start in range(0, max(len(rows), 1), step):
        part = slice(start, start + step)
        yield rows[part], {**{name: array[part] for name, array in of_rows.items()}, **shared}


def _alike(mask: NDArray[Any], limits: RunLimits) -> Iterator[tuple[NDArray[np.intp], int]]:
    """The rows of each run with its length, the longest first: the least that fits them of what a run may have."""
    whole = mask.shape[1]
    used = used_lengths(mask)
    fits = np.array([*(length for length in limits.lengths if length < whole), whole])
    lengths = fits[np.searchsorted(fits, used)]
    for length in np.unique(lengths)[::-1] if len(lengths) else (whole,):
        rows = np.flatnonzero(lengths == length)
        step = limits.rows_of_length(int(length)) or max(len(rows), 1)
        for start in range(0, max(len(rows), 1), step):
            yield rows[start : start + step], int(length)


def used_lengths(mask: NDArray[Any]) -> NDArray[np.intp]:
    """Of each row as far as its last token; a row without a token counts as a full one."""
    return mask.shape[1] - np.argmax(mask[:, ::-1] != 0, axis=1)


def _cut(array: NDArray[Any], mask: NDArray[Any], rows: NDArray[np.intp], length: int) -> NDArray[Any]:
    """These rows, without the padding behind `length` where the array has a value a token."""
    return np.ascontiguousarray(array[:, :length][rows]) if array.shape[1:2] == mask.shape[1:2] else array[rows]


def run_whole(run: Run, inputs: Arrays, scalars: Collection[str], scalar_shapes: Mapping[str, Sequence[int]]) -> Arrays:
    """Run a request of a model that does not batch; scalars of the graph have the configured shape outside of it."""
    outputs = run({name: array.reshape(()) if name in scalars else array for name, array in inputs.items()})
    return {n: np.reshape(array, scalar_shapes[n]) if n in scalar_shapes else array for n, array in outputs.items()}


def _rows(inputs: Arrays) -> int:
    rows = {len(array) for array in inputs.values()}
    if len(rows) != 1:
        found = ", ".join(f"'{name}' {len(array)}" for name, array in inputs.items())
        raise BatchFailed(f"expected inputs with the same number of rows, got {found or 'none'}")
    return rows.pop()


def _run_checked(run: Run, inputs: Arrays, limits: RunLimits) -> Arrays:
    expected = _rows(limits.of_rows(inputs))
    outputs = run(inputs)
    for name, array in outputs.items():
        rows = len(array) if array.ndim else 0
        if rows != expected:
            raise BatchFailed(
                f"failed to split the output tensor '{name}' in responses: expected batch size of "
                f"{expected} in model output, got {rows}"
            )
    return outputs


def _concatenate(parts: Sequence[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
