"""Instances and threads of a machine, chosen by measuring: ``python -m perf tune MACHINE``.

The CPUs that this process may use are split into instances of equally many threads in every way that leaves none idle.
Each split is served in turn, in interleaved rounds, by the machine's own configuration, and asked by one caller (how
long does a request take?) and by twice as many callers as there are CPUs (how many a second?).
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
from rich.console import Console
from rich.table import Table

from perf.endpoints import Endpoint, EndpointClient, serving
from perf.kit.data import PROJECT, USUAL_CANDIDATES, Request, Workspace, evaluation_data
from perf.kit.served import tune_machine

WARM_UP_S = 1.0
AS_GOOD = 0.95
"""Of splits with at least this share of the highest rate the one is chosen that answers one caller soonest."""

Asked = Sequence[tuple[Request, list[str]]]


@dataclasses.dataclass(frozen=True, order=True)
class Split:
    """So many instances of so many threads."""

    instances: int
    threads: int

    def __str__(self) -> str:
        return f"{self.instances} x {self.threads}"


@dataclasses.dataclass
class Measured:
    """Of one split. rates_per_s: one a round, of many callers. latencies_ms: of one caller, all rounds."""

    rates_per_s: list[float] = dataclasses.field(default_factory=list)
    latencies_ms: list[float] = dataclasses.field(default_factory=list)
    requests: int = 0

    @property
    def rate_per_s(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rates_per_s)

    @property
    def p50_ms(self) -> float:
        """Of one caller."""
        return statistics.median(self.latencies_ms)


def usable_cpus() -> int:
    """CPUs that this process may use: by affinity and by its cgroup's quota, as joblib reads them; 1 at least."""
    return int(joblib.cpu_count())


def splits(cpus: int) -> list[Split]:
    """Every way to use all of them, the fewest instances first."""
    return [Split(count, cpus // count) for count in range(1, cpus + 1) if cpus % count == 0]


def run_tune(
    machine: str,
    endpoint: Endpoint,
    folder: Path,
    console: Console,
    *,
    rounds: int = 3,
    seconds: float = 5.0,
    workspace: Workspace = PROJECT,
) -> Split:
    """Measure every split, write the chosen one to the machine's configurations, print all.

    Args:
        machine: name of the configurations, as for ``builders tune``. It holds the split that was tried last where this
            is stopped half-way.
        folder: of the data that the requests come from.
        seconds: of each of the two measurements of a split in a round.

    Raises:
        PerfError, ServerError: the server does not start, or does not answer.
    """
    cpus = usable_cpus()
    requests = _requests(endpoint, folder)
    found = {split: Measured() for split in splits(cpus)}
    for number, split in itertools.product(range(rounds), found):
        console.print(f"round {number + 1} of {rounds}: {split}", markup=False)
        tune_machine(workspace.repository, machine, split.instances, split.threads)
        with (
            serving([endpoint.name], workspace, config_name=machine) as server,
            EndpointClient(server.grpc_url, endpoint.name) as client,
        ):
            _measure(found[split], client, requests, callers=2 * cpus, seconds=seconds)
    chosen = choose(found)
    tune_machine(workspace.repository, machine, chosen.instances, chosen.threads)
    console.print(_table(found, chosen, endpoint.name, cpus))
    console.print(f"configs/{machine}.pbtxt: {chosen} of every scorer; 'make serve CONFIG={machine}' serves them")
    return chosen


def choose(found: dict[Split, Measured]) -> Split:
    """The highest rate, or what is nearly as high and answers one caller sooner."""
    highest = max(measured.rate_per_s for measured in found.values())
    good = {split: measured for split, measured in found.items() if measured.rate_per_s >= AS_GOOD * highest}
    return min(good, key=lambda split: good[split].p50_ms)


def _requests(endpoint: Endpoint, folder: Path) -> Asked:
    """Test queries with their own candidates, filled up from the catalogue."""
    judged = evaluation_data(endpoint.recipe.data, folder)
    test = judged.subset("test")
    asked = []
    for query_id in itertools.islice(test.queries, 100):
        ids = dict.fromkeys([*test.judgements[query_id], *itertools.islice(judged.products, USUAL_CANDIDATES)])
        asked.append((judged.request(query_id), list(ids)[:USUAL_CANDIDATES]))
    return asked


def _measure(found: Measured, client: EndpointClient, requests: Asked, *, callers: int, seconds: float) -> None:
    for _ in _until(WARM_UP_S, client, requests):
        pass
    found.latencies_ms += [1000 * taken_s for taken_s in _until(seconds, client, requests)]
    with ThreadPoolExecutor(callers) as pool:
        start_s = time.monotonic()
        counts = pool.map(lambda first: sum(1 for _ in _until(seconds, client, requests, first)), range(callers))
        answers = sum(counts)
        found.rates_per_s.append(answers / (time.monotonic() - start_s))
    found.requests += answers


def _until(seconds: float, client: EndpointClient, requests: Asked, first: int = 0) -> Iterator[float]:
    """Ask one after the other for so long, once at least; seconds that each took."""
    end_s = time.monotonic() + seconds
    for request, item_ids in itertools.islice(itertools.cycle(requests), first, None):
        start_s = time.monotonic()
        client.ask(request, item_ids)
        yield time.monotonic() - start_s
        if time.monotonic() >= end_s:
            return


def _table(found: dict[Split, Measured], chosen: Split, name: str, cpus: int) -> Table:
    table = Table(title=f"{name} on {cpus} CPUs: instances x threads", title_justify="left")
    for heading in ("split", "rate, 1/s", "of", "p50 of one caller, ms", "p90", "of", ""):
        table.add_column(heading, justify="right")
    for split, measured in found.items():
        table.add_row(
            str(split),
            f"{measured.rate_per_s:.1f}",
            f"{measured.requests} requests, {len(measured.rates_per_s)} rounds",
            f"{measured.p50_ms:.1f}",
            f"{np.quantile(measured.latencies_ms, 0.9):.1f}",
            f"{len(measured.latencies_ms)} requests",
            "chosen" if split == chosen else "",
        )
    return table
