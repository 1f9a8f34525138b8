"""What a request costs as the work grows: candidates, the catalogue, requests at once, server processes.

The two-tower's own endpoints on a real Triton, over stores of generated items: speed depends on how many there are, and
not on what they say. Callers ask again as soon as they are answered, from threads of this process, on the machine that
serves; what they cost is in every figure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from rich.console import Console
from tritonrank_client import RankClient, TritonRankError

from perf.endpoints import RANK, first_queries, serving
from perf.errors import PerfError
from perf.kit.data import (
    ITEM_IDS,
    MAX_CANDIDATES,
    PROJECT,
    QUERY,
    REPOSITORY_ROOT,
    USUAL_CANDIDATES,
    JudgedQueries,
    Workspace,
    load_recipe,
)
from perf.kit.rankers import build_ranker, load_ranker, publish
from perf.kit.stores import generated_ids, index_line, steady_writer, write_generated_store
from perf.machine import Machine, this_machine
from perf.process_memory import tree_anonymous_bytes, tree_memory
from perf.progress import track
from server import TritonServer

SCALE_FOLDER = PROJECT.build / "scale"
RECIPE = REPOSITORY_ROOT / "recipes" / "two_tower.toml"
VARIANT, PREPROCESS, SIMILAR = "two_tower_fp32_onnx", "two_tower_preprocess", "similar"
BESIDE_WRITER = "similar beside a writer"
CANDIDATES = (1, 16, USUAL_CANDIDATES, 128, 512, MAX_CANDIDATES)
CONCURRENCY = (1, 4, 16, 64)
WRITTEN_PER_S = 100
TIMEOUT_S = 30.0
BUILT_WITH = 8
WARM_UP = 10
DRAWN = 500
"""Requests that are asked in turn."""
PERCENTILES = (50, 95, 99)


@dataclasses.dataclass(frozen=True)
class Load:
    """What is asked, and how.

    Attributes:
        what: an endpoint, the pre-processing step, or ``similar`` beside a writer of WRITTEN_PER_S items.
        candidates: of a request; 10 answers of ``similar``.
    """

    what: str
    candidates: int = USUAL_CANDIDATES
    concurrency: int = 1


@dataclasses.dataclass(frozen=True)
class ScalePoint:
    """One load on one catalogue and number of server processes.

    Attributes:
        answered: requests that the percentiles are of.
        failed: how other requests ended => how many.
        over_50_ms: of those answered.
    """

    items: int
    processes: int
    load: Load
    answered: int
    failed: dict[str, int]
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    over_50_ms: int
    per_s: float


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """A store and the servers on it.

    Attributes:
        fill_s: to write the store and its index.
        start_s: until the first server was ready.
        server_mb: memory of all processes of the first server, shared pages shared out (PSS), what they looked at of
            the mapped store and index included.
        own_mb: of it what no file stands behind.
        index: how ``similar`` compares.
    """

    items: int
    fill_s: float
    start_s: float
    store_mb: float
    server_mb: float
    own_mb: float
    index: str


@dataclasses.dataclass(frozen=True)
class ScaleReport:
    """All figures, and what they were measured on."""

    machine: Machine
    seconds: float
    catalogues: list[Catalogue]
    points: list[ScalePoint]

    def of(self, what: str, *, processes: int = 1) -> list[ScalePoint]:
        """Points of one thing."""
        return [point for point in self.points if point.load.what == what and point.processes == processes]


def run_scale(
    sizes: Sequence[int], processes: Sequence[int], seconds: float, judged: JudgedQueries, console: Console
) -> ScaleReport:
    """Measure every load on every catalogue, the smallest first. Raises: PerfError: nothing to measure."""
    if not sizes or min(sizes) < MAX_CANDIDATES:
        raise PerfError(f"catalogues of {', '.join(map(str, sizes)) or 'none'} items, wanted {MAX_CANDIDATES} or more")
    catalogues, points = [], []
    with tempfile.TemporaryDirectory(prefix="tritonrank_scale_", dir=_scratch()) as name:
        repository = Path(name) / "model_repository"
        parameters = _publish(repository, judged, console)
        queries = [judged.queries[one] for one in judged.subset("test").queries]
        for items in sorted(sizes):
            store = Path(name) / f"store_{items}"
            console.print(f"{items:,} generated items: filling a store", style="dim")
            start_s = time.monotonic()
            write_generated_store(store, parameters, items)
            fill_s = time.monotonic() - start_s
            for count in processes:
                with _servers(repository, store, count) as (servers, ready_s):
                    urls = [server.grpc_url for server in servers]
                    asked = Asked(urls, items, queries)
                    loads = _loads(count)
                    points += [
                        _measured(asked, load, items, count, seconds, store, parameters)
                        for load in track(loads, f"{items:,} items, {count} servers", console)
                    ]
                    if count == processes[0]:
                        catalogues.append(_catalogue(items, fill_s, ready_s, store, servers[0].pid, parameters))
            shutil.rmtree(store)
    return ScaleReport(this_machine(), seconds, catalogues, points)


def bends(report: ScaleReport) -> list[str]:
    """A sentence for each thing that grows: what it does to the median, from the least to the most of it."""
    said = []
    for what, name in ((PREPROCESS, "pre-processing"), (SIMILAR, "`similar`"), (BESIDE_WRITER, f"`{BESIDE_WRITER}`")):
        alone = [one for one in report.of(what) if one.load == Load(what)]
        if len(alone) > 1:
            said.append(_bend(f"{name}, one request at a time", alone, [f"{one.items:,} items" for one in alone]))
    first = report.catalogues[0].items
    ranked = [one for one in report.of(RANK) if one.items == first]
    wide = [one for one in ranked if one.load.concurrency == 1]
    widths = [f"{one.load.candidates:,} candidates" for one in wide]
    said.append(_bend("`rank`, one request at a time", wide, widths))
    for processes in dict.fromkeys(point.processes for point in report.points):
        for what in (RANK, SIMILAR):
            busy = [one for one in report.of(what, processes=processes) if one.items == report.catalogues[-1].items]
            busy = [one for one in busy if one.load.candidates == USUAL_CANDIDATES]
            if busy:
                best = max(busy, key=lambda one: one.per_s)
                most = max(busy, key=lambda one: one.load.concurrency)
                said.append(
                    f"`{what}` of {best.items:,} items by {processes} server{'s' * (processes > 1)}: most answers, "
                    f"{best.per_s:,.0f} a second, with {best.load.concurrency} at once; with "
                    f"{most.load.concurrency} at once {most.per_s:,.0f} a second, p99 {most.p99_ms:,.0f} ms of n "
                    f"{most.answered:,}, "
                    f"{sum(most.failed.values()):,} refused."
                )
    return said


def _bend(what: str, points: Sequence[ScalePoint], labels: Sequence[str]) -> str:
    first, last = points[0], points[-1]
    return (
        f"{what}: p50 {first.p50_ms:.2f} ms with {labels[0]} (n {first.answered:,}), {last.p50_ms:.2f} ms with "
        f"{labels[-1]} (n {last.answered:,}): {last.p50_ms / max(first.p50_ms, 1e-9):.1f} times; longest of the latter "
        f"{last.max_ms:.0f} ms."
    )


# ---------------------------------------------------------------- what is served
def _scratch() -> Path:
    """On the disk of the project: two million items take 9 GB."""
    SCALE_FOLDER.mkdir(parents=True, exist_ok=True)
    return SCALE_FOLDER


def _publish(repository: Path, judged: JudgedQueries, console: Console) -> dict[str, object]:
    """The two-tower and ``similar``; what they say of the table that they read."""
    workspace = Workspace(_scratch() / "build", repository, repository.with_name("published_with"))
    recipe = load_recipe(RECIPE)
    recipe = recipe.model_copy(update={"variants": recipe.variants[:1]})
    console.print(f"{VARIANT}: building, unless it is kept", style="dim")
    built = build_ranker(recipe, few_queries(judged), lambda _: None, workspace)
    publish([built], "generated items", lambda _: None, workspace, serves={RANK: VARIANT})
    return dict(load_ranker(recipe).preprocess.parameters)


def few_queries(judged: JudgedQueries) -> JudgedQueries:
    """The first test queries with their own candidates: as many as a build needs, since no quality is told."""
    few = first_queries(judged, BUILT_WITH)
    own = {item_id: judged.products[item_id] for grades in few.judgements.values() for item_id in grades}
    return dataclasses.replace(few, products=own)


@contextlib.contextmanager
def _servers(repository: Path, store: Path, count: int) -> Iterator[tuple[list[TritonServer], float]]:
    """So many on one store, and how long the first took until it was ready."""
    with contextlib.ExitStack() as stack:
        servers, ready_s = [], []
        for _ in range(count):
            start_s = time.monotonic()
            served = Workspace(repository=repository, item_store=store)
            servers.append(stack.enter_context(serving([RANK, SIMILAR], served)))
            ready_s.append(time.monotonic() - start_s)
        yield servers, ready_s[0]


def _catalogue(
    items: int, fill_s: float, start_s: float, store: Path, pid: int, parameters: dict[str, object]
) -> Catalogue:
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    memory = tree_memory(pid).pss_bytes
    own = tree_anonymous_bytes(pid)
    return Catalogue(items, fill_s, start_s, size / 1e6, memory / 1e6, own / 1e6, index_line(store, parameters))


# ---------------------------------------------------------------- load
def _loads(processes: int) -> list[Load]:
    """Of one server everything, of several what is asked at once."""
    at_once = [Load(what, concurrency=count) for what in (RANK, SIMILAR) for count in CONCURRENCY]
    if processes > 1:
        return at_once
    wide = [Load(RANK, candidates) for candidates in CANDIDATES if candidates != USUAL_CANDIDATES]
    return sorted([*wide, *at_once, Load(PREPROCESS), Load(BESIDE_WRITER)], key=dataclasses.astuple)


class Asked:
    """Requests of a catalogue, in turn to each of the servers."""

    def __init__(self, urls: Sequence[str], items: int, queries: Sequence[str]) -> None:
        self._urls, self._queries = urls, queries
        draw = random.Random(0)
        ids = generated_ids(items)
        self._lists = [draw.sample(ids, MAX_CANDIDATES) for _ in range(DRAWN)]

    @contextlib.contextmanager
    def asking(self, load: Load) -> Iterator[Callable[[int], object]]:
        """Asks the request of that number."""
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(RankClient(url)) for url in self._urls]
            plain = triton.InferenceServerClient(self._urls[0])
            stack.callback(plain.close)

            def ask(number: int) -> object:
                client, ids = clients[number % len(clients)], self._lists[number % DRAWN]
                query = self._queries[number % len(self._queries)]
                if load.what == RANK:
                    return client.rank(query, ids[: load.candidates], timeout_s=TIMEOUT_S)
                if load.what == PREPROCESS:
                    return plain.infer(PREPROCESS, _tensors(query, ids[: load.candidates]), client_timeout=TIMEOUT_S)
                return client.similar(ids[0], timeout_s=TIMEOUT_S)

            yield ask


def _tensors(query: str, ids: Sequence[str]) -> list[triton.InferInput]:
    made = []
    for name, values in ((QUERY.name, [query]), (ITEM_IDS.name, ids)):
        made.append(triton.InferInput(name, [len(values)], "BYTES"))
        made[-1].set_data_from_numpy(np.array([value.encode() for value in values], dtype=object))
    return made


def _measured(
    asked: Asked,
    load: Load,
    items: int,
    processes: int,
    seconds: float,
    store: Path,
    parameters: dict[str, object],
) -> ScalePoint:
    with contextlib.ExitStack() as stack:
        if load.what == BESIDE_WRITER:
            writer = steady_writer(store, parameters, WRITTEN_PER_S)
            stack.callback(writer.join)
            stack.callback(writer.terminate)
        ask = stack.enter_context(asked.asking(load))
        for number in range(WARM_UP * processes):
            with contextlib.suppress(TritonRankError):
                ask(number)
        spans_ms, failed = timed(ask, load.concurrency, seconds)
    if not spans_ms:
        raise PerfError(f"{load.what} of {items:,} items: no request was answered: {dict(failed)}")
    p50, p95, p99 = np.percentile(spans_ms, PERCENTILES)
    slow = sum(span > 50 for span in spans_ms)
    return ScalePoint(items, processes, load, len(spans_ms), dict(failed), float(p50), float(p95), float(p99),
                      max(spans_ms), slow, len(spans_ms) / seconds)  # fmt: skip


def timed(ask: Callable[[int], object], callers: int, seconds: float) -> tuple[list[float], Counter[str]]:
    """Milliseconds of each request that was answered, and how the others ended; each caller asks once at least."""
    end_s = time.monotonic() + seconds

    def call(first: int) -> tuple[list[float], Counter[str]]:
        spans_ms: list[float] = []
        failed: Counter[str] = Counter()
        for number in itertools.count(first, callers):
            start_s = time.perf_counter()
            try:
                ask(number)
                spans_ms.append((time.perf_counter() - start_s) * 1e3)
            except TritonRankError as error:
                failed[type(error).__name__] += 1
            if time.monotonic() > end_s:
                return spans_ms, failed
        raise AssertionError("counted to the end")

    with ThreadPoolExecutor(callers) as pool:
        ended = list(pool.map(call, range(callers)))
    return [span for spans, _ in ended for span in spans], sum((failed for _, failed in ended), Counter())
