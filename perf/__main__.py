"""`python -m perf`: quality and speed of what is served, as users meet it.

A verb imports its body when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from builders.core.errors import told_in_one_line
from perf.errors import PerfError, roots

if TYPE_CHECKING:
    from perf.endpoint_requests import JudgedOf
    from perf.endpoints import Endpoint
    from perf.sweep import RunningServer

SWEEP = Path(__file__).parent / "sweeps" / "cpu.toml"
Data = Annotated[
    Path | None, typer.Option("--data", help="Folder with the data; else TRITONRANK_DATA, ../shared/data, ...")
]
FurtherRecipes = Annotated[
    list[Path] | None, typer.Option("--recipe", help="Of a published ranker, outside recipes/; repeatable.")
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
    from perf.demo import run_demo

    failed = run_demo(queries=queries, fresh=fresh, data=data, console=console)
    if failed:
        raise PerfError(f"{len(failed)} checks failed: {'; '.join(failed)}. Their figures stand above")


@app.command()
def sweep(
    sweep: Annotated[
        Path, typer.Option(help="TOML with endpoints, concurrencies, rates, transports, mix, rounds.")
    ] = SWEEP,
    endpoint: Annotated[list[str] | None, typer.Option(help="Measure only this; repeatable.")] = None,
    url: Annotated[
        str | None,
        typer.Option(help="gRPC of a running server of this model repository, such as ranker:8001; none = start one."),
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="With --url: encrypted, by this authority of the server's certificate (PEM).")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="The client's certificate, where the server asks for one.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    recipe: FurtherRecipes = None,
    data: Data = None,
) -> None:
    """Load every endpoint with real requests by perf_analyzer; print and write the figures.

    At so many requests at once, or at so many a second at random (Poisson) times. Figures of a server at `--url` are
    printed only: reports are of this machine.
    """
    from perf import sweep as sweeps
    from perf.tables import perf_table, print_whole, steps_table

    chosen = sweeps.load_sweep(sweep)
    running = _running(url, tls_ca, tls_cert, tls_key)
    if endpoint:
        chosen = chosen.model_copy(update={"endpoints": tuple(endpoint)})
    endpoints, judged_of = _endpoints_and_data(recipe, data)
    found = sweeps.run_sweep(chosen, judged_of, endpoints, running=running, console=console)
    for table in (perf_table(found), steps_table(found)):
        print_whole(table, console)
    for path in [] if running else sweeps.write_perf(found):
        console.print(f"written: {path}", soft_wrap=True)
    for failure in found.failures:
        console.print(f"not measured: {failure}", style="bold red", markup=False, soft_wrap=True)
    if not found.points:
        raise PerfError("nothing could be measured; the reasons stand above")


@app.command()
def slo(
    p99_ms: Annotated[float, typer.Option(min=0.1, help="Highest p99 of a request.")],
    variant: Annotated[
        list[str] | None, typer.Option(help="Such as cross_encoder_int8_onnx; repeatable; rank when none is given.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is kept.")] = False,
    recipe: FurtherRecipes = None,
    data: Data = None,
) -> None:
    """Find the highest rate of requests at random (Poisson) times at which a variant holds a p99; minutes a variant."""
    from perf.slo import Limit, result_text, run_slo, slo_table

    endpoints, judged_of = _endpoints_and_data(recipe, data)
    found = run_slo(variant or [], Limit(ms=p99_ms), judged_of, endpoints, fresh=fresh, console=console)
    for report, path in found:
        console.print(slo_table(report))
        console.print(f"written: {path}", soft_wrap=True)
    for report, _ in found:
        console.print(result_text(report), style="bold", soft_wrap=True)
    if broken := [report.endpoint for report, _ in found if not report.search.highest_held]:
        raise PerfError(f"{', '.join(broken)}: no rate held p99 <= {p99_ms:g} ms; the trials stand above")


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="perf.json of 'perf sweep', or a file of build/slo.")],
    after: Annotated[Path, typer.Argument(help="The same, measured later.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Although machine, data, load or variants differ: what both have.")
    ] = False,
) -> None:
    """Say what got slower beyond noise between two files of figures; exits with 1 where anything did."""
    from perf.compare import changes_table, compare, read_measured, slower, versions_note

    first, second = read_measured(before), read_measured(after)
    changes = compare(first, second, anyway=anyway)
    console.print(changes_table(changes))
    if note := versions_note(first, second):
        console.print(note, soft_wrap=True)
    if worse := slower(changes):
        names = "; ".join(f"{change.row}: {change.name}" for change in worse)
        raise PerfError(f"{len(worse)} of {len(changes)} figures got slower beyond noise: {names}")


@app.command()
def bench(
    recipes: Annotated[list[Path] | None, typer.Argument(help="Recipes; all of recipes/ when none is given.")] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="preprocess, latency, int8, broadcast, texts, graphs, prefix, dcn, late, client, overload, cache, "
            "memory; repeatable."
        ),
    ] = None,
    data: Data = None,
) -> None:
    """Measure the figures to reach; the last line is JSON."""
    from builders.core.recipe import load_each, load_recipes
    from builders.data.find import find_data, load_judged
    from perf.bench import asks_published, run_bench
    from perf.endpoints import published_endpoints
    from perf.served_quality import load_rankers

    parts = _parts(part or [])
    chosen = load_each(recipes) if recipes else load_recipes()
    endpoints = published_endpoints(chosen, say=console.print) if asks_published(parts) else []
    folder = find_data(data).folder
    rankers = load_rankers(chosen, endpoints)
    run_bench(parts, load_judged(folder), endpoints, rankers, folder=folder, console=console)


@app.command()
def tune(
    machine: Annotated[
        str, typer.Argument(help="Name of the configurations; serve them with `make serve CONFIG=...`.")
    ],
    variant: Annotated[
        str | None, typer.Option(help="Measured; what `rank` serves unless told, such as dcn_v2_fp32_onnx.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each goes through all splits.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each measurement.")] = 5.0,
    recipe: FurtherRecipes = None,
    data: Data = None,
) -> None:
    """Choose this machine's instances and threads by measuring, and write them to configs/MACHINE.pbtxt."""
    from builders.data.find import find_data
    from perf.endpoints import published_model
    from perf.tune import run_tune

    name = variant or published_model()
    endpoints = [one for one in _published(recipe) if one.model == name]
    if not endpoints:
        raise PerfError(f"no endpoint of '{name}' is published; 'python -m builders status' lists what is")
    run_tune(machine, endpoints[0], find_data(data).folder, console, rounds=rounds, seconds=seconds)


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.5, help="Of load; building and comparing come on top.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of the jobs and of the moments at which some are killed.")] = 0,
) -> None:
    """Ask steadily while everything is done to a repository that a year brings; every score is compared with torch."""
    from perf.soak import run_soak

    found = run_soak(minutes, console, seed)
    console.print(found.table())
    print(found.to_json())
    if not found.passed:
        raise PerfError(f"{len(found.wrong)} wrong answers, {found.errors.total()} requests not answered")


