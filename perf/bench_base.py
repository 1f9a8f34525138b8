"""What the parts of ``make bench`` share: what they are given and return, and how two things are timed in turn."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from rich.console import Console
from rich.table import Table

from perf.endpoints import Endpoint
from perf.kit.data import JudgedQueries, Request, Workspace
from perf.kit.figures import Rankings
from perf.kit.rankers import Ranker
from perf.progress import track

T = TypeVar("T")
Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured figure; ``limit`` is None where it is told for information."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    at_least: bool = False
    detail: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether it keeps its limit; None without one."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def quiet(line: str) -> None:
    """Takes a line and shows nothing."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every part needs."""

    judged: JudgedQueries
    order: Rankings
    endpoints: Sequence[Endpoint]
    rankers: Mapping[str, Ranker]
    workspace: Workspace
    console: Console
    folder: Path = Path()
    """Of the data."""

    def track(self, items: Sequence[T], label: str) -> Iterator[T]:
        """With a progress bar."""
        return track(items, label, self.console)

    def requests(self, candidates: int) -> Iterator[tuple[Request, list[str]]]:
        """Test queries in turn without end, with their own candidates first, filled up from the corpus."""
        for query_id in itertools.cycle(self.judged.subset("test").queries):
            ids = dict.fromkeys([*self.order[query_id], *itertools.islice(self.judged.products, candidates)])
            yield self.judged.request(query_id), list(ids)[:candidates]


def figures_table(figures: Sequence[Figure]) -> Table:
    """Figure, limit, verdict."""
    table = Table(title="Figures to reach", title_justify="left")
    for heading in ("figure", "found", "limit", "", "how"):
        justify: Literal["left", "right"] = "right" if heading in ("found", "limit") else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    for figure in figures:
        sign = "at least" if figure.at_least else "at most"
        limit = "" if figure.limit is None else f"{sign} {figure.limit:g}"
        verdict = {True: "[green]reached[/]", False: "[bold red]missed[/]", None: ""}[figure.passed]
        table.add_row(figure.name, f"{figure.value:.3f} {figure.unit}", limit, verdict, figure.detail)
    return table


def paired_ms(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    swap: bool,
    settle_s: float = 0.0,
    clock: Clock = time.perf_counter,
) -> tuple[float, float]:
    """Milliseconds of each.

    Args:
        swap: run the second one first, so that neither always follows the other.
        settle_s: wait so long before each.
        clock: gives seconds.
    """
    if swap:
        second_ms, first_ms = _timed_ms(second, settle_s, clock), _timed_ms(first, settle_s, clock)
    else:
        first_ms, second_ms = _timed_ms(first, settle_s, clock), _timed_ms(second, settle_s, clock)
    return first_ms, second_ms


def in_turn_ms(calls: Sequence[Callable[[], object]], *, first: int) -> list[float]:
    """Milliseconds of each, in the order of ``calls``, as :func:`in_turn`."""
    return in_turn([functools.partial(_timed_ms, call, 0.0, time.perf_counter) for call in calls], first=first)


def in_turn(calls: Sequence[Callable[[], T]], *, first: int) -> list[T]:
    """What each returns, in the order of ``calls``. first: place of the one that is called first, modulo their number,
    so that none always follows the same other."""
    places = [(first + place) % len(calls) for place in range(len(calls))]
    found = {place: calls[place]() for place in places}
    return [found[place] for place in range(len(calls))]


def _timed_ms(call: Callable[[], object], settle_s: float, clock: Clock) -> float:
    time.sleep(settle_s)
    start_s = clock()
    call()
    return (clock() - start_s) * 1e3
