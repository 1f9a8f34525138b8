"""`python -m perf`: quality and speed of what is served, as users meet it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tritonrank_client import TritonRankError

from builders.core.recipe import load_recipes
from builders.data.find import find_data, load_judged
from perf.endpoints import published_endpoints
from perf.errors import PerfError
from server.errors import ServerError

SWEEP = Path(__file__).parent / "sweeps" / "cpu.toml"
Data = Annotated[
    Path | None, typer.Option("--data", help="Folder with the data; else TRITONRANK_DATA, ../shared/data, ...")
]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console()


@app.command()
def demo(
    queries: Annotated[
        int | None, typer.Option(min=2, envvar="DEMO_QUERIES", help="Only the first so many test queries.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Serve all queries, changed or not.")] = False,
    data: Data = None,
) -> None:
    """Show real queries ranked by the real server, judge all of them through it, check, and write the report."""
    from perf.demo import run_demo  # torch takes seconds to import

    failed = run_demo(queries=queries, fresh=fresh, data=data, console=console)
    if failed:
        raise PerfError(f"{len(failed)} checks failed: {'; '.join(failed)}. Their figures stand above")


@app.command()
def sweep(
    sweep: Annotated[Path, typer.Option(help="TOML with endpoints, concurrencies, window_ms, rounds.")] = SWEEP,
    endpoint: Annotated[list[str] | None, typer.Option(help="Measure only this; repeatable.")] = None,
    data: Data = None,
) -> None:
    """Load every endpoint with real requests by perf_analyzer; print and write the figures."""
    from perf import sweep as sweeps
    from perf.tables import perf_table, steps_table

    chosen = sweeps.load_sweep(sweep)
    if endpoint:
        chosen = chosen.model_copy(update={"endpoints": tuple(endpoint)})
    endpoints = published_endpoints(load_recipes())
    found = sweeps.run_sweep(chosen, load_judged(find_data(data).folder), endpoints, console=console)
    console.print(perf_table(found), steps_table(found))
    for path in sweeps.write_perf(found):
        console.print(f"written: {path}", soft_wrap=True)
    for failure in found.failures:
        console.print(f"not measured: {failure}", style="bold red", markup=False, soft_wrap=True)
    if not found.points:
        raise PerfError("nothing could be measured; the reasons stand above")


@app.command()
def bench(
    part: Annotated[
        list[str] | None, typer.Option(help="preprocess, latency, int8, broadcast, dcn, memory; repeatable.")
    ] = None,
    data: Data = None,
) -> None:
    """Measure the figures to reach; the last line is JSON."""
    from perf.bench import run_bench
    from perf.served_quality import load_rankers

    recipes = load_recipes()
    endpoints = published_endpoints(recipes)
    folder = find_data(data).folder
    judged = load_judged(folder)
    run_bench(part or [], judged, endpoints, load_rankers(recipes, endpoints), folder=folder, console=console)


@app.command("gpu-report")
def gpu_report() -> None:
    """Build every engine, run the GPU tests and sweeps, and write what came of it: on a machine with an NVIDIA GPU."""
    from perf.gpu_report import run_gpu_report

    for path in run_gpu_report(console=console):
        console.print(f"written: {path}", soft_wrap=True)


@app.command()
def recommend(data: Data = None) -> None:
    """Judge `recommend` and its variants through the server: the item that a customer went on to buy among others."""
    from perf.recommend import run_recommend

    failed = run_recommend(data=data, console=console)
    if failed:
        raise PerfError(f"{len(failed)} checks failed: {'; '.join(failed)}. Their figures stand above")


@app.command()
def pareto(
    recipes: Annotated[list[Path] | None, typer.Argument(help="Recipes; all of recipes/ when none is given.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Each goes through all variants.")] = None,
    window_ms: Annotated[int | None, typer.Option(min=100, help="Of each of three windows a measurement.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A variant besides the reference; repeatable.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is kept.")] = False,
    fidelity_lists: Annotated[
        int | None, typer.Option(min=1, help="Unjudged lists of the gate, in place of the recipe's: fewer are quicker.")
    ] = None,
    data: Data = None,
) -> None:
    """Measure every variant of the recipes: quality, latency, rate, memory, cost; write the Pareto front."""
    from perf.pareto import ROUNDS, WINDOW_MS, run_all  # torch takes seconds to import

    reports = run_all(
        recipes or [],
        console,
        rounds=rounds or ROUNDS,
        window_ms=window_ms or WINDOW_MS,
        only=only or (),
        fresh=fresh,
        fidelity_lists=fidelity_lists,
        data=data,
    )
    if not reports:
        raise PerfError("nothing could be measured; the reasons stand above")


@app.command()
def report(data: Data = None) -> None:
    """Write the HTML report anew from the figures kept last."""
    from perf.report import write_report
    from perf.served_quality import read_quality

    found = read_quality()
    if found is None:
        raise PerfError("no figures yet; run 'make demo'")
    console.print(f"report: {write_report(load_judged(find_data(data).folder), found)}", soft_wrap=True)


def main() -> None:
    """Run a verb; an error that the kit raises on purpose is one line, without a trace."""
    try:
        app()
    except Exception as error:
        from builders.__main__ import EXPECTED  # torch takes seconds to import

        if not isinstance(error, (*EXPECTED, PerfError, ServerError, TritonRankError)):
            raise
        console.print(f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
