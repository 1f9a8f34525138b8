"""The figures to reach, each with its limit: pre-processing, what serving costs, what INT8 gives, memory.

preprocess  median of the pre-processing of 40 and of 1,024 candidates, from the server's own statistics
latency     a served request over the same model in this process: ONNX Runtime, same threads and padded shape, in turn
int8        requests/s of a variant over its fp32 reference, both as served, rounds in turn; and what NDCG@10 it keeps
broadcast   the part of a request that has no candidate in it, computed once, over repeating it for each candidate
texts       tokenising 100 documents of 128 tokens, as the pre-processing does with texts that a request brings
graphs      exported graphs of the text rankers over a plain export of the same networks, CPU time in this process
prefix      a causal reranker whose prompts' common start is encoded once, over whole prompts; random weights
dcn         a dcn_v2 of 26 sparse and 13 dense fields with 512 candidates, served over in-process; random weights
late        late interaction with 1,000 candidates, token vectors stored in FP32, FP16 and INT8; a random projection
client      what the client adds to a bare tritonclient call, and the memory of 2,000 calls at once
overload    goodput of ``rank`` at three times its capacity over that at capacity, at the client's default deadline
memory      of the server's process tree with two endpoints: idle, at 1,024 candidates, and over 5,000 requests

A ratio is of two things measured next to one another in one run, so a busy machine moves both.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from perf.bench_base import Bench, Figure, figures_table, paired_ms
from perf.bench_cache import bench_cache
from perf.bench_client import bench_client
from perf.bench_dcn import bench_dcn
from perf.bench_graphs import bench_graphs
from perf.bench_late import bench_late
from perf.bench_overload import bench_overload
from perf.bench_prefix import bench_prefix
from perf.bench_split import bench_split
from perf.bench_texts import bench_texts
from perf.bench_tiled import CANDIDATES, gain_of_computing_once
from perf.endpoints import Endpoint, EndpointClient, served_scorers, serving
from perf.errors import PerfError
from perf.inputs import requests_json, write_requests
from perf.kit.data import (
    MAX_CANDIDATES,
    PROJECT,
    USUAL_CANDIDATES,
    JudgedQueries,
    Workspace,
    evaluation_data,
    first_stage,
    load_recipes,
)
from perf.kit.rankers import Ranker
from perf.kit.served import is_fused
from perf.process_memory import TreeMemory, tree_memory
from perf.served_quality import in_process_sessions, offline_ndcg
from perf.server_statistics import ServerStatistics
from perf.sweep import Sweep, measure_rounds, points_of, reference_endpoints

USUAL_LIMIT_MS, LARGEST_LIMIT_MS = 2.0, 20.0
LATENCY_RATIO_LIMIT = 1.10
INT8_SPEEDUP_LIMIT, INT8_NDCG_LIMIT = 1.8, 0.99
ONCE_GAINS = {"sasrec": 10.0, "din": None}
"""Ranker => the least gain; None = told for information."""
MEMORY_LIMIT_GIB, GROWTH_LIMIT = 1.5, 0.03
GIB = 2**30

USUAL_REQUESTS, LARGEST_REQUESTS = 100, 5
PAIRS = 60
SETTLE_S = 0.05
"""Between two runs: ONNX Runtime's threads spin on for a while after a run, and would slow the other process."""
INT8_SWEEP = Sweep(concurrencies=(2,), window_ms=2000, rounds=5)
GROWTH_REQUESTS, GROWTH_FROM, GROWTH_CANDIDATES = 5000, 1000, 8
SAMPLE_EVERY_S = 0.05
ON_ITS_OWN = frozenset({"graphs", "prefix", "dcn", "late", "split", "client"})
"""Parts that make what they measure, and ask for nothing that is published."""


def asks_published(parts: Sequence[str]) -> bool:
    """Whether any of the parts (none = all) measures endpoints that are published here."""
    return not parts or not ON_ITS_OWN.issuperset(parts)


