"""Joins the rows of several requests into runs, and hands each request its own rows back. numpy only.

Arrays are keyed by tensor name; in a batching model each has the rows as its first dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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


def run_joined(run: Run, requests: Sequence[Arrays], row_cap: int | None) -> list[Arrays | RunFailed]:
    """Run requests, those that are alike together, and return the outputs or the failure of each, in their order.

    One that fails does not fail those that it was joined with.
    """
    results: list[Arrays | RunFailed] = [RunFailed("not run")] * len(requests)
    for group in merge_alike(requests):
        for index, result in zip(group, _run_group(run, [requests[i] for i in group], row_cap), strict=True):
            results[index] = result
    return results


def _run_group(run: Run, requests: Sequence[Arrays], row_cap: int | None) -> list[Arrays | RunFailed]:
    """Run alike requests together; each on its own where that fails, to tell which one is at fault."""
    try:
        return list(run_rows(run, requests, row_cap))
    except RunFailed as failure:
        if len(requests) == 1:
            return [failure]
        return [result for one in requests for result in _run_group(run, [one], row_cap)]


def merge_alike(requests: Sequence[Arrays]) -> list[list[int]]:
    """Group the indices of requests whose tensors have equal names and equal shapes but for the rows."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, inputs in enumerate(requests):
        groups.setdefault(tuple((name, inputs[name].shape[1:]) for name in sorted(inputs)), []).append(index)
    return list(groups.values())


def run_rows(run: Run, requests: Sequence[Arrays], row_cap: int | None) -> Iterator[Arrays]:
    """Run the rows of all requests, at most `row_cap` at once, and yield each request's outputs.

    requests: alike by merge_alike. Raises BatchFailed, and what `run` raises.
    """
    rows = [_rows(inputs) for inputs in requests]
    outputs = _concatenate([_run_checked(run, part) for part in _parts(_concatenate(requests), row_cap)])
    for start, stop in pairwise(accumulate(rows, initial=0)):
        yield {name: array[start:stop] for name, array in outputs.items()}


def run_whole(run: Run, inputs: Arrays, scalars: Collection[str], scalar_shapes: Mapping[str, Sequence[int]]) -> Arrays:
    """Run a request of a model that does not batch; scalars of the graph have the configured shape outside of it."""
    outputs = run({name: array.reshape(()) if name in scalars else array for name, array in inputs.items()})
    return {n: np.reshape(array, scalar_shapes[n]) if n in scalar_shapes else array for n, array in outputs.items()}


def _rows(inputs: Arrays) -> int:
    return len(next(iter(inputs.values())))


def _parts(inputs: Arrays, row_cap: int | None) -> Iterator[Arrays]:
    rows = _rows(inputs)
    step = row_cap or max(rows, 1)
    for start in range(0, rows, step):
        yield {name: array[start : start + step] for name, array in inputs.items()}


def _run_checked(run: Run, inputs: Arrays) -> Arrays:
    outputs = run(inputs)
    for name, array in outputs.items():
        rows = len(array) if array.ndim else 0
        if rows != _rows(inputs):
            raise BatchFailed(
                f"failed to split the output tensor '{name}' in responses: expected batch size of "
                f"{_rows(inputs)} in model output, got {rows}"
            )
    return outputs


def _concatenate(parts: Sequence[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
