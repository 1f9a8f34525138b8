"""Figures as tables on a terminal. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from perf.endpoints import RANK
from perf.foreign_load import FOREIGN_SHARE_LIMIT
from perf.kit.data import GRADES, JudgedQueries
from perf.percentiles import LEAST_BEYOND, requests_for
from perf.served_quality import FIRST_STAGE, Check, Difference, RankerQuality, ServedQuality
from perf.sweep import PERCENTILES, PerfReport, Point

ROWS = 5
"""Of each order; titles are long."""
GRADE_STYLES = {3: "bold green", 2: "yellow", 1: "blue", 0: "red"}


def readable(name: str) -> str:
    """A ranker's name for a reader."""
    return "first stage (BM25)" if name == FIRST_STAGE else name


def quality_table(
    found: ServedQuality, kind: str = RANK, first_stage: str = "first stage (BM25)", sampled: str = ""
) -> Table:
    """NDCG@10 of every ranker, as served.

    Args:
        kind: the endpoint whose published ranker is marked.
        first_stage: what the order before any ranker is called.
        sampled: how candidates were drawn, "1 + 99 sampled"; "" = all that were judged.
    """
    metric = f"NDCG@10 ({sampled})" if sampled else "NDCG@10"
    table = Table(title=f"{metric} through the served endpoint", title_justify="left")
    table.add_column("ranker", **_whole_names(found))
    for heading in ("queries", metric, "minus first stage, 95% interval"):
        table.add_column(heading, justify="right", overflow="fold")
    for row in found.rankers:
        name = first_stage if row.name == FIRST_STAGE else row.name
        name += f"\n= {kind}" if row.name == found.published else ""
        difference = found.difference(row.name, FIRST_STAGE)
        queries = f"{len(row.ndcg)} {'test' if row.split == 'test' else 'validation and test'}"
        table.add_row(name, queries, f"{row.mean_ndcg:.4f}", interval_text(difference) if difference else "")
    return table


def differences_table(found: ServedQuality) -> Table:
    """Paired differences between rankers; those to the first stage stand in :func:`quality_table`."""
    table = Table(title="Paired differences, query by query", title_justify="left")
    table.add_column("ranker minus another", **_whole_names(found))
    table.add_column("NDCG@10, 95% interval", justify="right", overflow="fold")
    table.add_column("queries", justify="right", overflow="fold")
    for difference in found.differences:
        if difference.reference != FIRST_STAGE:
            queries = str(difference.interval.queries)
            pair = f"{difference.found}\n- {difference.reference}"
            table.add_row(pair, interval_text(difference), queries)
    return table


def _whole_names(found: ServedQuality) -> dict[str, Any]:
    """Of a column: no narrower than the longest name, so that no two names are cut to the same one."""
    return {"overflow": "fold", "min_width": max(len(readable(row.name)) for row in found.rankers) + len("- ")}


def interval_text(difference: Difference) -> str:
    """Mean and its interval."""
    interval = difference.interval
    return f"{interval.mean_difference:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def check_lines(checks: Iterable[Check]) -> Text:
    """One line a check, its verdict first."""
    lines = Text()
    for check in checks:
        lines.append(" pass " if check.passed else " FAIL ", "bold green" if check.passed else "bold white on red")
        lines.append(f" {check.name}: ").append(f"{check.detail}\n", "dim" if check.passed else "red")
    return lines


def side_by_side(
    judged: JudgedQueries, query_id: str, before: RankerQuality, after: RankerQuality, why: str = ""
) -> Table:
    """The first items of two orders of one query, with their grades and whole titles.

    Args:
        why: this query is shown.
    """
    title = f"'{escape(judged.queries[query_id])}'" + (f"  {escape(why)}" if why else "")
    table = Table(title=title, title_justify="left", expand=True)
    for row in (before, after):
        heading = f"{readable(row.name)}\nNDCG@10 {row.ndcg[query_id]:.3f}"
        table.add_column(heading, ratio=1, overflow="fold")
    for pair in zip(before.rankings[query_id][:ROWS], after.rankings[query_id][:ROWS], strict=True):
        table.add_row(*(_graded_title(judged, query_id, item_id) for item_id in pair))
    return table


def legend() -> str:
    """What the letters of :func:`side_by_side` mean."""
    return "  ".join(f"[{GRADE_STYLES[grade]}]{name[0]}[/] {name}" for grade, name in GRADES.items())


