"""The highest rate of requests at random (Poisson) times at which a variant holds a latency limit.

Bisection over rates. Each rate is tried until most of ``TRIALS`` trials agree, each with arrivals of its own; a trial
holds where the percentile of its requests' latencies is within the limit and no request failed. Variants take turns,
trial by trial, so that what changes on the machine meets all of them. Trials are kept as soon as they are finished,
under all that their figures depend on: a search that was cut goes on where it stopped.
"""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.io
import pydantic
from rich.console import Console
from rich.table import Table

from perf.analyzer import (
    WARM_UP_REQUESTS,
    Measurement,
    RequestsFailed,
    measure,
    measure_poisson,
)
from perf.endpoint_requests import JudgedOf, named_endpoints, write_endpoint_requests
from perf.endpoints import RANK, Endpoint, serving
from perf.foreign_load import FOREIGN_SHARE_LIMIT, undisturbed
from perf.kit.data import PROJECT, Workspace, write_atomically
from perf.machine import Machine, this_machine
from perf.percentiles import percentile_interval, requests_for
from perf.plots import PLOT_CONFIG, UnderLoad, load_figure
from perf.served_inputs import figures_key
from perf.tables import foreign_text

TRIALS = 3
"""Of a rate at most; two that agree decide."""
RESOLUTION = 0.05
"""Of the rate: how near the highest that holds and the lowest that does not come to each other."""
RAISED = 1.5
"""The next rate where what was thought the highest holds, over it."""
LEAST_SHARE = 1 / 32
"""Of what a closed loop reaches; below it the search gives up."""
CAPACITY_CONCURRENCY, CAPACITY_WINDOW_MS = 4, 1000
DIGITS = 3


class Limit(pydantic.BaseModel):
    """What is to hold: at most ``ms`` at the percentile, judged by ``requests`` requests a trial."""

    model_config = pydantic.ConfigDict(frozen=True)
    ms: pydantic.PositiveFloat
    percentile: float = pydantic.Field(99.0, ge=50, lt=100)

    @property
    def requests(self) -> int:
        """Of a trial: 30 beyond the percentile."""
        return requests_for(self.percentile)

    @property
    def name(self) -> str:
        """Such as ``p99``."""
        return f"p{self.percentile:g}"


class Trial(pydantic.BaseModel):
    """One rate, once.

    Attributes:
        rate_per_s, sent_per_s: asked for, and sent.
        requests: counted; 0 where one failed.
        p50_ms, limited_ms: of their latencies, client side; the second at the limit's percentile. None as above.
        low_ms, high_ms: interval of ``limited_ms``, 95%, by order statistics.
        queue_ms, compute_ms: of all steps together, mean.
        why: it did not hold; "" where it did.
        foreign_share: of the machine's processor time that other programs took, 0 to 1.
        runs: it is the least disturbed of so many.
    """

    rate_per_s: float
    sent_per_s: float | None = None
    requests: int = 0
    p50_ms: float | None = None
    limited_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    queue_ms: float | None = None
    compute_ms: float | None = None
    held: bool
    why: str = ""
    foreign_share: float
    runs: int

    @property
    def disturbed(self) -> bool:
        """Although it was run again."""
        return self.foreign_share > FOREIGN_SHARE_LIMIT


class SloReport(pydantic.BaseModel):
    """A variant's search.

    Attributes:
        key: fingerprint of all that the figures depend on.
        data: digest of the judged data.
        candidates: of a request, mean.
        capacity_per_s: what a closed loop reached, from which the search starts.
    """

    endpoint: str
    limit: Limit
    key: str
    machine: Machine
    data: str
    candidates: float
    written: str
    capacity_per_s: float = 0.0
    trials: list[Trial] = []

    @property
    def search(self) -> Search:
        """What is known, and what to try next."""
        return Search(self.capacity_per_s, self.trials)


class Search:
    """Bisection over rates, from trials that were made; keeps nothing itself."""

    def __init__(self, capacity_per_s: float, trials: Sequence[Trial]) -> None:
        self.capacity_per_s = capacity_per_s
        self.held: dict[float, list[bool]] = {}
        for trial in trials:
            self.held.setdefault(trial.rate_per_s, []).append(trial.held)

    def next_rate(self) -> float | None:
        """Requests/s to try next; None where the search is finished."""
        open_ = [rate for rate in self.held if self._verdict(rate) is None]
        if open_:
            return open_[0]
        low, high = self.highest_held, self._lowest_broken()
        if high is None:
            return _rounded(self._above(low))
        if (not low and high <= self.capacity_per_s * LEAST_SHARE) or high - low <= RESOLUTION * high:
            return None
        middle = _rounded((low + high) / 2)
        return None if middle in self.held else middle

    @property
    def highest_held(self) -> float:
        """Requests/s; 0 where no rate held."""
        broken = self._lowest_broken()
        return max((r for r in self.held if self._verdict(r) and (broken is None or r < broken)), default=0.0)

    @property
    def interval(self) -> tuple[float, float | None]:
        """The highest rate up to which every trial held, and the lowest from which on none did (None: no such rate)."""
        low, high = 0.0, None
        for rate in sorted(self.held):
            if not all(self.held[rate]):
                break
            low = rate
        for rate in sorted(self.held, reverse=True):
            if any(self.held[rate]):
                break
            high = rate
        return low, high

    def _above(self, low: float) -> float:
        """While no rate has broken: half of what a closed loop reached, all of it, and ever more."""
        if not low:
            return self.capacity_per_s / 2
        return self.capacity_per_s if low < self.capacity_per_s else low * RAISED

    def _lowest_broken(self) -> float | None:
        return min((rate for rate in self.held if self._verdict(rate) is False), default=None)

    def _verdict(self, rate: float) -> bool | None:
        """What most of ``TRIALS`` said; None where one more can turn it."""
        found = self.held[rate]
        needed = TRIALS // 2 + 1
        return True if sum(found) >= needed else False if len(found) - sum(found) >= needed else None


