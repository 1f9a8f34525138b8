"""A sweep: every endpoint under every load, in interleaved rounds, with real requests and the real perf_analyzer.

A load is closed (so many requests at once) or open (so many a second at random times), over one of the transports. A
round goes through all endpoints before the next begins, so that what drifts on the machine meets all of them alike; a
variant is compared with its reference of the same round. Latencies are pooled over rounds, rates are medians. A
measurement that other programs disturbed is made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydantic
from rich.console import Console
from tritonrank_client import TLS

from perf.analyzer import GRPC, AnalyzerError, Measurement, Step, Transport, measure, measure_poisson
from perf.csv_text import csv_text
from perf.endpoint_requests import (
    JudgedOf,
    data_digest,
    named_endpoints,
    plain_names,
    write_endpoint_requests,
)
from perf.endpoints import Endpoint, published_model, serving
from perf.errors import PerfError
from perf.foreign_load import FOREIGN_SHARE_LIMIT, Watched, undisturbed
from perf.inputs import RequestMix
from perf.kit.data import PROJECT, Workspace, fingerprint, sha256, write_atomically
from perf.machine import Machine, this_machine
from perf.percentiles import Interval, percentile_interval, requests_for
from perf.progress import track
from perf.self_signed import self_signed
from server import ServerTls

PERCENTILES = (50, 90, 99)
TLS_TRANSPORT: Transport = "grpc+tls"


@dataclasses.dataclass(frozen=True)
class Load:
    """One way of asking.

    Attributes:
        concurrency: requests at once, in a closed loop; None = an open one.
        rate_per_s: of an open loop: requests at random (Poisson) times.
    """

    concurrency: int | None = None
    rate_per_s: float | None = None
    transport: Transport = GRPC

    def __str__(self) -> str:
        text = f"{self.concurrency} at once" if self.rate_per_s is None else f"{self.rate_per_s:g}/s"
        return text if self.transport == GRPC else f"{text}, {self.transport}"


class Sweep(pydantic.BaseModel):
    """What to measure; from ``perf/sweeps/*.toml``.

    Attributes:
        endpoints: or models; absent = ``rank``, ``recommend`` and every published variant.
        together: all endpoints are asked at the same time, each with the whole load, in place of one after the other.
        concurrencies: closed loops, requests at once.
        window_ms: of each of the three windows of one measurement of a closed loop.
        rates: open loops, requests/s at random (Poisson) times.
        requests: of one measurement of an open loop; the default has 30 beyond p99.
        transports: "grpc", "http", "grpc+tls", "grpc+shared_memory", "http+shared_memory".
        mix: which requests are sent.
        rounds: through all endpoints.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    endpoints: tuple[str, ...] = ()
    together: bool = False
    concurrencies: tuple[pydantic.PositiveInt, ...] = (1, 2, 4)
    window_ms: int = pydantic.Field(2000, ge=100)
    rates: tuple[pydantic.PositiveFloat, ...] = ()
    requests: int = pydantic.Field(requests_for(PERCENTILES[-1]), ge=2)
    transports: tuple[Transport, ...] = pydantic.Field((GRPC,), min_length=1)
    mix: RequestMix = RequestMix()
    rounds: pydantic.PositiveInt = 3

    @pydantic.model_validator(mode="after")
    def _has_a_load(self) -> Sweep:
        if not self.concurrencies and not self.rates:
            raise ValueError("no load: wanted concurrencies (requests at once), rates (requests/s), or both")
        if self.together and any(_shares_memory(transport) for transport in self.transports):
            raise ValueError("together goes without shared memory: each perf_analyzer gives its regions the same names")
        return self

    @property
    def loads(self) -> list[Load]:
        """Closed loops first."""
        kinds = [*(Load(count) for count in self.concurrencies), *(Load(rate_per_s=rate) for rate in self.rates)]
        return [dataclasses.replace(load, transport=transport) for load in kinds for transport in self.transports]


@dataclasses.dataclass(frozen=True)
class RunningServer:
    """A server on this checkout's model repository.

    Attributes:
        grpc_url: host and port of its gRPC service.
        tls: None = in the clear.
        http_url: host and port of its HTTP service, where it is asked over it.
        encrypted: another one beside it that is asked over TLS.
        is_ours: it is of this process tree; what another server takes is told from foreign load by that.
    """

    grpc_url: str
    tls: TLS | None = None
    http_url: str | None = None
    encrypted: RunningServer | None = None
    is_ours: bool = False

    def door(self, transport: Transport) -> tuple[str, TLS | None]:
        """Address and TLS of a transport. Raises: PerfError: it has none such."""
        if transport == TLS_TRANSPORT and self.encrypted is not None:
            return self.encrypted.door(GRPC)
        if transport.startswith("http") and self.http_url is not None:
            return self.http_url, None
        if transport.startswith("grpc") and transport != TLS_TRANSPORT:
            return self.grpc_url, self.tls
        raise PerfError(
            f"transport '{transport}' is measured on a server that the sweep starts; one at --url is asked over gRPC, "
            "encrypted with --tls-ca. Leave transports out of the sweep, or --url"
        )


@dataclasses.dataclass(frozen=True)
class Round:
    """One measurement of a point."""

    requests: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    requests_per_s: float


@dataclasses.dataclass(frozen=True)
class Point:
    """One endpoint under one load, over all rounds.

    Attributes:
        candidates: of a request, mean.
        concurrency: requests at once; None in an open loop.
        requests: measured.
        p50_ms, p90_ms, p99_ms: of the pooled latencies, client side.
        requests_per_s, candidates_per_s: medians over rounds.
        reference: endpoint that ``speedup`` is over.
        speedup: requests/s over the reference's of the same round: median, lowest and highest of the rounds.
        steps: composing models, medians over rounds.
        repeated: measurements thrown away because a request failed or none ended in a window.
        rate_per_s: asked for in an open loop.
        transport: how requests came to the server.
        intervals: of p50, p90 and p99, by order statistics of the pooled latencies.
        rounds: each round's own figures.
        foreign_share: of the machine's processor time that other programs took in the most disturbed round, 0 to 1;
            None = not known.
        disturbed: rounds that stayed disturbed.
        reruns: measurements made again because other programs disturbed them.
    """

    endpoint: str
    concurrency: int | None
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
    rate_per_s: float | None = None
    transport: Transport = GRPC
    intervals: tuple[Interval, ...] = ()
    rounds: tuple[Round, ...] = ()
    candidates: float = 0.0
    foreign_share: float | None = None
    disturbed: int = 0
    reruns: int = 0

    @property
    def load(self) -> Load:
        """What it was asked."""
        return Load(self.concurrency, self.rate_per_s, self.transport)


@dataclasses.dataclass(frozen=True)
class PerfReport:
    """A sweep's figures with where they come from.

    Attributes:
        published: ``rank``, ``recommend`` => the model that it serves.
        failures: a line for each endpoint and load that could not be measured, with the reason.
        data: digest of the judged data.
        settings: fingerprint of the requests and of how they were sent.
    """

    machine: Machine
    published: dict[str, str]
    points: list[Point]
    failures: list[str]
    data: str
    settings: str


Rounds = dict[tuple[str, Load], list[Measurement]]
"""(endpoint, load) => one measurement a round."""
Failures = dict[tuple[str, Load], str]
"""(endpoint, load) => why it could not be measured."""


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
    judged_of: JudgedOf,
    endpoints: Sequence[Endpoint],
    *,
    running: RunningServer | None = None,
    workspace: Workspace = PROJECT,
    console: Console | None = None,
) -> PerfReport:
    """Start a server with the endpoints, or ask the one that is running, and measure them all.

    Args:
        judged_of: a recipe's ``data`` => what is judged on it.

    Raises:
        PerfError: an endpoint is not published, or perf_analyzer fails.
        ServerError: the server does not start.
    """
    names = named_endpoints(sweep.endpoints, endpoints, workspace)
    machine = this_machine()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonrank_perf_")))
        requests = write_endpoint_requests(names, endpoints, judged_of, workspace, folder, sweep.mix)
        server = running or stack.enter_context(_started(names, sweep, workspace, folder))
        for transport in sweep.transports:
            server.door(transport)  # refused now rather than after the others were measured
        files = {name: asked.file for name, asked in requests.items()}
        rounds, failures = measure_rounds(server, files, sweep, console)
        sent = [sha256(file) for file in files.values()]
    published = {name: published_model(workspace, name) for name in plain_names(workspace)}
    candidates = {name: asked.candidates for name, asked in requests.items()}
    points = points_of(rounds, reference_endpoints(endpoints, published), candidates)
    how = sweep.model_dump_json(exclude={"endpoints", "concurrencies", "rates", "transports"})
    return PerfReport(
        machine,
        published,
        points,
        list(failures.values()),
        data=data_digest(requests),
        settings=fingerprint([how, *sent]),
    )


@contextlib.contextmanager
def _started(names: Sequence[str], sweep: Sweep, workspace: Workspace, folder: Path) -> Iterator[RunningServer]:
    """A server of our own with these endpoints; where TLS is measured, a second one, since gRPC of one is either."""
    with contextlib.ExitStack() as stack:
        encrypted = None
        if TLS_TRANSPORT in sweep.transports:
            certificate, key = self_signed(folder)
            beside = stack.enter_context(serving(names, workspace, tls=ServerTls(certificate, key)))
            encrypted = RunningServer(beside.grpc_url, TLS(certificate))
        shares_memory = any(map(_shares_memory, sweep.transports))
        server = stack.enter_context(serving(names, workspace, open_apis=shares_memory))
        yield RunningServer(server.grpc_url, http_url=server.http_url, encrypted=encrypted, is_ours=True)


def _shares_memory(transport: Transport) -> bool:
    return transport.endswith("shared_memory")


def reference_endpoints(endpoints: Sequence[Endpoint], published: Mapping[str, str]) -> dict[str, str]:
    """Endpoint => the endpoint of its ranker's reference variant, for those that are not the reference.

    Args:
        published: ``rank``, ``recommend`` => the model that it serves.
    """
    reference = {endpoint.recipe.ranker: endpoint.name for endpoint in endpoints if endpoint.is_reference}
    found = {
        endpoint.name: reference[endpoint.recipe.ranker]
        for endpoint in endpoints
        if not endpoint.is_reference and endpoint.recipe.ranker in reference
    }
    for name, model in published.items():
        if f"{name}_{model}" in found:
            found[name] = found[f"{name}_{model}"]
    return found


def measure_rounds(
    server: RunningServer | str, requests_files: Mapping[str, Path], sweep: Sweep, console: Console | None = None
) -> tuple[Rounds, Failures]:
    """Round by round, load by load, all endpoints next to one another in time.

    An endpoint that does not hold a load is left out there, in all rounds: the server refuses requests by design when
    it cannot keep up.

    Args:
        server: or the gRPC address of one of our own, in the clear.
        requests_files: endpoint => what it is asked.
    """
    asked = RunningServer(server, is_ours=True) if isinstance(server, str) else server
    rounds: Rounds = defaultdict(list)
    failures: Failures = {}
    groups = [tuple(requests_files)] if sweep.together else [(name,) for name in requests_files]
    for _, load, group in track(
        list(itertools.product(range(sweep.rounds), sweep.loads, groups)), "perf_analyzer", console
    ):
        left = [name for name in group if (name, load) not in failures]
        for name, found in _measured(asked, {name: requests_files[name] for name in left}, load, sweep).items():
            if isinstance(found, Measurement):
                rounds[name, load].append(found)
            else:
                failures[name, load] = str(found)
                rounds.pop((name, load), None)
    return dict(rounds), failures


def _measured(
    server: RunningServer, files: Mapping[str, Path], load: Load, sweep: Sweep
) -> dict[str, Measurement | AnalyzerError]:
    """Endpoint => its measurement, all of them at the same time; made again while other programs disturb it."""
    if not files:
        return {}
    once = functools.partial(_measured_once, server, files, load, sweep)
    if not server.is_ours:
        return once()
    watched = undisturbed(once)
    return {name: _watched(found, watched) for name, found in watched.found.items()}


def _measured_once(
    server: RunningServer, files: Mapping[str, Path], load: Load, sweep: Sweep
) -> dict[str, Measurement | AnalyzerError]:
    url, tls = server.door(load.transport)

    def of(name: str) -> Measurement | AnalyzerError:
        asked = functools.partial(_asked(load, sweep), url, name, files[name], tls=tls, transport=load.transport)
        try:
            return asked()
        except AnalyzerError as error:
            return error

    with ThreadPoolExecutor(len(files)) as pool:
        return dict(zip(files, pool.map(of, files), strict=True))


def _asked(load: Load, sweep: Sweep) -> Callable[..., Measurement]:
    if load.rate_per_s is not None:
        return functools.partial(measure_poisson, rate_per_s=load.rate_per_s, requests=sweep.requests)
    return functools.partial(measure, concurrency=load.concurrency or 1, window_ms=sweep.window_ms)


def _watched(found: Measurement | AnalyzerError, watched: Watched) -> Measurement | AnalyzerError:
    if isinstance(found, AnalyzerError):
        return found
    return dataclasses.replace(found, foreign_share=watched.foreign_share, runs=watched.runs)


def points_of(rounds: Rounds, references: Mapping[str, str], candidates: Mapping[str, float]) -> list[Point]:
    """Pure: the figures of each endpoint under each load, in the order measured.

    Args:
        references: see :func:`reference_endpoints`.
        candidates: endpoint => of a request, mean.
    """
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
    key: tuple[str, Load],
    found: Sequence[Measurement],
    rounds: Rounds,
    references: Mapping[str, str],
    candidates: Mapping[str, float],
) -> Point:
    endpoint, load = key
    latencies_ms = np.concatenate([measurement.latencies_ms for measurement in found])
    p50_ms, p90_ms, p99_ms = map(float, np.percentile(latencies_ms, PERCENTILES))
    requests_per_s = float(np.median([measurement.requests_per_s for measurement in found]))
    reference = references.get(endpoint)
    shares = [one.foreign_share for one in found if one.foreign_share is not None]
    return Point(
        endpoint=endpoint,
        concurrency=load.concurrency,
        requests=latencies_ms.size,
        p50_ms=p50_ms,
        p90_ms=p90_ms,
        p99_ms=p99_ms,
        requests_per_s=requests_per_s,
        candidates_per_s=requests_per_s * candidates[endpoint],
        candidates=candidates[endpoint],
        reference=reference,
        speedup=_speedup(found, rounds.get((reference, load), [])) if reference else None,
        steps=_median_steps(found),
        repeated=sum(measurement.repeated for measurement in found),
        rate_per_s=load.rate_per_s,
        transport=load.transport,
        intervals=tuple(percentile_interval(latencies_ms, percentile) for percentile in PERCENTILES),
        rounds=tuple(map(_round, found)),
        foreign_share=max(shares, default=None),
        disturbed=sum(share > FOREIGN_SHARE_LIMIT for share in shares),
        reruns=sum(measurement.runs - 1 for measurement in found),
    )


def _round(found: Measurement) -> Round:
    p50_ms, p90_ms, p99_ms = map(float, np.percentile(found.latencies_ms, PERCENTILES))
    return Round(found.latencies_ms.size, p50_ms, p90_ms, p99_ms, found.requests_per_s)


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
    for name in ("steps", "rounds", "intervals"):
        del row[name]
    row |= {f"p{p}_{end}_ms": value for p, ends in zip(PERCENTILES, point.intervals, strict=False)
            for end, value in zip(("low", "high"), ends, strict=True)}  # fmt: skip
    low, middle, high = (
        ("", "", "") if point.speedup is None else (point.speedup[1], point.speedup[0], point.speedup[2])
    )
    return {**row, "speedup": middle, "speedup_low": low, "speedup_high": high}


def _flat_steps(point: Point) -> list[dict[str, object]]:
    key = {"endpoint": point.endpoint, "load": str(point.load)}
    return [{**key, **dataclasses.asdict(step)} for step in point.steps]