def perf_table(report: PerfReport) -> Table:
    """Latency and rate of every endpoint under every load."""
    table = Table(
        title="perf_analyzer, real requests",
        title_justify="left",
        caption=_perf_caption(report),
        caption_justify="left",
    )
    table.add_column("endpoint", overflow="fold")
    for heading in (
        "load",
        "requests",
        "candidates",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "requests/s",
        "candidates/s",
        "x fp32",
        "others",
    ):
        table.add_column(heading, justify="right", overflow="fold")
    for previous, point in zip([None, *report.points], report.points, strict=False):
        if previous and previous.load != point.load:
            table.add_section()
        table.add_row(*_perf_row(point, report.published))
    return table


def _perf_caption(report: PerfReport) -> str:
    lines = ["candidates: of a request, mean",
             "others: processor time of other programs in the most disturbed round; a row in which it stayed above "
             f"{FOREIGN_SHARE_LIMIT:.0%} is marked !"]  # fmt: skip
    if any(point.foreign_share is None for point in report.points):
        lines.append("?: not known, of a server at --url")
    if any(_too_few(point, percentile) for point in report.points for percentile in PERCENTILES):
        lines.append(f"~: fewer than {LEAST_BEYOND} requests lie beyond this percentile")
    return "\n".join(lines)


def _too_few(point: Point, percentile: float) -> bool:
    return point.requests < requests_for(percentile)


def latency_texts(point: Point) -> list[str]:
    """p50, p90 and p99; ``~`` before one beyond which there are too few requests."""
    values = (point.p50_ms, point.p90_ms, point.p99_ms)
    return [
        f"{'~' if _too_few(point, percentile) else ''}{value:.1f}"
        for percentile, value in zip(PERCENTILES, values, strict=True)
    ]


def foreign_text(share: float | None, runs: int = 1, disturbed: bool | None = None) -> str:
    """Load of other programs for a reader.

    Args:
        runs: of which it is the least disturbed.
        disturbed: whether it stayed so; None = the share says.
    """
    if share is None:
        return "?"
    marked = share > FOREIGN_SHARE_LIMIT if disturbed is None else disturbed
    again = f" ({runs} runs)" if runs > 1 else ""
    return f"{'! ' if marked else ''}{share:.0%}{again}"


def steps_table(report: PerfReport) -> Table:
    """Queue and compute of the composing models."""
    table = Table(title="Where a request's time goes: means a composing model, ms", title_justify="left")
    for heading in ("endpoint", "load", "composing model", "queue", "compute"):
        justify: Literal["left", "right"] = "right" if heading in ("load", "queue", "compute") else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    for point in report.points:
        for step in point.steps:
            load = str(point.load)
            table.add_row(point.endpoint, load, step.model, f"{step.queue_ms:.2f}", f"{step.compute_ms:.2f}")
        table.add_section()
    return table


def speedup_text(point: Point) -> str:
    """Median ratio with the lowest and highest round."""
    if point.speedup is None:
        return ""
    middle, low, high = point.speedup
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def _perf_row(point: Point, published: Mapping[str, str]) -> Sequence[str]:
    serves = published.get(point.endpoint)
    name = f"{point.endpoint} = {serves}" if serves else point.endpoint
    again = point.repeated + point.reruns
    requests = f"{point.requests}" + (f" ({again} repeated)" if again else "")
    rates = [f"{point.requests_per_s:.1f}", f"{point.candidates_per_s:,.0f}"]
    others = foreign_text(point.foreign_share, disturbed=point.disturbed > 0)
    asked = [str(point.load), requests, f"{point.candidates:.0f}"]
    return [name, *asked, *latency_texts(point), *rates, speedup_text(point), others]


def print_whole(table: Table, console: Console) -> None:
    """However narrow the terminal: a line that it breaks can still be read, a column of dots cannot."""
    wide = Console(file=console.file, width=1000)
    wide.width = max(console.width, wide.measure(table).maximum)
    wide.print(table)


def _graded_title(judged: JudgedQueries, query_id: str, item_id: str) -> Text:
    grade = judged.judgements[query_id][item_id]
    return Text.assemble((GRADES[grade][0], GRADE_STYLES[grade]), " ", judged.products[item_id].title)
