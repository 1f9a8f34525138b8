"""Two files of figures, before and after: what got slower beyond noise.

The noise of a figure is an interval: by order statistics of its requests, and no narrower than the spread of its
rounds, since requests beside each other are alike and the machine drifts. A figure is worse where its whole interval
lies on the wrong side of the earlier one's, by more than ``LEAST_CHANGE``.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pydantic
from rich.table import Table

from perf.errors import PerfError
from perf.kit.data import fingerprint
from perf.machine import Machine
from perf.percentiles import Interval
from perf.slo import SloReport
from perf.sweep import PERCENTILES, PerfReport, Point

LEAST_CHANGE = 0.05
"""Of a figure; less is never told as a change: two runs of the same differ by so much on a quiet machine."""
LEAST_ROUNDS = 2


class Verdict(enum.Enum):
    """What came of a figure; the value is for a reader."""

    SLOWER = "SLOWER"
    FASTER = "faster"
    SAME = "same within noise"
    TOO_FEW = "not judged: too few requests or rounds"
    DISTURBED = "not judged: other programs disturbed it"


JUDGED = frozenset({Verdict.SLOWER, Verdict.FASTER, Verdict.SAME})


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of one file.

    Attributes:
        interval: its noise; None at an end = not known.
        requests: of which it is.
        disturbed: other programs took too much of the machine meanwhile.
    """

    value: float
    interval: Interval
    requests: int
    higher_is_better: bool = False
    disturbed: bool = False


@dataclasses.dataclass(frozen=True)
class Measured:
    """One file.

    Attributes:
        settings: of the load: equal where the same was asked in the same way.
        variants: what short names such as ``rank`` serve.
        figures: (endpoint and load, figure's name) => figure.
        failures: why rows are missing.
    """

    path: Path
    machine: Machine
    data: str
    settings: str
    variants: str
    figures: Mapping[tuple[str, str], Figure]
    failures: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Change:
    """One figure in both files."""

    row: str
    name: str
    before: Figure
    after: Figure

    @property
    def verdict(self) -> Verdict:
        """Beyond noise or not."""
        if self.before.disturbed or self.after.disturbed:
            return Verdict.DISTURBED
        (before_low, before_high), (after_low, after_high) = self.before.interval, self.after.interval
        if before_low is None or before_high is None or after_low is None or after_high is None:
            return Verdict.TOO_FEW
        if abs(self.share) <= LEAST_CHANGE or (after_low <= before_high and before_low <= after_high):
            return Verdict.SAME
        return Verdict.FASTER if (self.share > 0) == self.after.higher_is_better else Verdict.SLOWER

    @property
    def share(self) -> float:
        """By which the figure changed, of what it was."""
        return self.after.value / self.before.value - 1 if self.before.value else float(self.after.value > 0)


