"""What serving a ranker of many fields costs: a ``dcn_v2`` of 26 sparse and 13 dense fields, 512 candidates a request.

The weights are random and the items made up: the figures are of speed only, and say nothing of quality. Items and
users lie in a store of their own, the model in a repository of its own, both temporary and made by the kit; the
pip-only Triton serves them. "In process" is ONNX Runtime on the very file that is served, with the same threads, on
tensors that are made already: everything else that a served request costs counts against serving.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import torch
from rich.console import Console

from perf.analyzer import WINDOWS, measure
from perf.bench_base import Bench, Figure, in_turn, in_turn_ms
from perf.endpoints import Endpoint, EndpointClient
from perf.forms import FUSED, serving_both
from perf.inputs import requests_json, write_requests
from perf.kit.data import CONTEXT, USER_ID, JudgedQueries, Product, Recipe, Request, Serving, Variant, Workspace
from perf.kit.rankers import (
    BuiltRanker,
    DCNv2,
    Feature,
    FeatureRanker,
    Sample,
    build_variants_of,
    dense,
    history,
    publish,
    run_onnx,
    sparse,
)
from perf.progress import track
from server import TritonServer

NAME = "bench_dcn_v2"
CANDIDATES, ITEMS, USERS, REQUESTS = 512, 10_000, 1_000, 50
HISTORY = 50
ITEM_IDS_OF = (10_000, 5_000, 2_000, 1_000, 1_000, 500, 500, 200, 200, 100, 100, 100, 50, 50, 50, 20, 20, 10, 10, 10)
"""Distinct values of each sparse field of an item."""
USER_IDS_OF, CONTEXT_IDS_OF = (1_000, 200, 20), (7, 24)
ITEM_NUMBERS, USER_NUMBERS = 9, 4
EMBEDDING, RANK, HIDDEN = 16, 64, (256, 256, 256)
SERVING = Serving(instances=2, threads=1)
"""Two cores, and a request that one of them answers in milliseconds: more at once beats more threads."""

PROCESSOR_PASSES = 6
"""Over all requests: processor time is counted in steps of 10 ms."""
PAIRS, ROUNDS, WINDOW_MS, CONCURRENCY = 200, 5, 2000, 4
LATENCY_LIMIT_MS, THROUGHPUT_LIMIT = 2.5, 0.8
"""Of the fused form; the ensemble's figures stand beside it."""
SPEED_ONLY = "random weights, made-up items: speed only"


@dataclasses.dataclass(frozen=True)
class Served:
    """One form of the endpoint. url, pid: of its server."""

    form: str
    url: str
    pid: int

    @property
    def limited(self) -> bool:
        """Whether it is the form that shall reach the figures."""
        return self.form == FUSED


@dataclasses.dataclass(frozen=True)
class Bout:
    """What is compared.

    Attributes:
        endpoint: the served one.
        forms: the servers, one a form.
        requests: with their candidates.
        samples: the same requests' tensors, made already.
        sessions: as many as Triton has instances, on the file that it serves.
    """

    endpoint: Endpoint
    forms: Sequence[Served]
    requests: list[tuple[Request, list[str]]]
    samples: list[Sample]
    sessions: Sequence[onnxruntime.InferenceSession]
    console: Console


def bench_dcn(bench: Bench) -> list[Figure]:
    """Both served forms against in-process: p50 at concurrency 1, requests/s at concurrency 4, processor time.

    Raises:
        AnalyzerError, ServerError: nothing to measure with.
    """
    with tempfile.TemporaryDirectory(prefix="tritonrank_dcn_") as name:
        folder = Path(name)
        workspace = Workspace(folder / "build", folder / "model_repository", folder / "item_store")
        built = build(workspace, bench.console)
        endpoint = Endpoint(built.recipe, built.recipe.variants[0], built.ranker.endpoint.name)
        requests_file = folder / "requests.json"
        write_requests(perf_analyzer_requests(built.data), requests_file)
        with serving_both(endpoint, workspace) as servers:
            bout = _bout(built, endpoint, servers, bench.console)
            return [*latency_figures(bout), *throughput_figures(bout, requests_file), *processor_figures(bout)]


def _bout(built: BuiltRanker, endpoint: Endpoint, servers: Mapping[str, TritonServer], console: Console) -> Bout:
    [(_, onnx_file)] = built.variants[0].models.values()
    data = built.data
    requests = [(data.request(query_id), list(grades)) for query_id, grades in data.judgements.items()]
    samples = [
        built.ranker.sample(request, [data.products[item_id] for item_id in item_ids])[NAME]
        for request, item_ids in requests
    ]
    sessions = [_session(onnx_file) for _ in range(SERVING.instances)]
    forms = [Served(form, server.grpc_url, server.pid) for form, server in servers.items()]
    return Bout(endpoint, forms, requests, samples, sessions, console)


