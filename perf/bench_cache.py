"""What caches save of a skewed query log: real queries, drawn by Zipf's law, without a cache, with the score cache and
with Triton's response cache.

The log draws the query of rank r with a probability proportional to 1/r (Zipf, exponent 1.0; of web requests: Breslau
et al., Web caching and Zipf-like distributions, INFOCOM 1999). A query's first stage gives more items than are ranked,
and every other request leaves some of them out, as stock and filters do. All caches begin empty. Three servers run the
same files and are asked the same requests in turn, block by block.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from perf.bench_base import Bench, Figure, in_turn
from perf.endpoints import Endpoint, EndpointClient, serving
from perf.kit.data import USUAL_CANDIDATES, Request
from perf.kit.forms import publish_caching
from server import TritonServer

REQUESTS, BLOCK = 240, 20
EXPONENT = 1.0
FIRST_STAGE = 44
"""Items of a query, of which USUAL_CANDIDATES are asked for in a request."""
CHANGING = 0.5
"""Share of the requests that leave other items out than the last ones of the first stage."""
SIZE_MB = 64
NONE, SCORES, ANSWERS = FORMS = ("no cache", "score cache", "Triton's response cache")
COUNTS = {
    SCORES: ("tritonrank_score_cache_hits_total", "tritonrank_score_cache_misses_total"),
    ANSWERS: ("nv_cache_num_hits_per_model", "nv_cache_num_misses_per_model"),
}

Asked = tuple[Request, list[str]]


def bench_cache(bench: Bench) -> list[Figure]:
    """The quickest variant of each ranker: mean time without a cache over that with one.

    Raises:
        RepositoryError: an endpoint's rows cannot be run apart.
    """
    quickest = {endpoint.recipe.ranker: endpoint for endpoint in bench.endpoints}  # its last variant
    return [figure for endpoint in quickest.values() for figure in _figures(bench, endpoint)]


def skewed_log(bench: Bench, count: int, seed: int = 0) -> list[Asked]:
    """So many requests, the same for a seed."""
    draw = np.random.default_rng(seed)
    queries = draw.permutation([*bench.judged.queries])
    shares = 1 / np.arange(1, len(queries) + 1) ** EXPONENT
    drawn = draw.choice(queries, size=count, p=shares / shares.sum())
    return [(bench.judged.request(str(query)), _candidates(bench, str(query), draw)) for query in drawn]


def _candidates(bench: Bench, query: str, draw: np.random.Generator) -> list[str]:
    first_stage = list(dict.fromkeys([*bench.order[query], *itertools.islice(bench.judged.products, FIRST_STAGE)]))
    left = np.arange(USUAL_CANDIDATES)
    if draw.random() < CHANGING:
        left = np.sort(draw.choice(FIRST_STAGE, size=USUAL_CANDIDATES, replace=False))
    return [first_stage[place] for place in left]


# ---------------------------------------------------------------- one endpoint
def _figures(bench: Bench, endpoint: Endpoint) -> list[Figure]:
    log = skewed_log(bench, REQUESTS)
    with tempfile.TemporaryDirectory(prefix="tritonrank_caches_") as name, ExitStack() as opened:
        folder = Path(name)
        publish_caching(bench.workspace.repository, endpoint.name, folder / "models", SIZE_MB)
        workspace = dataclasses.replace(bench.workspace, repository=folder / "models")
        options = {NONE: {}, SCORES: {"score_cache": folder / "scores"}, ANSWERS: {"response_cache_mb": SIZE_MB}}
        servers = {
            form: opened.enter_context(serving([endpoint.name], workspace, **options[form]))  # type: ignore[arg-type]
            for form in FORMS
        }
        spans_ms = _spans_ms(bench, endpoint, servers, log)
        rates = {form: _hit_rate(servers[form], *COUNTS[form]) for form in (SCORES, ANSWERS)}
    return [_figure(endpoint, form, spans_ms, rates[form]) for form in (SCORES, ANSWERS)]


def _spans_ms(
    bench: Bench, endpoint: Endpoint, servers: Mapping[str, TritonServer], log: Sequence[Asked]
) -> dict[str, np.ndarray]:
    """Form => float64 [requests]: blocks of the log in turn, the servers in another order each time."""
    found: dict[str, list[float]] = {form: [] for form in FORMS}
    with ExitStack() as opened:
        clients = [opened.enter_context(EndpointClient(servers[form].grpc_url, endpoint.name)) for form in FORMS]
        blocks = [log[start : start + BLOCK] for start in range(0, len(log), BLOCK)]
        for number, block in enumerate(bench.track(blocks, f"{endpoint.model}, caches in turn")):
            calls = [lambda client=client, block=block: _block_ms(client, block) for client in clients]
            for form, spans_ms in zip(FORMS, in_turn(calls, first=number), strict=True):
                found[form] += spans_ms
    return {form: np.array(spans_ms) for form, spans_ms in found.items()}


def _block_ms(client: EndpointClient, block: Sequence[Asked]) -> list[float]:
    spans_ms = []
    for request, item_ids in block:
        start_s = time.perf_counter()
        client.ask(request, item_ids)
        spans_ms.append((time.perf_counter() - start_s) * 1e3)
    return spans_ms


def _hit_rate(server: TritonServer, hits: str, misses: str) -> tuple[float, float]:
    """Share of what was looked up that was known, and how much was looked up."""
    with urllib.request.urlopen(server.metrics_url) as page:
        lines = page.read().decode().splitlines()
    found, missed = (
        sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{")) for name in (hits, misses)
    )
    return found / max(found + missed, 1), found + missed


def _figure(endpoint: Endpoint, form: str, spans_ms: Mapping[str, np.ndarray], rate: tuple[float, float]) -> Figure:
    without, cached = spans_ms[NONE], spans_ms[form]
    share, looked_up = rate
    what = "rows" if form == SCORES else "requests"

    def told(spans: np.ndarray) -> str:
        p50_ms, p99_ms = np.percentile(spans, (50, 99))
        return f"p50 {p50_ms:.1f}, p99 {p99_ms:.1f} ms, {1e3 / spans.mean():.1f} requests/s"

    return Figure(
        f"{endpoint.model}: mean time without a cache over that with {form}",
        float(without.mean() / cached.mean()),
        "x",
        detail=f"hit rate {share:.2f} of {looked_up:,.0f} {what}; {told(cached)}; without {told(without)}; n "
        f"{without.size} each, one at a time, Zipf {EXPONENT:g}, {USUAL_CANDIDATES} of {FIRST_STAGE} candidates",
    )