# ---------------------------------------------------------------- files
def read_measured(path: Path) -> Measured:
    """The file of ``perf sweep`` (perf.json) or of ``perf slo``. Raises: PerfError: it is neither."""
    wanted = "wanted build/report/perf.json of 'python -m perf sweep' or a file of build/slo"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and "trials" in found:
            return _of_slo(path, SloReport.model_validate(found))
        if isinstance(found, dict) and isinstance(found.get("published"), str):
            raise PerfError(f"{path}: measured by an earlier checkout, in another form; run 'make perf' again")
        return _of_sweep(path, pydantic.TypeAdapter(PerfReport).validate_python(found))
    except OSError as error:
        raise PerfError(f"{path}: cannot be read ({error.strerror}); {wanted}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, pydantic.ValidationError) as error:
        raise PerfError(f"{path}: {str(error).splitlines()[0]}; {wanted}") from error


def _of_sweep(path: Path, report: PerfReport) -> Measured:
    figures = {
        (f"{point.endpoint}, {point.load}", name): figure
        for point in report.points
        for name, figure in _figures_of(point)
    }
    serves = ", ".join(f"{name} = {model}" for name, model in report.published.items())
    return Measured(path, report.machine, report.data, report.settings, serves, figures, report.failures)


def _figures_of(point: Point) -> Iterator[tuple[str, Figure]]:
    for percentile, (low, high) in zip(PERCENTILES, point.intervals, strict=True):
        ends = [getattr(one, f"p{percentile}_ms") for one in point.rounds]
        interval = None if low is None else min(low, *ends), None if high is None else max(high, *ends)
        value = getattr(point, f"p{percentile}_ms")
        yield f"p{percentile} ms", Figure(value, interval, point.requests, disturbed=point.disturbed > 0)
    if point.rate_per_s is None:  # in an open loop it is what was asked for
        rates = [one.requests_per_s for one in point.rounds]
        spread = (min(rates), max(rates)) if len(rates) >= LEAST_ROUNDS else (None, None)
        yield (
            "requests/s",
            Figure(point.requests_per_s, spread, point.requests, higher_is_better=True, disturbed=point.disturbed > 0),
        )


def _of_slo(path: Path, report: SloReport) -> Measured:
    search = report.search
    limit = report.limit
    held = Figure(
        search.highest_held,
        search.interval,
        limit.requests,
        higher_is_better=True,
        disturbed=any(trial.disturbed for trial in report.trials),
    )
    settings = fingerprint([limit.model_dump_json(), f"{report.candidates:g}"])
    name = f"requests/s with {limit.name} <= {limit.ms:g} ms"
    return Measured(path, report.machine, report.data, settings, "", {(report.endpoint, name): held})


# ---------------------------------------------------------------- comparing
def compare(before: Measured, after: Measured, *, anyway: bool = False) -> list[Change]:
    """Every figure that both have, in the order of the first.

    Args:
        anyway: although machine, data, load or variants differ.

    Raises:
        PerfError: those differ, or there is no figure that both have.
    """
    faults = [f"{name}: {mine} and {other}" for name, mine, other in _differences(before, after)]
    if faults and not anyway:
        raise PerfError(
            f"{before.path} and {after.path} are not of the same: {'; '.join(faults)}. Measure both alike, or compare "
            "what they have in common with --anyway"
        )
    common = [key for key in before.figures if key in after.figures]
    if not common:
        raise PerfError(f"{before.path} and {after.path} have no figure in common: {_rows(before)} and {_rows(after)}")
    return [Change(*key, before.figures[key], after.figures[key]) for key in common]


def _differences(before: Measured, after: Measured) -> Iterator[tuple[str, str, str]]:
    one, other = before.machine, after.machine
    pairs = {
        "CPU": (one.cpu, other.cpu),
        "cores": (one.cores, other.cores),
        "memory, GiB": (one.memory_gib, other.memory_gib),
        "data": (before.data[:12], after.data[:12]),
        "load": (before.settings, after.settings),
        "served": (before.variants, after.variants),
    }
    yield from ((name, str(mine), str(theirs)) for name, (mine, theirs) in pairs.items() if mine != theirs)
    if before.figures.keys() != after.figures.keys():
        missing = [f"not measured: {reason}" for reason in (*before.failures, *after.failures)]
        yield "rows", _rows(before), "; ".join([_rows(after), *missing])


def _rows(measured: Measured) -> str:
    return ", ".join(dict.fromkeys(row for row, _ in measured.figures)) or "none"


def slower(changes: Sequence[Change]) -> list[Change]:
    """Those that got worse beyond noise. Raises: PerfError: none of all could be judged."""
    if not any(change.verdict in JUDGED for change in changes):
        reasons = sorted({change.verdict.value for change in changes})
        raise PerfError(f"none of {len(changes)} figures can be judged: {'; '.join(reasons)}. Measure again")
    return [change for change in changes if change.verdict is Verdict.SLOWER]


# ---------------------------------------------------------------- told
def versions_note(before: Measured, after: Measured) -> str:
    """Which versions differ, which is no reason not to compare; "" where none do."""
    names = sorted({*before.machine.versions, *after.machine.versions})
    pairs = [(name, before.machine.versions.get(name), after.machine.versions.get(name)) for name in names]
    changed = [f"{name} {mine} => {theirs}" for name, mine, theirs in pairs if mine != theirs]
    return f"versions: {', '.join(changed)}" if changed else ""


def changes_table(changes: Sequence[Change]) -> Table:
    """Every figure before and after, with its noise and the number of requests."""
    table = Table(title="Before and after", title_justify="left")
    table.add_column("row", overflow="fold")
    table.add_column("figure", overflow="fold")
    for heading in ("before [noise] n", "after [noise] n", "change"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    for change in changes:
        style = "bold red" if change.verdict is Verdict.SLOWER else ""
        figures = (_figure_text(change.before), _figure_text(change.after))
        table.add_row(change.row, change.name, *figures, f"{change.share:+.1%}", change.verdict.value, style=style)
    return table


def _figure_text(figure: Figure) -> str:
    low, high = ("?" if end is None else f"{end:.4g}" for end in figure.interval)
    return f"{figure.value:.4g} [{low}, {high}] {figure.requests:,}"
