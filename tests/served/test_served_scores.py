"""Scores through the endpoint against the same ranker in this process, on real judged requests."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import tritonclient.grpc as grpc

from builders.core.contract import MAX_CANDIDATES
from builders.core.recipe import Recipe, Variant, load_recipes
from builders.data.beir import Request
from builders.data.evaluation import evaluation_data
from builders.data.find import DatasetError, JudgedQueries, Product, find_data
from builders.evaluate.judge import as_served, score_in_process
from builders.rankers.base import Ranker
from builders.rankers.load import load_ranker
from perf.endpoints import Endpoint
from perf.served_quality import in_process_sessions
from server import TritonServer
from tests.support.endpoint import ask, rank
from tests.support.kit import WORKSPACE

pytestmark = pytest.mark.server

COMPARED = 256
"""Of 1,024 items every fourth is scored by torch too; the order is checked of all."""
VARIANTS = [
    (recipe, variant)
    for recipe in load_recipes().values()
    for variant in recipe.variants
    if not variant.experimental and not variant.runtime.needs_gpu
]
FP32 = [(recipe, variant) for recipe, variant in VARIANTS if variant.exact]
COMPRESSED = [(recipe, variant) for recipe, variant in VARIANTS if not variant.exact]


def named(chosen: object) -> str:
    return chosen.name if isinstance(chosen, Variant) else getattr(chosen, "ranker", "")


@pytest.fixture(scope="module")
def client(served_kit: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(served_kit.grpc_url) as client:
        yield client


@cache
def ranker_of(name: str) -> Ranker:
    return load_ranker(load_recipes()[name])


def data_of(recipe: Recipe) -> JudgedQueries:
    """What the recipe is judged on; the test is left out where that is not there."""
    try:
        return evaluation_data(recipe.data, find_data().folder)
    except DatasetError as error:
        pytest.skip(str(error))


def endpoint_of(recipe: Recipe, variant: Variant) -> str:
    return f"{ranker_of(recipe.ranker).endpoint.name}_{recipe.model_name(variant)}"


def candidates(judged: JudgedQueries, query_id: str, count: int) -> list[Product]:
    """The query's judged products, then others, the shortest titles first: torch is slow at the rest."""
    own = [judged.products[item_id] for item_id in judged.judgements[query_id]]
    others = sorted(judged.products.values(), key=lambda product: len(product.title))
    chosen = {product.item_id: product for product in [*own, *others]}
    return list(chosen.values())[:count]


def torch_scores(recipe: Recipe, request: Request, products: list[Product]) -> dict[str, float]:
    """Item id => score."""
    ranker = ranker_of(recipe.ranker)
    scores = as_served(recipe, ranker, request, products, ranker.score(request, products))
    return {product.item_id: float(score) for product, score in zip(products, scores, strict=True)}


def assert_best_first(ids: list[str], scores: list[float], first_stage: list[str]) -> None:
    """Highest score first, equal ones in first-stage order, every item once."""
    place = {item_id: position for position, item_id in enumerate(first_stage)}
    assert sorted(ids) == sorted(first_stage)
    pairs = [(-score, place[item_id]) for item_id, score in zip(ids, scores, strict=True)]
    assert pairs == sorted(pairs)


@pytest.mark.parametrize(("recipe", "variant"), FP32, ids=named)
@pytest.mark.parametrize("count", [1, 40, MAX_CANDIDATES])
def test_fp32_scores_are_torchs(
    client: grpc.InferenceServerClient, recipe: Recipe, variant: Variant, count: int
) -> None:
    judged = data_of(recipe)
    query_id = next(query_id for query_id in judged.queries if query_id not in cold(judged))
    products = candidates(judged, query_id, count)
    known = [product.item_id for product in products]
    first_stage = [*known, *(f"absent {number}" for number in range(count - len(known)))]  # where the data is small
    ids, scores = ask(client, endpoint_of(recipe, variant), judged.request(query_id), first_stage)
    assert_best_first(ids, scores, first_stage)
    served = dict(zip(ids, scores, strict=True))
    wanted = torch_scores(recipe, judged.request(query_id), products[:: max(1, count // COMPARED)])
    assert {item_id: served[item_id] for item_id in wanted} == pytest.approx(wanted, abs=1e-4)


def cold(judged: JudgedQueries) -> set[str]:
    """Requests of users without a history: popularity answers them, not the network."""
    requests = {query_id: judged.request(query_id) for query_id in judged.queries}
    return {query_id for query_id, request in requests.items() if not request.query and not request.history}


@pytest.mark.parametrize(("recipe", "variant"), COMPRESSED, ids=named)
def test_a_compressed_variants_scores_are_those_of_the_same_model_in_this_process(
    client: grpc.InferenceServerClient, recipe: Recipe, variant: Variant
) -> None:
    judged, ranker = data_of(recipe), ranker_of(recipe.ranker)
    sessions = in_process_sessions(Endpoint(recipe, variant, ranker.endpoint.name), ranker, WORKSPACE)
    for query_id in list(judged.queries)[:3]:
        products = candidates(judged, query_id, 40)
        first_stage = [product.item_id for product in products]
        ids, scores = ask(client, endpoint_of(recipe, variant), judged.request(query_id), first_stage)
        assert_best_first(ids, scores, first_stage)
        request = judged.request(query_id)
        wanted = as_served(recipe, ranker, request, products, score_in_process(ranker, sessions, request, products))
        assert dict(zip(ids, scores, strict=True)) == pytest.approx(
            dict(zip(first_stage, map(float, wanted), strict=True)), abs=1e-4
        )


@pytest.mark.parametrize(("recipe", "variant"), FP32 + COMPRESSED, ids=named)
def test_an_items_score_depends_neither_on_its_neighbours_nor_on_the_order(
    client: grpc.InferenceServerClient, recipe: Recipe, variant: Variant
) -> None:
    judged = data_of(recipe)
    query_id = list(judged.queries)[-1]
    first_stage = [product.item_id for product in candidates(judged, query_id, 24)]
    endpoint, request = endpoint_of(recipe, variant), judged.request(query_id)
    together = dict(zip(*ask(client, endpoint, request, first_stage), strict=True))
    backwards = dict(zip(*ask(client, endpoint, request, first_stage[::-1]), strict=True))
    alone = {item_id: ask(client, endpoint, request, [item_id])[1][0] for item_id in first_stage[:6]}
    assert backwards == pytest.approx(together, abs=1e-4)
    assert alone == pytest.approx({item_id: together[item_id] for item_id in alone}, abs=1e-4)


def test_the_same_request_is_answered_the_same_twice(client: grpc.InferenceServerClient, judged: JudgedQueries) -> None:
    query_id, query = next(iter(judged.queries.items()))
    first_stage = [product.item_id for product in candidates(judged, query_id, 40)]
    assert rank(client, "rank", query, first_stage) == rank(client, "rank", query, first_stage)
