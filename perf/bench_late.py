"""What late interaction costs as served: a ColBERT of 6 layers, 128 wide, 32 query tokens, 1,000 candidates a request.

The network is the packaged all-MiniLM-L6-v2 behind a fixed random projection, written and read by sentence-transformers
itself; the items and queries are those of the data. Token vectors are stored in FP32, FP16 and INT8 in turn: each form
tells its latency, what it adds to a score, and its NDCG@10. Items lie in a store of their own, models in a repository
of their own, both temporary.
"""

from __future__ import annotations

import dataclasses
import itertools
import string
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from perf.bench_base import Bench, Figure, quiet
from perf.bench_dcn import processor_s
from perf.endpoints import Endpoint, EndpointClient, first_queries, serving
from perf.kit.data import JudgedQueries, Recipe, Request, Variant, Workspace
from perf.kit.rankers import BuiltRanker, Ranker, build_ranker, packaged_backbone, publish
from perf.server_statistics import ServerStatistics

CANDIDATES, QUERIES, REQUESTS, WARM_UP = 1000, 40, 200, 20
QUERY_TOKENS, ITEM_TOKENS, WIDTH = 32, 180, 128
FORMS = ("fp32", "fp16", "int8")
LATENCY_LIMIT_MS = 25.0


def bench_late(bench: Bench) -> list[Figure]:
    """Each form of stored vectors: p50 and p99 one request at a time, processor time, difference and NDCG@10.

    Raises:
        ServerError: nothing to measure with.
    """
    with tempfile.TemporaryDirectory(prefix="tritonrank_late_") as name:
        folder = Path(name)
        workspace = Workspace(folder / "build", folder / "model_repository", folder / "item_store")
        data = few_queries(bench.judged)
        checkpoint = write_checkpoint(folder / "colbert")
        rankers = [_built(checkpoint, form, data, workspace, bench) for form in FORMS]
        publish(rankers, "a random projection", quiet, workspace)
        return [
            figure
            for built in rankers
            for figure in (_latency_figure(built, data, workspace, bench), _quality_figure(built, rankers[0], data))
        ]


# ---------------------------------------------------------------- what is measured
def few_queries(judged: JudgedQueries) -> JudgedQueries:
    """The first test queries, with their own candidates and as many further items as make a request."""
    few = first_queries(judged, QUERIES)
    own = [item_id for grades in few.judgements.values() for item_id in grades]
    kept = dict.fromkeys([*own, *itertools.islice(judged.products, CANDIDATES)])
    return dataclasses.replace(few, products={item_id: judged.products[item_id] for item_id in kept})


def write_checkpoint(folder: Path) -> Path:
    """As ``MultiVectorEncoder.save_pretrained`` writes it."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    encoder = Transformer(
        str(packaged_backbone()),
        query_expansion={"strategy": "fixed", "length": QUERY_TOKENS},
        document_length=ITEM_TOKENS,
    )
    torch.manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(encoder.get_embedding_dimension(), WIDTH))
    projection = Dense(
        directions.shape[0],
        directions.shape[1],
        bias=False,
        activation_function=torch.nn.Identity(),
        init_weight=directions.T.contiguous(),
        module_input_name="token_embeddings",
    )
    scored = MultiVectorMask(skiplist_words=list(string.punctuation))
    modules = [encoder, projection, scored, Normalize(module_input_name="token_embeddings")]
    MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(folder))
    return folder


def _built(checkpoint: Path, form: str, data: JudgedQueries, workspace: Workspace, bench: Bench) -> BuiltRanker:
    recipe = Recipe.model_validate(
        {
            "ranker": f"bench_late_{form}",
            "format": "late_interaction",
            "checkpoint": checkpoint,
            "text": {"item": "{title}", "vectors": form},
            "variants": [Variant(name="fp32_onnx")],
        }
    )
    bench.console.print(f"{recipe.ranker}: building", style="dim")
    return build_ranker(recipe, data, quiet, workspace)


# ---------------------------------------------------------------- latency
def _latency_figure(built: BuiltRanker, data: JudgedQueries, workspace: Workspace, bench: Bench) -> Figure:
    endpoint = Endpoint(built.recipe, built.recipe.variants[0])
    requests = list(itertools.islice(_requests(data), WARM_UP + REQUESTS))
    names = (f"{built.ranker.name}_preprocess", f"{built.ranker.name}_query_fp32_onnx", endpoint.model)
    with serving([endpoint.name], workspace) as server, EndpointClient(server.grpc_url, endpoint.name) as client:
        for request, item_ids in requests[:WARM_UP]:
            client.ask(request, item_ids)
        steps = {name: ServerStatistics(server.grpc_url, name) for name in names}
        before, start_s = {name: each.compute() for name, each in steps.items()}, processor_s(server.pid)
        spans_ms = np.array([_span_ms(client, *one) for one in bench.track(requests[WARM_UP:], built.ranker.name)])
        processor_ms = (processor_s(server.pid) - start_s) / REQUESTS * 1e3
        spent = ", ".join(f"{name} {steps[name].compute_ms_since(before[name]):.1f}" for name in names)
    return Figure(
        f"{built.ranker.name}: served p50, {CANDIDATES:,} candidates",
        float(np.median(spans_ms)),
        "ms",
        LATENCY_LIMIT_MS,
        detail=f"p99 {np.percentile(spans_ms, 99):.1f} ms, least {spans_ms.min():.1f} ms, n {REQUESTS}, one at a time; "
        f"processor time of all the server's processes {processor_ms:.1f} ms a request; means by the server's "
        f"statistics, ms: {spent}; {_tokens(built.ranker, data):.1f} tokens an item",
    )


def _requests(data: JudgedQueries) -> itertools.chain[tuple[Request, list[str]]]:
    """Queries in turn without end, each with its own candidates first."""
    made = [
        (data.request(query_id), list(dict.fromkeys([*grades, *data.products]))[:CANDIDATES])
        for query_id, grades in data.judgements.items()
    ]
    return itertools.chain.from_iterable(itertools.repeat(made))


def _span_ms(client: EndpointClient, request: Request, item_ids: Sequence[str]) -> float:
    start_s = time.perf_counter()
    client.ask(request, item_ids)
    return (time.perf_counter() - start_s) * 1e3


def _tokens(ranker: Ranker, data: JudgedQueries) -> float:
    """Stored vectors of an item, on average over a request's."""
    request, item_ids = next(_requests(data))
    sample = ranker.sample(request, [data.products[item_id] for item_id in item_ids])[ranker.name]
    return len(sample["item_vectors"]) / len(item_ids)


# ---------------------------------------------------------------- quality
def _quality_figure(built: BuiltRanker, whole: BuiltRanker, data: JudgedQueries) -> Figure:
    """NDCG@10, and scores beside those of the library."""
    differences, spreads = [], []
    for query_id, grades in data.judgements.items():
        request, products = data.request(query_id), [data.products[item_id] for item_id in grades]
        of_library = whole.ranker.library_scores(request, products)
        assert of_library is not None
        differences.append(np.abs(built.ranker.score(request, products) - of_library).max())
        spreads.append(np.std(of_library))
    return Figure(
        f"{built.ranker.name}: NDCG@10",
        float(built.variants[0].figures["ndcg_at_10"]),
        "",
        detail=f"{len(data.queries)} test queries; largest difference from the library's scores "
        f"{max(differences):.2g}, which spread by {np.mean(spreads):.2g} within a list; a random projection: of the "
        "form of storage only",
    )
