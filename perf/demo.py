"""What ``make demo`` shows once everything is built: real queries ranked by the real server, judged and checked."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rich.console import Console

from perf.endpoints import RANK, first_queries, published_endpoints, published_model, serving
from perf.kit.data import (
    PROJECT,
    DataSource,
    JudgedQueries,
    Workspace,
    find_data,
    first_stage,
    load_judged,
    load_recipes,
)
from perf.kit.figures import ndcg_of_rankings
from perf.report import write_report
from perf.served_quality import (
    FIRST_STAGE,
    RankerQuality,
    ServedQuality,
    inputs_fingerprint,
    load_rankers,
    measure_served_quality,
    read_quality,
    served_scores,
    write_quality,
)
from perf.tables import check_lines, differences_table, legend, quality_table, side_by_side

SHOWN_QUERIES = 3
LIVE_QUERIES = 10
"""Served again when the full figures are there already."""


def run_demo(
    *,
    queries: int | None = None,
    fresh: bool = False,
    data: Path | None = None,
    workspace: Workspace = PROJECT,
    console: Console | None = None,
) -> list[str]:
    """Serve, show, judge, check and report.

    Args:
        queries: only the first so many test queries; None = all.
        fresh: serve all queries although the stored figures are of the same models and data.

    Returns:
        Names of the checks that failed.
    """
    console = console or Console()
    source = find_data(data)
    judged = load_judged(source.folder)
    console.print(source.note, style="bold red" if source.generated else "")
    stored = None if fresh else stored_quality(source, queries, workspace)
    found = _serve_and_judge(source, judged, queries, stored, workspace, console)
    full = stored or found
    _show_quality(full, console)
    _show_checks(found, stored, console)
    report = write_report(judged, full, workspace=workspace)
    console.print(f"report: {report}", soft_wrap=True)
    return [check.name for check in (*full.failed, *found.failed)]


def stored_quality(source: DataSource, queries: int | None, workspace: Workspace = PROJECT) -> ServedQuality | None:
    """The figures kept last, if they are of the same models, data and code, over enough queries, and all passed."""
    stored = read_quality(workspace)
    if stored is None or stored.failed or stored.inputs != inputs_fingerprint(source.folder, workspace):
        return None
    return stored if stored.limit is None or stored.limit == queries else None


def _serve_and_judge(
    source: DataSource,
    judged: JudgedQueries,
    queries: int | None,
    stored: ServedQuality | None,
    workspace: Workspace,
    console: Console,
) -> ServedQuality:
    """All figures, or those of a few queries where the full ones are stored."""
    recipes = load_recipes()
    endpoints = published_endpoints(recipes, workspace)
    with console.status("loading the PyTorch rankers to compare with"):
        rankers = load_rankers(recipes, endpoints)
    names = [RANK, *(endpoint.name for endpoint in endpoints)]
    with contextlib.ExitStack() as stack:
        with console.status(f"starting Triton with {len(names)} endpoints"):
            server = stack.enter_context(serving(names, workspace))
        show_queries(server.grpc_url, judged, console, workspace)
        limit = queries if stored is None else min(queries or LIVE_QUERIES, LIVE_QUERIES)
        found = measure_served_quality(
            server.grpc_url,
            judged,
            endpoints,
            rankers,
            source=source,
            limit=limit,
            workspace=workspace,
            console=console,
        )
    if stored is None:
        write_quality(found, workspace)
    return found


def show_queries(url: str, judged: JudgedQueries, console: Console, workspace: Workspace = PROJECT) -> None:
    """A few test queries: the first stage's order beside what ``rank`` answers."""
    shown = first_queries(judged, SHOWN_QUERIES)
    order = first_stage(judged)
    served = served_scores(url, RANK, shown, order)
    before = _ranking(FIRST_STAGE, shown, {query_id: list(order[query_id]) for query_id in shown.queries})
    after = _ranking(published_model(workspace), shown, {query_id: list(served[query_id]) for query_id in served})
    for query_id in shown.queries:
        console.print(side_by_side(shown, query_id, before, after))
    console.print(legend())


def _ranking(name: str, judged: JudgedQueries, rankings: dict[str, list[str]]) -> RankerQuality:
    return RankerQuality(name, "test", ndcg_of_rankings(judged, rankings), rankings)


def _show_quality(found: ServedQuality, console: Console) -> None:
    console.print(quality_table(found), differences_table(found))
    if found.generated:
        console.print("The data is generated: these figures mean nothing.", style="bold red")


def _show_checks(found: ServedQuality, stored: ServedQuality | None, console: Console) -> None:
    if stored is not None:
        console.print(
            f"Stored figures: nothing has changed since. Served again now: {found.limit} queries; "
            "`make demo FRESH=1` serves all."
        )
    console.print(check_lines(found.checks))