def run_bench(
    parts: Sequence[str],
    judged: JudgedQueries,
    endpoints: Sequence[Endpoint],
    rankers: Mapping[str, Ranker],
    *,
    folder: Path,
    workspace: Workspace = PROJECT,
    console: Console | None = None,
) -> list[Figure]:
    """Measure the parts in order; print each, and one JSON line last.

    Raises:
        PerfError: a part is not known, or there is nothing to measure it on.
    """
    measures: dict[str, Callable[[Bench], list[Figure]]] = {
        "preprocess": bench_preprocess,
        "latency": bench_latency,
        "int8": bench_int8,
        "broadcast": bench_broadcast,
        "texts": bench_texts,
        "graphs": bench_graphs,
        "prefix": bench_prefix,
        "dcn": bench_dcn,
        "late": bench_late,
        "split": bench_split,
        "client": bench_client,
        "overload": bench_overload,
        "cache": bench_cache,
        "memory": bench_memory,
    }
    strangers = [part for part in parts if part not in measures]
    if strangers:
        raise PerfError(f"part {', '.join(strangers)} is not known; wanted of {', '.join(measures)}")
    console = console or Console()
    bench = Bench(judged, first_stage(judged), endpoints, rankers, workspace, console, folder)
    figures = [figure for part in parts or measures for figure in measures[part](bench)]
    console.print(figures_table(figures))
    print(json.dumps([{**dataclasses.asdict(figure), "passed": figure.passed} for figure in figures]))
    return figures


# ---------------------------------------------------------------- pre-processing
def bench_preprocess(bench: Bench) -> list[Figure]:
    """Each ranker's pre-processing within whole requests to its quickest endpoint that is an ensemble: of a fused one
    the server counts no step."""
    fused = [endpoint.name for endpoint in bench.endpoints if is_fused(bench.workspace.repository, endpoint.name)]
    if fused:
        bench.console.print(f"pre-processing is not measured of {', '.join(fused)}: one process runs all of it")
    ensembles = [endpoint for endpoint in bench.endpoints if endpoint.name not in fused]
    quickest = {endpoint.recipe.ranker: endpoint for endpoint in ensembles}  # its last variant
    figures = []
    with serving([endpoint.name for endpoint in quickest.values()], bench.workspace) as server:
        for ranker, endpoint in quickest.items():
            for candidates, count, limit_ms in (
                (USUAL_CANDIDATES, USUAL_REQUESTS, USUAL_LIMIT_MS),
                (MAX_CANDIDATES, LARGEST_REQUESTS, LARGEST_LIMIT_MS),
            ):
                label = f"{ranker}_preprocess, {candidates:,} candidates"
                spans_ms = _preprocess_ms(bench, server.grpc_url, endpoint, candidates, count, label)
                figures.append(
                    Figure(label, float(np.median(spans_ms)), "ms", limit_ms, detail=_spread(spans_ms, "ms"))
                )
    return figures


def _preprocess_ms(bench: Bench, url: str, endpoint: Endpoint, candidates: int, count: int, label: str) -> np.ndarray:
    """float64 [count]: what the server's statistics gained with each request."""
    statistics = ServerStatistics(url, f"{endpoint.recipe.ranker}_preprocess")
    spans_ms = []
    with EndpointClient(url, endpoint.name) as client:
        requests = bench.requests(candidates)
        client.ask(*next(requests))  # the first one opens the item store and fills caches
        for _ in bench.track(range(count), label):
            before = statistics.compute()
            client.ask(*next(requests))
            spans_ms.append(statistics.compute_ms_since(before))
    return np.array(spans_ms)


# ---------------------------------------------------------------- served over in-process
def bench_latency(bench: Bench) -> list[Figure]:
    """Every endpoint with one network: a request through Triton and a run in this process, in turn."""
    chosen = [endpoint for endpoint in bench.endpoints if len(served_scorers(endpoint, bench.workspace)) == 1]
    with serving([endpoint.name for endpoint in chosen], bench.workspace) as server:
        return [_latency_figure(bench, server.grpc_url, endpoint) for endpoint in chosen]


