"""Both forms of an endpoint beside each other: an ensemble of three processes, and one fused model.

Each has a server and a repository of its own, with the same version folders inside; perf_analyzer drives them in turn,
round by round, so that both see the same machine. ``make repository`` publishes what wins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from perf.analyzer import Measurement, measure
from perf.endpoints import Endpoint, published_endpoints, serving
from perf.errors import PerfError
from perf.inputs import evenly_mixed, requests_json, write_requests
from perf.kit.data import PROJECT, Recipe, Workspace, evaluation_data, find_data, first_stage, write_atomically
from perf.kit.forms import WINS_BY, FormFigures, FormsReport, forms_file, publish_both_forms
from perf.kit.rankers import judging_queries
from perf.kit.served import endpoint_inputs
from perf.machine import this_machine
from perf.progress import track
from server import TritonServer

ENSEMBLE, FUSED = FORMS = ("ensemble", "fused")
ROUNDS, WINDOW_MS, CONCURRENCY = 5, 2000, 4
REQUESTS = 200
"""Judged requests that are sent in turn, at most."""


@contextlib.contextmanager
def serving_both(endpoint: Endpoint, workspace: Workspace) -> Iterator[dict[str, TritonServer]]:
    """Form => a Triton of its own that serves the endpoint in this form."""
    with tempfile.TemporaryDirectory(prefix="tritonrank_forms_") as name, contextlib.ExitStack() as servers:
        folder = Path(name)
        publish_both_forms(workspace.repository, endpoint.name, endpoint.recipe.serving.instances, folder)
        own = {form: dataclasses.replace(workspace, repository=folder / form) for form in FORMS}
        yield {form: servers.enter_context(serving([endpoint.name], own[form])) for form in FORMS}


def figures_of(
    urls: Mapping[str, str], endpoint: str, requests: Path, rounds: int, window_ms: int, console: Console | None
) -> FormFigures:
    """Drive both servers in turn, every other round the second first.

    Raises:
        AnalyzerError: one cannot be measured.
    """
    found: dict[str, list[Measurement]] = {form: [] for form in FORMS}
    for round_ in track(range(rounds), f"{endpoint}, both forms in turn", console):
        for form in FORMS if round_ % 2 == 0 else FORMS[::-1]:
            found[form].append(measure(urls[form], endpoint, requests, concurrency=CONCURRENCY, window_ms=window_ms))
    rates = {form: np.array([each.requests_per_s for each in found[form]]) for form in FORMS}
    p50_ms = {form: float(np.median([np.median(each.latencies_ms) for each in found[form]])) for form in FORMS}
    ratios = rates[FUSED] / rates[ENSEMBLE]
    return FormFigures(
        ratio=float(np.median(ratios)),
        ratio_low=float(ratios.min()),
        ratio_high=float(ratios.max()),
        ensemble_per_s=float(np.median(rates[ENSEMBLE])),
        fused_per_s=float(np.median(rates[FUSED])),
        ensemble_p50_ms=p50_ms[ENSEMBLE],
        fused_p50_ms=p50_ms[FUSED],
    )


def run_forms(
    recipe: Recipe,
    *,
    rounds: int = ROUNDS,
    window_ms: int = WINDOW_MS,
    data: Path | None = None,
    workspace: Workspace = PROJECT,
    console: Console | None = None,
) -> tuple[FormsReport, Path]:
    """Measure both forms of every published variant of the recipe that can be fused, and write the report.

    Returns:
        The report, and where it lies.

    Raises:
        PerfError: none is published that can be fused.
    """
    console = console or Console()
    published = published_endpoints({recipe.ranker: recipe}, workspace, data=None, say=console.print)
    endpoints = [endpoint for endpoint in published if endpoint.variant.runtime.fuses]
    if not endpoints:
        raise PerfError(f"{recipe.ranker}: none of {', '.join(each.model for each in published)} can be fused")
    figures = {}
    with tempfile.TemporaryDirectory(prefix="tritonrank_forms_") as name:
        requests = Path(name) / "requests.json"
        _write_requests(recipe, endpoints, data, workspace, requests)
        for endpoint in endpoints:
            with serving_both(endpoint, workspace) as servers:
                urls = {form: server.grpc_url for form, server in servers.items()}
                found = figures_of(urls, endpoint.name, requests, rounds, window_ms, console)
            figures[endpoint.model] = found
            console.print(_line(endpoint, found), soft_wrap=True, markup=False)
    report = FormsReport(
        ranker=recipe.ranker,
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        machine=dataclasses.asdict(this_machine()),
        instances=recipe.serving.instances,
        threads=recipe.serving.threads,
        concurrency=CONCURRENCY,
        variants=figures,
    )
    path = forms_file(recipe.ranker, workspace)
    write_atomically(path, report.model_dump_json(indent=2) + "\n")
    return report, path


def _write_requests(
    recipe: Recipe, endpoints: Sequence[Endpoint], data: Path | None, workspace: Workspace, path: Path
) -> None:
    judging = judging_queries(recipe, evaluation_data(recipe.data, find_data(data).folder))
    judging = judging.only(list(judging.queries)[:REQUESTS])
    inputs = endpoint_inputs(workspace.repository, endpoints[0].name)
    write_requests(evenly_mixed(requests_json(judging, first_stage(judging), inputs)), path)


def _line(endpoint: Endpoint, found: FormFigures) -> str:
    wins = "fused wins" if found.ratio > WINS_BY else f"the ensemble stays: fused must answer {WINS_BY:g} times as many"
    return (
        f"{endpoint.model}: fused {found.fused_per_s:.1f} requests/s, p50 {found.fused_p50_ms:.2f} ms; ensemble "
        f"{found.ensemble_per_s:.1f}/s, {found.ensemble_p50_ms:.2f} ms; {found.ratio:.2f} times "
        f"({found.ratio_low:.2f} to {found.ratio_high:.2f}); {wins}"
    )