@app.command()
def outages(
    minutes: Annotated[float, typer.Option(min=0.5, help="Of load; building and comparing come on top.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of the faults.")] = 0,
) -> None:
    """Ask steadily while something fails every twenty seconds: how long each fault is felt, and no wrong answer."""
    from perf.outages import run_outages

    found = run_outages(minutes, console, seed)
    console.print(found.soak.table())
    console.print(found.table())
    print(found.to_json())
    if found.missed:
        raise PerfError("; ".join(found.missed))


@app.command()
def chaos(
    part: Annotated[
        list[str] | None,
        typer.Option(help="killed, overload, many-calls, hung, stub, rolling; repeatable, all unless given."),
    ] = None,
) -> None:
    """Break the servers under a steady load: what the client's callers notice. The last line is JSON."""
    import dataclasses
    import json

    from perf.bench_base import figures_table
    from perf.chaos import run_chaos

    figures = run_chaos(console, part or [])
    console.print(figures_table(figures))
    print(json.dumps([dataclasses.asdict(figure) for figure in figures]))
    if missed := [figure.name for figure in figures if figure.passed is False]:
        raise PerfError(f"{len(missed)} figures missed: {'; '.join(missed)}")


@app.command()
def scale(
    items: Annotated[
        list[int] | None, typer.Option(min=1024, help="Of a catalogue; repeatable. None = 10,000 and 100,000.")
    ] = None,
    servers: Annotated[
        list[int] | None, typer.Option(min=1, help="Processes on one store; repeatable. None = 1 and 2.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.2, help="Of each figure.")] = 3.0,
    data: Data = None,
) -> None:
    """Measure what a request costs as candidates, catalogue, requests at once and servers grow; write a page.

    Items are generated. Two million take 9 GB of disk and some ten minutes to write and to index.
    """
    from builders.data.find import find_data, load_judged
    from perf.scale import SCALE_FOLDER, bends, run_scale
    from perf.scale_page import write_scale

    judged = load_judged(find_data(data).folder)
    found = run_scale(items or [10_000, 100_000], servers or [1, 2], seconds, judged, console)
    for sentence in bends(found):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    for path in write_scale(found, SCALE_FOLDER):
        console.print(f"written: {path}", soft_wrap=True)


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
    from builders.core.recipe import load_each
    from perf.pareto import ROUNDS, WINDOW_MS, run_all

    load_each(recipes or [])  # refused now rather than after an hour of measuring

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
def ceiling(
    variant: Annotated[
        list[str] | None, typer.Option(help="Such as cross_encoder_int8_onnx; repeatable; none = all published.")
    ] = None,
    requests: Annotated[
        int, typer.Option(min=1, help="Judged requests that are counted and sent in turn, at most.")
    ] = 40,
    window_ms: Annotated[int, typer.Option(min=100, help="Of each of three windows of a served figure.")] = 4000,
    recipe: FurtherRecipes = None,
    data: Data = None,
) -> None:
    """Measure what the machine can do at most, and each published variant as a share of that (roofline)."""
    from builders.data.find import find_data
    from perf.ceiling import Effort, run_ceiling
    from perf.ceiling_page import ceiling_table, notes, peaks_table, write_ceiling
    from perf.endpoints import chosen_endpoints
    from perf.tables import print_whole

    endpoints = chosen_endpoints(variant or (), _published(recipe))
    effort = Effort(requests=requests, window_ms=window_ms)
    found = run_ceiling(endpoints, find_data(data).folder, effort, console=console)
    for table in (peaks_table(found), ceiling_table(found)):
        print_whole(table, console)
    for line in notes(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for path in write_ceiling(found):
        console.print(f"written: {path}", soft_wrap=True)


@app.command()
def forms(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes whose variants are published.")],
    rounds: Annotated[int | None, typer.Option(min=1, help="Each drives both forms.")] = None,
    window_ms: Annotated[int | None, typer.Option(min=100, help="Of each of three windows a measurement.")] = None,
    data: Data = None,
) -> None:
    """Measure each published variant as an ensemble and as one fused model; 'make repository' publishes what wins."""
    from builders.core.recipe import load_each
    from perf.forms import ROUNDS, WINDOW_MS, run_forms

    for recipe in load_each(recipes).values():
        _, path = run_forms(
            recipe, rounds=rounds or ROUNDS, window_ms=window_ms or WINDOW_MS, data=data, console=console
        )
        console.print(f"written: {path}; 'make repository' publishes what wins", soft_wrap=True)


@app.command()
def peers(
    kind: Annotated[
        list[str] | None, typer.Option(help="cross_encoder or interactions; repeatable, none = both.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each asks every peer in turn.")] = 10,
    requests: Annotated[
        int, typer.Option(min=1, max=24, help="Only the first so many of a turn: fewer are quicker.")
    ] = 24,
    only: Annotated[
        list[str] | None, typer.Option(help="Beside the reference, peers whose names hold this; repeatable.")
    ] = None,
    data: Data = None,
) -> None:
    """Ask other servers and libraries the same of the same weights, in turn; each in an environment of its own."""
    from perf.peers.run import run_peers

    run_peers(kind or (), rounds=rounds, requests=requests, only=only or (), data=data, console=console)


@app.command()
def report(data: Data = None) -> None:
    """Write the HTML report anew from the figures kept last."""
    from builders.data.find import find_data, load_judged
    from perf.report import write_report
    from perf.served_quality import read_quality

    found = read_quality()
    if found is None:
        raise PerfError("no figures yet; run 'make demo'")
    console.print(f"report: {write_report(load_judged(find_data(data).folder), found)}", soft_wrap=True)


RENAMED_PARTS = {"once": "broadcast"}
"""Parts of ``bench`` as they were called until 0.1 => their names of now; the old ones go with 0.3."""


def _parts(names: Sequence[str]) -> list[str]:
    for name in RENAMED_PARTS.keys() & set(names):
        warnings.warn(f"bench's part '{name}' is now called '{RENAMED_PARTS[name]}'", FutureWarning, stacklevel=2)
    return [RENAMED_PARTS.get(name, name) for name in names]


def _published(recipes: Sequence[Path] | None) -> list[Endpoint]:
    """Endpoints of recipes/ and of these, as far as they are published."""
    from builders.core.recipe import load_each, load_recipes
    from perf.endpoints import published_endpoints

    return published_endpoints(load_recipes() | load_each(recipes or ()), data=None, say=console.print)


def _endpoints_and_data(recipes: Sequence[Path] | None, data: Path | None) -> tuple[list[Endpoint], JudgedOf]:
    """As :func:`_published`, and what each kind of them is judged on."""
    from builders.data.evaluation import evaluation_data
    from builders.data.find import find_data

    folder = find_data(data).folder
    return _published(recipes), lambda kind: evaluation_data(kind, folder)


def _running(url: str | None, ca: Path | None, certificate: Path | None, key: Path | None) -> RunningServer | None:
    from tritonrank_client import TLS

    from perf.sweep import RunningServer

    tls = TLS(ca, certificate, key)
    if url is None:
        if tls != TLS():
            raise PerfError("--tls-ca, --tls-cert and --tls-key are for a server at --url; name it")
        return None
    if tls == TLS():
        return RunningServer(url)
    tls.check()
    return RunningServer(url, tls)


def main() -> None:
    """Run a verb; an error that a user can cause is one line on stderr, its ``exit_code`` (or 1) this process's."""
    with told_in_one_line(roots):
        app()


if __name__ == "__main__":
    main()