def _session(onnx_file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = SERVING.threads, 1
    return onnxruntime.InferenceSession(onnx_file, options)


# ---------------------------------------------------------------- latency, one request at a time
def latency_figures(bout: Bout) -> list[Figure]:
    """Each request served in each form and run in this process, in turn."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(EndpointClient(served.url, bout.endpoint.name)) for served in bout.forms]
        _turn_ms(bout, clients, 0)  # warms up
        turns = track(range(PAIRS), "served and in process", bout.console)
        turns_ms = np.array([_turn_ms(bout, clients, index) for index in turns])
    *served_ms, in_process = np.median(turns_ms, axis=0)
    return [
        Figure(
            f"{NAME}: {served.form} p50 minus in-process p50, {CANDIDATES} candidates",
            float(found - in_process),
            "ms",
            LATENCY_LIMIT_MS if served.limited else None,
            detail=f"served {found:.2f} ms, in process {in_process:.2f} ms, {PAIRS} turns; {SPEED_ONLY}",
        )
        for served, found in zip(bout.forms, served_ms, strict=True)
    ]


def _turn_ms(bout: Bout, clients: Sequence[EndpointClient], index: int) -> list[float]:
    """Of each form, then in process; another one goes first every time."""
    request, item_ids = bout.requests[index % len(bout.requests)]
    sample = bout.samples[index % len(bout.samples)]
    calls: list[Callable[[], object]] = [functools.partial(client.ask, request, item_ids) for client in clients]
    calls.append(functools.partial(run_onnx, bout.sessions[0], sample))
    return in_turn_ms(calls, first=index)


# ---------------------------------------------------------------- throughput, four at a time
def throughput_figures(bout: Bout, requests_file: Path) -> list[Figure]:
    """Rounds of perf_analyzer on each server and of as many threads on the sessions, in turn."""
    rounds: list[list[float]] = []
    for round_ in track(range(ROUNDS), f"{CONCURRENCY} requests at once", bout.console):
        calls: list[Callable[[], float]] = [
            functools.partial(_served_requests_per_s, served, bout.endpoint.name, requests_file)
            for served in bout.forms
        ]
        calls.append(functools.partial(in_process_requests_per_s, bout))
        rounds.append(in_turn(calls, first=round_))
    *served_per_s, in_process = np.array(rounds).T
    return [
        Figure(
            f"{NAME}: {served.form} requests/s over in-process, {CONCURRENCY} at once, {CANDIDATES} candidates",
            float(np.median(found / in_process)),
            "x",
            THROUGHPUT_LIMIT if served.limited else None,
            at_least=True,
            detail=f"served {np.median(found):.0f}/s, in process {np.median(in_process):.0f}/s, {ROUNDS} rounds "
            f"{(found / in_process).min():.2f} to {(found / in_process).max():.2f}, {SERVING.instances} instances of "
            f"{SERVING.threads} thread; {SPEED_ONLY}",
        )
        for served, found in zip(bout.forms, served_per_s, strict=True)
    ]


def _served_requests_per_s(served: Served, endpoint: str, requests_file: Path) -> float:
    found = measure(served.url, endpoint, requests_file, concurrency=CONCURRENCY, window_ms=WINDOW_MS)
    return found.requests_per_s


def in_process_requests_per_s(bout: Bout) -> float:
    """CONCURRENCY threads, shared out over the sessions, for as long as perf_analyzer measures."""
    end_s = time.perf_counter() + WINDOW_MS * WINDOWS / 1e3

    def run(worker: int) -> int:
        session, samples = bout.sessions[worker % len(bout.sessions)], itertools.cycle(bout.samples)
        count = 0
        while time.perf_counter() < end_s:
            run_onnx(session, next(samples))
            count += 1
        return count

    start_s = time.perf_counter()
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        count = sum(pool.map(run, range(CONCURRENCY)))
    return count / (time.perf_counter() - start_s)


# ---------------------------------------------------------------- processor time
def processor_figures(bout: Bout) -> list[Figure]:
    """Of all of a server's processes for one request, beside that of a run in this process.

    On a machine that others use too, this alone tells the cost: the more processes a side has, the more of a busy
    machine it is given. Where all cores are at work, in-process over served is what the throughput can reach.
    """
    count = PROCESSOR_PASSES * len(bout.requests)
    served_ms = [_processor_ms(served, bout) for served in bout.forms]
    start_s = time.thread_time()
    for sample in bout.samples * PROCESSOR_PASSES:
        run_onnx(bout.sessions[0], sample)
    in_process_ms = (time.thread_time() - start_s) / count * 1e3
    return [
        Figure(
            f"{NAME}: processor time of a {served.form} request, {CANDIDATES} candidates",
            found,
            "ms",
            detail=f"all processes of the server; in process {in_process_ms:.2f} ms, {in_process_ms / found:.2f} of "
            f"it; n {count}; {SPEED_ONLY}",
        )
        for served, found in zip(bout.forms, served_ms, strict=True)
    ]


def _processor_ms(served: Served, bout: Bout) -> float:
    asked = bout.requests * PROCESSOR_PASSES
    with EndpointClient(served.url, bout.endpoint.name) as client:
        start_s = processor_s(served.pid)
        for request, item_ids in asked:
            client.ask(request, item_ids)
        return (processor_s(served.pid) - start_s) / len(asked) * 1e3


def processor_s(pid: int) -> float:
    """User and system time of a process and all its descendants so far."""
    root = psutil.Process(pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return sum(each.user + each.system for each in times)


# ---------------------------------------------------------------- what is measured
def perf_analyzer_requests(data: JudgedQueries) -> dict[str, Any]:
    """Histories and candidates, with each request's user and context besides."""
    lists = {query_id: list(grades) for query_id, grades in data.judgements.items()}
    content = requests_json(data, lists)
    for row, query_id in zip(content["data"], data.queries, strict=True):
        request = data.request(query_id)
        row[USER_ID.name] = {"content": [request.user_id], "shape": [1]}
        row[CONTEXT.name] = {"content": [json.dumps(request.context)], "shape": [1]}
    return content


def features() -> tuple[Feature, ...]:
    """26 sparse fields, one of them the history's ids, and 13 dense ones: of items, users and the request."""
    return (
        sparse("item_values", _names("item_value", ITEM_IDS_OF), vocabularies=_vocabularies(ITEM_IDS_OF)),
        dense("item_numbers", _names("item_number", range(ITEM_NUMBERS))),
        sparse("user_values", _names("user_value", USER_IDS_OF), "user", vocabularies=_vocabularies(USER_IDS_OF)),
        dense("user_numbers", _names("user_number", range(USER_NUMBERS)), "user"),
        sparse("moment", _names("moment", CONTEXT_IDS_OF), "context", vocabularies=_vocabularies(CONTEXT_IDS_OF)),
        history("bought", HISTORY, [_item_id(number) for number in range(ITEMS)]),
    )


def made_up_data() -> JudgedQueries:
    """Requests of :data:`CANDIDATES` items each; grades mean nothing."""
    draw = random.Random(0)
    products = {
        _item_id(number): Product(
            _item_id(number),
            f"item {number}",
            fields=_values(draw, "item_value", ITEM_IDS_OF) | _numbers(draw, "item_number", ITEM_NUMBERS),
        )
        for number in range(ITEMS)
    }
    users = {
        f"user {number}": _values(draw, "user_value", USER_IDS_OF) | _numbers(draw, "user_number", USER_NUMBERS)
        for number in range(USERS)
    }
    requests = {
        f"request {number}": Request(
            history=tuple(draw.sample(list(products), HISTORY)),
            user_id=user_id,
            user=users[user_id],
            context=_values(draw, "moment", CONTEXT_IDS_OF),
        )
        for number, user_id in enumerate(draw.sample(list(users), REQUESTS))
    }
    judgements = {request: dict.fromkeys(draw.sample(list(products), CANDIDATES), 0) for request in requests}
    for grades in judgements.values():
        grades[next(iter(grades))] = 3
    return JudgedQueries(dict.fromkeys(requests, ""), products, judgements, requests, users)


def build(workspace: Workspace, console: Console) -> BuiltRanker:
    """Export, check, publish and fill the store, by the kit's own functions."""
    torch.manual_seed(0)
    network = DCNv2(features(), embedding=EMBEDDING, cross_layers=3, rank=RANK, hidden=HIDDEN)
    recipe = Recipe(
        ranker=NAME,
        module="builders/rankers/dcn_v2.py:DCNv2",
        data="purchases",
        variants=(Variant(name="fp32_onnx"),),
        serving=SERVING,
    )
    ranker, data = FeatureRanker(NAME, network), made_up_data()

    def say(line: str) -> None:
        console.print(line, style="dim")

    built = build_variants_of(recipe, ranker, data, say, workspace)
    publish([built], SPEED_ONLY, say, workspace)
    return built


def _item_id(number: int) -> str:
    return f"item-{number:06d}"


def _names(prefix: str, of: Iterable[int]) -> list[str]:
    return [f"{prefix}_{column}" for column, _ in enumerate(of)]


def _vocabularies(sizes: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"value {value}" for value in range(size)) for size in sizes)


def _values(draw: random.Random, prefix: str, sizes: tuple[int, ...]) -> dict[str, object]:
    return {name: f"value {draw.randrange(size)}" for name, size in zip(_names(prefix, sizes), sizes, strict=True)}


def _numbers(draw: random.Random, prefix: str, count: int) -> dict[str, object]:
    return {name: draw.gauss(0, 1) for name in _names(prefix, range(count))}