def _latency_figure(bench: Bench, url: str, endpoint: Endpoint) -> Figure:
    ranker = bench.rankers[endpoint.recipe.ranker]
    [(graph, session)] = in_process_sessions(endpoint, ranker, bench.workspace).items()
    pairs_ms = []
    with EndpointClient(url, endpoint.name) as client:
        requests = bench.requests(USUAL_CANDIDATES)
        for index in bench.track(range(PAIRS + 1), f"{endpoint.model}, served and in process"):
            query, ids = next(requests)
            sample = ranker.sample(query, [bench.judged.products[item_id] for item_id in ids])[graph]
            served, in_process = paired_ms(
                lambda query=query, ids=ids: client.ask(query, ids),  # type: ignore[misc]
                lambda sample=sample: session.run(sample),  # type: ignore[misc]
                swap=bool(index % 2),
                settle_s=SETTLE_S,
            )
            pairs_ms.append((served, in_process))
    spans_ms = np.array(pairs_ms[1:])  # the first pair warms up
    ratios = spans_ms[:, 0] / spans_ms[:, 1]
    medians = np.median(spans_ms, axis=0)
    detail = f"served {medians[0]:.1f} ms, in process {medians[1]:.1f} ms, {_spread(ratios, '')}"
    name = f"{endpoint.model}: served over in-process, {USUAL_CANDIDATES} candidates"
    return Figure(name, float(np.median(ratios)), "x", LATENCY_RATIO_LIMIT, detail=detail)


# ---------------------------------------------------------------- INT8
def bench_int8(bench: Bench) -> list[Figure]:
    """Every variant that is not fp32 against its reference, by perf_analyzer."""
    references = reference_endpoints(bench.endpoints, published={})
    variants = [endpoint for endpoint in bench.endpoints if endpoint.name in references]
    if not variants:
        raise PerfError("no variant besides the references is published; 'make quality' says which failed its gate")
    names = list(dict.fromkeys([*(references[endpoint.name] for endpoint in variants), *(e.name for e in variants)]))
    test = bench.judged.subset("test")
    with tempfile.TemporaryDirectory(prefix="tritonrank_perf_") as folder, serving(names, bench.workspace) as server:
        requests_file = Path(folder) / "requests.json"
        write_requests(requests_json(test, bench.order), requests_file)
        rounds, failures = measure_rounds(
            server.grpc_url, dict.fromkeys(names, requests_file), INT8_SWEEP, bench.console
        )
    if failures:
        raise PerfError("; ".join(failures.values()))
    figures = []
    for point in points_of(rounds, references, dict.fromkeys(names, 0.0)):
        if point.speedup is not None:
            endpoint = next(endpoint for endpoint in variants if endpoint.name == point.endpoint)
            figures += [_speedup_figure(endpoint, point.speedup), _ndcg_figure(bench, endpoint)]
    return figures


def _speedup_figure(endpoint: Endpoint, speedup: tuple[float, float, float]) -> Figure:
    concurrency, rounds = INT8_SWEEP.concurrencies[0], INT8_SWEEP.rounds
    detail = f"{rounds} rounds {speedup[1]:.2f} to {speedup[2]:.2f}, {concurrency} requests at once"
    return Figure(f"{endpoint.model}: requests/s over fp32", speedup[0], "x", INT8_SPEEDUP_LIMIT, True, detail)


def _ndcg_figure(bench: Bench, endpoint: Endpoint) -> Figure:
    """Offline figures; that the served ones equal them is a check of the demo."""
    reference = Endpoint(endpoint.recipe, endpoint.recipe.variants[0])
    found, wanted = (offline_ndcg(each, bench.workspace) for each in (endpoint, reference))
    if not found or not wanted:
        raise PerfError(f"{endpoint.model}: no offline NDCG@10 of it or of {reference.model}; run 'make quality'")
    means = [float(np.mean(list(ndcg.values()))) for ndcg in (found, wanted)]
    detail = f"{means[0]:.4f} over {means[1]:.4f}, {len(found)} queries"
    return Figure(f"{endpoint.model}: NDCG@10 over fp32", means[0] / means[1], "x", INT8_NDCG_LIMIT, True, detail)


# ---------------------------------------------------------------- what a request has once
def bench_broadcast(bench: Bench) -> list[Figure]:
    """In this process, see :mod:`perf.bench_tiled`."""
    recipes = load_recipes()
    figures = []
    for name, limit in ONCE_GAINS.items():
        data = evaluation_data(recipes[name].data, bench.folder)
        spans_s = gain_of_computing_once(recipes[name], data)
        gains = spans_s[:, 1] / spans_s[:, 0]
        once_ms, repeated_ms = np.median(spans_s, axis=0) * 1e3
        detail = f"{once_ms:.1f} ms once, {repeated_ms:.1f} ms repeated, {_spread(gains, '')}"
        label = f"{name}: candidates/s over the repeated form, {CANDIDATES} candidates"
        figures.append(Figure(label, float(np.median(gains)), "x", limit, at_least=True, detail=detail))
    return figures