def _rounded(rate_per_s: float) -> float:
    return float(f"{rate_per_s:.{DIGITS}g}")


# ---------------------------------------------------------------- measuring
def run_slo(
    variants: Sequence[str],
    limit: Limit,
    judged_of: JudgedOf,
    endpoints: Sequence[Endpoint],
    *,
    fresh: bool = False,
    workspace: Workspace = PROJECT,
    console: Console | None = None,
) -> list[tuple[SloReport, Path]]:
    """Search each variant's rate, all in one server of our own, in turns.

    Args:
        variants: model or endpoint names; none = ``rank``.
        judged_of: a recipe's ``data`` => what is judged on it.
        fresh: measure again what is kept.

    Returns:
        Reports with where each is kept; its plot lies beside it.

    Raises:
        PerfError: a variant is not published, or perf_analyzer fails.
        ServerError: the server does not start.
    """
    console = console or Console()
    names = named_endpoints(variants or [RANK], endpoints, workspace)
    with tempfile.TemporaryDirectory(prefix="tritonrank_slo_") as folder:
        requests = write_endpoint_requests(names, endpoints, judged_of, workspace, Path(folder))
        kept = {}
        for name, asked in requests.items():
            empty = SloReport(
                endpoint=name,
                limit=limit,
                key=_key(name, asked.file, limit, workspace),
                machine=this_machine(),
                data=asked.data,
                candidates=asked.candidates,
                written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            )
            path = slo_file(empty, workspace)
            kept[path] = empty if fresh else read_slo(path) or empty
        if any(report.search.next_rate() is not None or not report.trials for report in kept.values()):
            with serving(names, workspace) as server:
                search_all(server.grpc_url, kept, {name: asked.file for name, asked in requests.items()}, console)
    for path, report in kept.items():
        figure = load_figure([_under_load(report, trial) for trial in report.trials if trial.requests], limit.name)
        write_atomically(path.with_suffix(".html"), plotly.io.to_html(figure, config=PLOT_CONFIG))
    return [(report, path) for path, report in kept.items()]


def search_all(
    url: str,
    kept: Mapping[Path, SloReport],
    requests_files: Mapping[str, Path],
    console: Console,
) -> None:
    """One trial of each variant whose search is not finished, in turn, until none is left; writes each into its file.

    Args:
        requests_files: endpoint => what it is asked.

    Raises:
        PerfError: perf_analyzer fails, or requests fail while nothing else is asked.
    """
    for path, report in kept.items():
        if not report.capacity_per_s:
            report.capacity_per_s = _capacity(url, report, requests_files[report.endpoint])
            console.print(f"{report.endpoint}: {report.capacity_per_s:.1f}/s in a closed loop", style="dim")
            write_atomically(path, report.model_dump_json(indent=2) + "\n")
    while asked := {path: rate for path, one in kept.items() if (rate := one.search.next_rate()) is not None}:
        for path, rate in asked.items():
            report = kept[path]
            seconds = (report.limit.requests + WARM_UP_REQUESTS) / rate
            console.print(
                f"{report.endpoint}: {rate:g}/s, {report.limit.requests:,} requests, {seconds:.0f} s", style="dim"
            )
            trial = _tried(url, report, rate, requests_files[report.endpoint])
            report.trials.append(trial)
            write_atomically(path, report.model_dump_json(indent=2) + "\n")
            console.print(f"{report.endpoint}: {trial_text(trial, report.limit)}", style="dim", soft_wrap=True)


def _capacity(url: str, report: SloReport, requests_file: Path) -> float:
    found = measure(
        url,
        report.endpoint,
        requests_file,
        concurrency=CAPACITY_CONCURRENCY,
        window_ms=CAPACITY_WINDOW_MS,
    )
    return _rounded(found.requests_per_s)


def _tried(url: str, report: SloReport, rate_per_s: float, requests_file: Path) -> Trial:
    seed = sum(trial.rate_per_s == rate_per_s for trial in report.trials)  # the same arrivals for every variant

    def once() -> Measurement | RequestsFailed:
        try:
            return measure_poisson(
                url,
                report.endpoint,
                requests_file,
                rate_per_s=rate_per_s,
                requests=report.limit.requests,
                seed=seed,
            )
        except RequestsFailed as error:
            return error

    watched = undisturbed(once)
    return judged_trial(rate_per_s, report.limit, watched.found, watched.foreign_share, watched.runs)


