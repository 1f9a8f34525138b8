"""`recommend` for a stranger, for unknown items, and beside `similar`, on the kit's own repository."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonrank_client import InvalidRequest, RankClient, Rules

from builders.core.contract import HISTORY, ITEM_IDS, UNSCORED
from builders.core.recipe import load_recipes
from builders.data.beir import JudgedQueries
from builders.data.evaluation import evaluation_data
from builders.data.find import DatasetError, find_data
from server import TritonServer
from tests.support.endpoint import send, texts

pytestmark = pytest.mark.server
TIMEOUT_S = 60
RECOMMENDERS = [
    f"recommend_{recipe.model_name(recipe.variants[0])}"
    for recipe in load_recipes().values()
    if recipe.data == "purchases"
]


@pytest.fixture(scope="module")
def shop() -> JudgedQueries:
    try:
        return evaluation_data("purchases", find_data().folder)
    except DatasetError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def client(served_kit: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(served_kit.grpc_url) as connected:
        yield connected


def by_popularity(shop: JudgedQueries, item_ids: list[str]) -> list[str]:
    return sorted(item_ids, key=lambda item_id: -shop.products[item_id].fields["popularity"])


@pytest.mark.parametrize("endpoint", ["recommend", *RECOMMENDERS])
@pytest.mark.parametrize("history", [(), ("never sold", "nor this")], ids=["no history", "unknown items only"])
def test_a_stranger_gets_the_items_by_popularity(
    client: grpc.InferenceServerClient, shop: JudgedQueries, endpoint: str, history: tuple[str, ...]
) -> None:
    items = list(shop.products)[200:240]
    events = (np.array([item.encode() for item in history], dtype=object), "BYTES")
    ids, scores = send(client, endpoint, **{HISTORY.name: events, ITEM_IDS.name: texts(*items)})
    assert ids == by_popularity(shop, items)
    assert scores == [float(shop.products[item_id].fields["popularity"]) for item_id in ids]


@pytest.mark.parametrize("endpoint", RECOMMENDERS)
def test_a_known_history_changes_the_order_and_unknown_items_come_last(
    client: grpc.InferenceServerClient, shop: JudgedQueries, endpoint: str
) -> None:
    items = list(shop.products)[200:240]
    taken = max((shop.request(query_id).history for query_id in shop.queries), key=len)
    ids, scores = send(client, endpoint, **{HISTORY.name: texts(*taken), ITEM_IDS.name: texts("nowhere", *items)})
    assert ids[-1] == "nowhere" and scores[-1] == pytest.approx(UNSCORED)
    assert ids[:-1] != by_popularity(shop, items)


def test_the_client_recommends_ranks_with_rules_and_finds_similar_items(
    served_kit: TritonServer, shop: JudgedQueries, judged: JudgedQueries
) -> None:
    items = list(shop.products)[:30]
    query_id, grades = next(iter(judged.judgements.items()))
    candidates = list(grades)
    with RankClient(served_kit.grpc_url, timeout_s=TIMEOUT_S) as ranker:
        assert ranker.recommend([], items, top_k=5).ids == tuple(by_popularity(shop, items)[:5])
        pinned = ranker.rank(judged.queries[query_id], candidates, top_k=3, rules=Rules(pins={candidates[-1]: 1}))
        assert pinned.ids[0] == candidates[-1]
        near = ranker.similar(candidates[0], top_k=4)
        assert len(near) == 4 and candidates[0] not in near.ids
        assert all(item_id in judged.products for item_id in near.ids)
        with pytest.raises(InvalidRequest, match="item_id: not in the item store"):
            ranker.similar("nowhere")