# ---------------------------------------------------------------- memory
def bench_memory(bench: Bench) -> list[Figure]:
    """For each one-network endpoint a server with it and the others' references, as the limit asks.

    The limit is on the sum of RSS over the process tree, which counts shared pages once a process; PSS, which shares
    them out, is told beside it.
    """
    heavy = [endpoint for endpoint in bench.endpoints if len(served_scorers(endpoint, bench.workspace)) == 1]
    light = [endpoint for endpoint in bench.endpoints if endpoint not in heavy and endpoint.is_reference]
    return [figure for endpoint in heavy for figure in _memory_figures(bench, endpoint, light)]


def _memory_figures(bench: Bench, endpoint: Endpoint, others: Sequence[Endpoint]) -> list[Figure]:
    names = [endpoint.name, *(other.name for other in others)]
    with serving(names, bench.workspace) as server:
        idle = tree_memory(server.pid)
        peak = _peak_memory(bench, server.grpc_url, server.pid, names)
        early, late = _growth_memory(bench, server.grpc_url, server.pid, names)
    growth = late.rss_bytes / early.rss_bytes - 1
    return [
        _memory_figure(f"{endpoint.model}: memory when idle", idle),
        _memory_figure(f"{endpoint.model}: highest memory at {MAX_CANDIDATES:,} candidates", peak),
        Figure(
            f"{endpoint.model}: growth from request {GROWTH_FROM:,} to {GROWTH_REQUESTS:,}",
            growth,
            "of RSS",
            GROWTH_LIMIT,
            detail=f"RSS {early.rss_bytes / GIB:.3f} to {late.rss_bytes / GIB:.3f} GiB, "
            f"PSS {early.pss_bytes / GIB:.3f} to {late.pss_bytes / GIB:.3f} GiB",
        ),
    ]


def _memory_figure(name: str, memory: TreeMemory) -> Figure:
    detail = f"sum of RSS of {memory.processes} processes; PSS {memory.pss_bytes / GIB:.3f} GiB"
    return Figure(name, memory.rss_bytes / GIB, "GiB", MEMORY_LIMIT_GIB, detail=detail)


def _peak_memory(bench: Bench, url: str, pid: int, names: Sequence[str]) -> TreeMemory:
    """Highest of the samples taken while each endpoint ranks the largest request twice."""
    samples: list[TreeMemory] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_EVERY_S):
            samples.append(tree_memory(pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        requests = bench.requests(MAX_CANDIDATES)
        for name in bench.track([*names, *names], f"{names[0]}, {MAX_CANDIDATES:,} candidates"):
            with EndpointClient(url, name) as client:
                client.ask(*next(requests))
    finally:
        done.set()
        sampler.join()
    return max([*samples, tree_memory(pid)], key=lambda memory: memory.rss_bytes)


def _growth_memory(bench: Bench, url: str, pid: int, names: Sequence[str]) -> tuple[TreeMemory, TreeMemory]:
    """After GROWTH_FROM requests to every endpoint, and after GROWTH_REQUESTS."""
    requests = bench.requests(GROWTH_CANDIDATES)
    clients = [EndpointClient(url, name) for name in names]
    memory = {}
    for index in bench.track(range(1, GROWTH_REQUESTS + 1), f"{names[0]}, {GROWTH_REQUESTS:,} requests"):
        query, ids = next(requests)
        for client in clients:
            client.ask(query, ids)
        if index in (GROWTH_FROM, GROWTH_REQUESTS):
            memory[index] = tree_memory(pid)
    for client in clients:
        client.close()
    return memory[GROWTH_FROM], memory[GROWTH_REQUESTS]


def _spread(values: np.ndarray, unit: str) -> str:
    low, high = np.percentile(values, (10, 90))
    return f"10th to 90th percentile {low:.2f} to {high:.2f} {unit}".rstrip() + f", n {values.size}"
