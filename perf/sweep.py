"""A sweep: every endpoint at every concurrency, in interleaved rounds, with real requests and the real perf_analyzer.

A round goes through all endpoints before the next begins, so that what drifts on the machine meets all of them alike;
a variant is compared with its reference of the same round. Latencies are pooled over rounds, rates are medians.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydantic
from rich.console import Console
from tritonrank_client import TLS

from perf.analyzer import AnalyzerError, Measurement, Step, measure
from perf.csv_text import csv_text
from perf.endpoints import RANK, Endpoint, published_model, serving
from perf.errors import PerfError
from perf.inputs import mean_candidates, requests_json, write_requests
from perf.kit.data import PROJECT, JudgedQueries, Workspace, first_stage, write_atomically
from perf.machine import Machine, this_machine
from perf.progress import track

PERCENTILES = (50, 90, 99)


class Sweep(pydantic.BaseModel):
    """What to measure; from ``perf/sweeps/*.toml``.

    Attributes:
        endpoints: absent = ``rank`` and every published variant.
        window_ms: of each of the three windows of one measurement.
        rounds: through all endpoints.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    endpoints: tuple[str, ...] = ()
    concurrencies: tuple[pydantic.PositiveInt, ...] = pydantic.Field((1, 2, 4), min_length=1)
    window_ms: int = pydantic.Field(2000, ge=100)
    rounds: pydantic.PositiveInt = 3


@dataclasses.dataclass(frozen=True)
class RunningServer:
    """A server that somebody started on this checkout's model repository.

    Attributes:
        grpc_url: host and port of its gRPC service.
        tls: None = in the clear.
    """

    grpc_url: str
    tls: TLS | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """One endpoint at one concurrency, over all rounds.

    Attributes:
        requests: measured.
        p50_ms, p90_ms, p99_ms: of the pooled latencies, client side.
        requests_per_s, candidates_per_s: medians over rounds.
        reference: endpoint that ``speedup`` is over.
        speedup: requests/s over the reference's of the same round: median, lowest and highest of the rounds.
        steps: composing models, medians over rounds.
        repeated: measurements thrown away because a request failed or none ended in a window.
    """

    endpoint: str
    concurrency: int
    requests: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    requests_per_s: float
    candidates_per_s: float
    reference: str | None
    speedup: tuple[float, float, float] | None
    steps: tuple[Step, ...]
    repeated: int


@dataclasses.dataclass(frozen=True)
class PerfReport:
    """A sweep's figures with where they come from.

    Attributes:
        published: the model that ``rank`` serves.
        candidates: of a request, mean.
        failures: a line for each endpoint and concurrency that could not be measured, with the reason.
    """

    machine: Machine
    published: str
    candidates: float
    points: list[Point]
    failures: list[str]


Rounds = dict[tuple[str, int], list[Measurement]]
"""(endpoint, concurrency) => one measurement a round."""
Failures = dict[tuple[str, int], str]
"""(endpoint, concurrency) => why it could not be measured."""


def load_sweep(path: Path) -> Sweep:
    """Read a sweep. Raises: PerfError: not there, not TOML, or a field is unknown or out of range."""
    try:
        return Sweep.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise PerfError(f"no sweep at '{path}'; 'ls perf/sweeps' shows those of the kit") from None
    except OSError as error:
        raise PerfError(f"{path}: cannot be read ({error.strerror}); wanted a sweep's TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, pydantic.ValidationError) as error:
        raise PerfError(f"{path}: {error}") from error


def run_sweep(
    sweep: Sweep,
    judged: JudgedQueries,
    endpoints: Sequence[Endpoint],
    *,
    running: RunningServer | None = None,
    workspace: Workspace = PROJECT,
    console: Console | None = None,
) -> PerfReport:
    """Start a server with the endpoints, or ask the one that is running, and measure them all.

    Raises:
        PerfError: an endpoint is not published, or perf_analyzer fails.
        ServerError: the server does not start.
    """
    names = chosen_endpoints(sweep, endpoints)
    requests = requests_json(judged, first_stage(judged))
    machine = this_machine()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonrank_perf_"))
        server = running or RunningServer(stack.enter_context(serving(names, workspace)).grpc_url)
        requests_file = Path(folder) / "requests.json"
        write_requests(requests, requests_file)
        rounds, failures = measure_rounds(server.grpc_url, names, requests_file, sweep, console, server.tls)
    published = published_model(workspace)
    candidates = mean_candidates(requests)
    points = points_of(rounds, reference_endpoints(endpoints, published), candidates)
    return PerfReport(machine, published, candidates, points, list(failures.values()))


def chosen_endpoints(sweep: Sweep, endpoints: Sequence[Endpoint]) -> list[str]:
    """Names to measure. Raises: PerfError when one is not published."""
    known = [RANK, *(endpoint.name for endpoint in endpoints)]
    strangers = [name for name in sweep.endpoints if name not in known]
    if strangers:
        raise PerfError(f"endpoint {', '.join(strangers)} is not published; wanted of {', '.join(known)}")
    return list(sweep.endpoints) or known


def reference_endpoints(endpoints: Sequence[Endpoint], published: str) -> dict[str, str]:
    """Endpoint => the endpoint of its ranker's reference variant, for those that are not the reference."""
    reference = {endpoint.recipe.ranker: endpoint.name for endpoint in endpoints if endpoint.is_reference}
    found = {
        endpoint.name: reference[endpoint.recipe.ranker]
        for endpoint in endpoints
        if not endpoint.is_reference and endpoint.recipe.ranker in reference
    }
    if f"{RANK}_{published}" in found:
        found[RANK] = found[f"{RANK}_{published}"]
    return found


def measure_rounds(
    url: str,
    names: Sequence[str],
    requests_file: Path,
    sweep: Sweep,
    console: Console | None = None,
    tls: TLS | None = None,
) -> tuple[Rounds, Failures]:
    """Round by round, concurrency by concurrency, all endpoints next to one another in time.

    An endpoint that does not hold a concurrency is left out there, in all rounds: the server refuses requests by
    design when it cannot keep up.
    """
    rounds: Rounds = defaultdict(list)
    failures: Failures = {}
    for _, concurrency, name in track(
        list(itertools.product(range(sweep.rounds), sweep.concurrencies, names)), "perf_analyzer", console
    ):
        key = (name, concurrency)
        if key in failures:
            continue
        try:
            found = measure(url, name, requests_file, concurrency=concurrency, window_ms=sweep.window_ms, tls=tls)
            rounds[key].append(found)
        except AnalyzerError as error:
            failures[key] = str(error)
            rounds.pop(key, None)
    return dict(rounds), failures


def points_of(rounds: Rounds, references: Mapping[str, str], candidates: float) -> list[Point]:
    """Pure: the figures of each endpoint at each concurrency, in the order measured."""
    return [_point(key, found, rounds, references, candidates) for key, found in rounds.items()]


def write_perf(report: PerfReport, workspace: Workspace = PROJECT) -> list[Path]:
    """``perf.json``, ``perf.csv`` (a row a point) and ``perf_steps.csv`` (a row a composing model)."""
    folder = workspace.build / "report"
    write_atomically(folder / "perf.json", json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    write_atomically(folder / "perf.csv", csv_text(map(_flat, report.points)))
    write_atomically(folder / "perf_steps.csv", csv_text(row for point in report.points for row in _flat_steps(point)))
    return [folder / name for name in ("perf.json", "perf.csv", "perf_steps.csv")]


def read_perf(workspace: Workspace = PROJECT) -> PerfReport | None:
    """The figures kept last; None where there are none, or none of this form."""
    try:
        text = (workspace.build / "report" / "perf.json").read_text(encoding="utf-8")
        return pydantic.TypeAdapter(PerfReport).validate_python(json.loads(text))
    except (FileNotFoundError, ValueError):
        return None


def _point(
    key: tuple[str, int],
    found: Sequence[Measurement],
    rounds: Rounds,
    references: Mapping[str, str],
    candidates: float,
) -> Point:
    endpoint, concurrency = key
    latencies_ms = np.concatenate([measurement.latencies_ms for measurement in found])
    p50_ms, p90_ms, p99_ms = map(float, np.percentile(latencies_ms, PERCENTILES))
    requests_per_s = float(np.median([measurement.requests_per_s for measurement in found]))
    reference = references.get(endpoint)
    return Point(
        endpoint=endpoint,
        concurrency=concurrency,
        requests=latencies_ms.size,
        p50_ms=p50_ms,
        p90_ms=p90_ms,
        p99_ms=p99_ms,
        requests_per_s=requests_per_s,
        candidates_per_s=requests_per_s * candidates,
        reference=reference,
        speedup=_speedup(found, rounds.get((reference, concurrency), [])) if reference else None,
        steps=_median_steps(found),
        repeated=sum(measurement.repeated for measurement in found),
    )


def _speedup(found: Sequence[Measurement], reference: Sequence[Measurement]) -> tuple[float, float, float] | None:
    """Median, lowest and highest ratio of the rounds that both have."""
    if not reference:
        return None
    ratios = [mine.requests_per_s / other.requests_per_s for mine, other in zip(found, reference, strict=True)]
    return float(np.median(ratios)), min(ratios), max(ratios)


def _median_steps(found: Sequence[Measurement]) -> tuple[Step, ...]:
    by_model: dict[str, list[Step]] = defaultdict(list)
    for measurement in found:
        for step in measurement.steps:
            by_model[step.model].append(step)
    return tuple(
        Step(
            model,
            float(np.median([step.queue_ms for step in steps])),
            float(np.median([step.compute_ms for step in steps])),
        )
        for model, steps in by_model.items()
    )


def _flat(point: Point) -> dict[str, object]:
    row = dataclasses.asdict(point)
    del row["steps"]
    low, middle, high = (
        ("", "", "") if point.speedup is None else (point.speedup[1], point.speedup[0], point.speedup[2])
    )
    return {**row, "speedup": middle, "speedup_low": low, "speedup_high": high}


def _flat_steps(point: Point) -> list[dict[str, object]]:
    key = {"endpoint": point.endpoint, "concurrency": point.concurrency}
    return [{**key, **dataclasses.asdict(step)} for step in point.steps]
