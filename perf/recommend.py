"""Quality of ``recommend`` as served: customers' own lists, each with one item that they went on to buy."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from perf.endpoints import published_endpoints, serving
from perf.kit.data import PROJECT, RECOMMEND, Workspace, evaluation_data, find_data, load_recipes
from perf.served_quality import load_rankers, measure_served_quality, write_quality
from perf.tables import check_lines, quality_table

DATA = "purchases"


def run_recommend(
    *, data: Path | None = None, workspace: Workspace = PROJECT, console: Console | None = None
) -> list[str]:
    """Serve every variant of ``recommend``, judge, check, and keep the figures.

    Returns:
        Names of the checks that failed.
    """
    console = console or Console()
    source = find_data(data)
    console.print(source.note, style="bold red" if source.generated else "")
    recipes = load_recipes()
    endpoints = published_endpoints(recipes, workspace, DATA, console.print)
    judged = evaluation_data(DATA, source.folder)
    with serving([RECOMMEND.name, *(endpoint.name for endpoint in endpoints)], workspace) as server:
        found = measure_served_quality(
            server.grpc_url,
            judged,
            endpoints,
            load_rankers(recipes, endpoints),
            source=source,
            workspace=workspace,
            console=console,
        )
    console.print(quality_table(found, RECOMMEND.name, "popularity", judged.sampled), check_lines(found.checks))
    console.print(f"written: {write_quality(found, workspace, RECOMMEND.name)}", soft_wrap=True)
    return [check.name for check in found.failed]