def judged_trial(
    rate_per_s: float, limit: Limit, found: Measurement | RequestsFailed, foreign_share: float, runs: int
) -> Trial:
    """Whether the limit held. Pure."""
    if isinstance(found, RequestsFailed):
        return Trial(rate_per_s=rate_per_s, held=False, why=str(found), foreign_share=foreign_share, runs=runs)
    p50_ms, limited_ms = map(float, np.percentile(found.latencies_ms, (50, limit.percentile)))
    low_ms, high_ms = percentile_interval(found.latencies_ms, limit.percentile)
    held = limited_ms <= limit.ms
    return Trial(
        rate_per_s=rate_per_s,
        sent_per_s=found.sent_per_s,
        requests=found.latencies_ms.size,
        p50_ms=p50_ms,
        limited_ms=limited_ms,
        low_ms=low_ms,
        high_ms=high_ms,
        queue_ms=sum(step.queue_ms for step in found.steps),
        compute_ms=sum(step.compute_ms for step in found.steps),
        held=held,
        why="" if held else f"{limit.name} {limited_ms:.1f} ms > {limit.ms:g} ms",
        foreign_share=foreign_share,
        runs=runs,
    )


# ---------------------------------------------------------------- kept
def slo_file(report: SloReport, workspace: Workspace = PROJECT) -> Path:
    """``build/slo/<endpoint>-<percentile>-<limit>ms-<fingerprint>.json``."""
    return workspace.build / "slo" / f"{report.endpoint}-{report.limit.name}-{report.limit.ms:g}ms-{report.key}.json"


def read_slo(path: Path) -> SloReport | None:
    """What is kept there; None where there is nothing, or nothing of this form."""
    try:
        return SloReport.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, pydantic.ValidationError):
        return None


def _key(name: str, requests_file: Path, limit: Limit, workspace: Workspace) -> str:
    settings = [limit.model_dump_json(), json.dumps([TRIALS, RESOLUTION, WARM_UP_REQUESTS])]
    return figures_key(workspace.repository, name, requests_file, this_machine(), settings)


# ---------------------------------------------------------------- told
def result_text(report: SloReport) -> str:
    """The answer in one line."""
    search, limit = report.search, report.limit
    low, high = search.interval
    if not search.highest_held:
        return f"{report.endpoint}: no rate held {limit.name} <= {limit.ms:g} ms, down to {min(search.held):g}/s"
    upper = "not found" if high is None else f"{high:g}/s"
    return (
        f"{report.endpoint} holds {limit.name} <= {limit.ms:g} ms at {search.highest_held:g} requests/s "
        f"(every trial held up to {low:g}/s, none from {upper}; {limit.requests:,} requests a trial of "
        f"{report.candidates:.0f} candidates)"
    )


def trial_text(trial: Trial, limit: Limit) -> str:
    """A trial in one line."""
    verdict = "held" if trial.held else f"not held: {trial.why}"
    figures = f", {limit.name} {trial.limited_ms:.1f} ms of {trial.requests:,}" if trial.limited_ms is not None else ""
    others = f"other programs {foreign_text(trial.foreign_share, trial.runs)}"
    return f"{trial.rate_per_s:g}/s{figures}, {others}, {verdict}"


def _under_load(report: SloReport, trial: Trial) -> UnderLoad:
    """Of a trial that has figures."""
    assert trial.p50_ms is not None and trial.limited_ms is not None
    return UnderLoad(
        series=report.endpoint,
        requests_per_s=trial.sent_per_s or trial.rate_per_s,
        requests=trial.requests,
        p50_ms=trial.p50_ms,
        high_ms=trial.limited_ms,
        queue_ms=trial.queue_ms,
        compute_ms=trial.compute_ms,
        label=f"{trial.rate_per_s:g}/s, {'held' if trial.held else 'not held'}",
    )


def slo_table(report: SloReport) -> Table:
    """Every trial, by rate."""
    limit = report.limit
    table = Table(title=f"{report.endpoint}: {limit.name} of {limit.ms:g} ms, open loop", title_justify="left")
    for heading in ("requests/s", "requests", "p50 ms", f"{limit.name} ms [95%]", "queue ms", "compute ms"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("other programs", overflow="fold")
    table.add_column("", overflow="fold")
    for trial in sorted(report.trials, key=lambda trial: trial.rate_per_s):
        table.add_row(
            f"{trial.rate_per_s:g}",
            f"{trial.requests:,}",
            _ms(trial.p50_ms),
            f"{_ms(trial.limited_ms)} [{_ms(trial.low_ms)}, {_ms(trial.high_ms)}]",
            _ms(trial.queue_ms),
            _ms(trial.compute_ms),
            foreign_text(trial.foreign_share, trial.runs),
            "held" if trial.held else trial.why,
        )
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
