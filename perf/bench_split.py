"""What item states computed ahead are worth as served: the same encoder whole and split, late interaction beside them.

All are of the packaged all-MiniLM-L6-v2 and answer the same real requests in turn, round by round, one request at a
time. The measure of each is sentence-transformers' CrossEncoder of that encoder in this process, torch in FP32, as its
documentation runs it. Items lie in a store of their own, models in a repository of their own, both temporary.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perf.bench_base import Bench, Figure, quiet
from perf.bench_late import write_checkpoint
from perf.endpoints import Endpoint, EndpointClient, first_queries, serving
from perf.kit.data import REPOSITORY_ROOT, JudgedQueries, Recipe, Request, Variant, Workspace, load_recipe
from perf.kit.rankers import BuiltRanker, build_ranker, packaged_backbone, publish

QUERIES, ROUNDS, WARM_UP = 30, 5, 3
THREADS = 2
LISTS = 5
"""Unjudged ones of a variant's gate, whose figures nobody reads here."""
SPLIT_GAIN = 12.0
PEER = "sentence-transformers, torch FP32, in process"
VARIANTS = ("fp32_onnx", "int8_openvino", "channels75_onnx")
Ask = Callable[[Request, Sequence[str]], object]


def bench_split(bench: Bench) -> list[Figure]:
    """Candidates/s of each over the peer's of the same round: median, lowest and highest.

    Raises:
        ServerError: nothing to measure with.
    """
    with tempfile.TemporaryDirectory(prefix="tritonrank_split_") as name:
        folder = Path(name)
        workspace = Workspace(folder / "build", folder / "model_repository", folder / "item_store")
        data = _few(bench.judged)
        rankers = [_built(recipe, data, workspace, bench) for recipe in _recipes(folder)]
        publish(rankers, "measured", quiet, workspace, gated=False)
        endpoints = [Endpoint(built.recipe, variant) for built in rankers for variant in built.recipe.variants]
        spans_s = _measured(endpoints, data, workspace, bench)
    return [_figure(name, spans_s, data, rankers) for name in spans_s]


# ---------------------------------------------------------------- what is measured
def _few(judged: JudgedQueries) -> JudgedQueries:
    """The first test queries with their own candidates."""
    few = first_queries(judged, QUERIES)
    own = dict.fromkeys(item_id for grades in few.judgements.values() for item_id in grades)
    return dataclasses.replace(few, products={item_id: judged.products[item_id] for item_id in own})


def _recipes(folder: Path) -> Iterator[Recipe]:
    for path in ("cross_encoder.toml", "examples/split_cross_encoder.toml"):
        recipe = load_recipe(REPOSITORY_ROOT / "recipes" / path)
        kept = [_untuned(variant) for variant in recipe.variants if variant.name in VARIANTS]
        yield recipe.model_copy(update={"variants": kept})
    yield Recipe.model_validate(
        {
            "ranker": "late_interaction",
            "format": "late_interaction",
            "checkpoint": write_checkpoint(folder / "colbert"),
            "text": {"vectors": "int8"},
            "variants": [Variant(name="fp32_onnx")],
        }
    )


def _untuned(variant: Variant) -> Variant:
    """Tuning takes minutes, and changes weights but no speed."""
    steps = tuple(step for step in variant.steps if step.step != "distill")
    return variant.model_copy(update={"steps": steps})


def _built(recipe: Recipe, data: JudgedQueries, workspace: Workspace, bench: Bench) -> BuiltRanker:
    bench.console.print(f"{recipe.ranker}: building", style="dim")
    return build_ranker(recipe, data, quiet, workspace, fidelity_lists=LISTS, wanted=VARIANTS)


def _peer(data: JudgedQueries) -> Ask:
    """The library's own prediction: tokens, pairs sorted by length, batches of 32."""
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(THREADS)
    library: Any = CrossEncoder(str(packaged_backbone()), num_labels=1, device="cpu", local_files_only=True)
    titles = {item_id: product.title for item_id, product in data.products.items()}
    return lambda request, ids: library.predict([(request.query, titles[item_id]) for item_id in ids])


def _measured(
    endpoints: Sequence[Endpoint], data: JudgedQueries, workspace: Workspace, bench: Bench
) -> dict[str, np.ndarray]:
    """Who => float64 [rounds, requests]: seconds of each request."""
    requests = [(data.request(query_id), list(grades)) for query_id, grades in data.judgements.items()]
    with serving([endpoint.name for endpoint in endpoints], workspace) as server:
        clients = {endpoint.model: EndpointClient(server.grpc_url, endpoint.name) for endpoint in endpoints}
        asked: dict[str, Ask] = {PEER: _peer(data), **{name: client.ask for name, client in clients.items()}}
        for ask in asked.values():
            _spans_s(ask, requests[:WARM_UP])
        rounds = [
            {name: _spans_s(asked[name], requests) for name in (asked if number % 2 else reversed(asked))}
            for number in bench.track(range(ROUNDS), "whole and split in turn")
        ]
        for client in clients.values():
            client.close()
    return {name: np.array([spans_s[name] for spans_s in rounds]) for name in asked}


def _spans_s(ask: Ask, requests: Sequence[tuple[Request, Sequence[str]]]) -> list[float]:
    spans_s = []
    for request, item_ids in requests:
        start_s = time.perf_counter()
        ask(request, item_ids)
        spans_s.append(time.perf_counter() - start_s)
    return spans_s


def _figure(
    name: str, spans_s: Mapping[str, np.ndarray], data: JudgedQueries, rankers: Sequence[BuiltRanker]
) -> Figure:
    candidates = sum(map(len, data.judgements.values()))
    ratios = spans_s[PEER].sum(axis=1) / spans_s[name].sum(axis=1)
    p50_ms, p99_ms = np.percentile(spans_s[name], [50, 99]) * 1e3
    detail = (
        f"{candidates / np.median(spans_s[name].sum(axis=1)):.0f} candidates/s, p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} "
        f"ms, n {spans_s[name].size}, {candidates / len(data.judgements):.0f} candidates a request; ratio "
        f"{ratios.min():.2f} to {ratios.max():.2f} in {len(ratios)} rounds{_stored(name, rankers)}"
    )
    limit = SPLIT_GAIN if name == f"split_cross_encoder_{VARIANTS[-1]}" else None
    return Figure(f"{name}: candidates/s over the peer's", float(np.median(ratios)), "x", limit, True, detail)


def _stored(name: str, rankers: Sequence[BuiltRanker]) -> str:
    """Bytes of an item in the store, on average; "" of the peer."""
    found = [built for built in rankers if name.startswith(f"{built.recipe.ranker}_")]
    if not found:
        return ""
    sizes = [len(stored) for _, stored in found[0].ranker.item_features(found[0].data.products.values())]
    return f"; {np.mean(sizes):,.0f} bytes an item stored"
