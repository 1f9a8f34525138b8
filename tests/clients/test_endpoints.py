"""rank, recommend and similar against a real Triton with the kit's own post-processing behind a scorer of the test's.

The scorer: an item's score is its number; an item whose id is the sent ``user_id`` has 1,000. ``history`` events are
added to every score; an empty history makes the lowest number the best.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonrank_client import (
    ContractMismatch,
    InvalidRequest,
    ListRules,
    RankClient,
    Rules,
    Unavailable,
    hashed_id,
)
from tritonrank_client._sync._transport import GrpcTransport

from builders.core import contract
from builders.core.contract import Contract
from builders.core.recipe import RuleDefaults
from builders.data.beir import Product
from builders.publish import model_config
from builders.publish.endpoints import served_files
from builders.publish.item_store import ItemStore
from builders.publish.postprocessing import (
    ATTRIBUTES_TABLE,
    ATTRIBUTES_VERSION,
    attribute_records,
    postprocess_contract,
    similar_contract,
)
from builders.publish.repository import Ensemble, ServedModel, publish_models
from builders.publish.similar_index import SEARCH_CODE
from server import TritonServer
from tests.support.repositories import python_model

pytestmark = pytest.mark.server

KEY = b"sixteen secrets!"
SCORER = Contract(
    "scorer",
    (
        dataclasses.replace(contract.QUERY, optional=True),
        contract.ITEM_IDS,
        dataclasses.replace(contract.HISTORY, optional=True),
        contract.USER_ID,
    ),
    (dataclasses.replace(contract.SCORE, dims=("candidates", 1)), contract.KNOWN),
)
READ = [contract.ITEM_IDS.name, contract.HISTORY.name, contract.USER_ID.name]
SCORER_PY = python_model(
    {
        contract.SCORE.name: "score.reshape(-1, 1)",
        contract.KNOWN.name: "np.array([item.isdigit() or item == user for item in ids])",
    },
    body=f"""
        ids, history, user = map(tensor, {READ})
        user = None if user is None else user[0]
        score = np.array([int(item) if item.isdigit() else 1000 for item in ids], np.float32)
        if history is not None:
            score = score + len(history) if len(history) else -score
    """,
)
PRODUCTS = [
    Product("1", "", brand="Acme"),
    Product("2", "", brand="Acme", fields={"in_stock": False}),
    Product("3", "", brand="Acme", color="red"),
    Product("4", "", brand="Bolt"),
]
RECIPE_RULES = RuleDefaults(in_stock_only=True, pins={"1": 1})


def served_model(code: str, model: Contract) -> ServedModel:
    files = served_files(code) | ({SEARCH_CODE.name: SEARCH_CODE} if code == "similar" else {})
    return ServedModel(model_config.python_config(model), model, files)


def ensemble(name: str, endpoint: Contract, postprocess: Contract) -> Ensemble:
    agreed = model_config.endpoint_contract(name, endpoint, [SCORER, postprocess])
    return Ensemble(name, [SCORER.name, postprocess.name], agreed)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    with ItemStore(folder) as writer:
        writer.put(ATTRIBUTES_TABLE, ATTRIBUTES_VERSION, attribute_records(PRODUCTS))
        writer.put("two_tower", "v1", ((str(n), np.array([1, n], "<f4").tobytes()) for n in range(4)))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("endpoints")
    (folder / "model.py").write_text(SCORER_PY)
    plain, ruled = postprocess_contract(), postprocess_contract("postprocess_ruled", rules=RECIPE_RULES)
    scorer = ServedModel(model_config.python_config(SCORER), SCORER, {"model.py": folder / "model.py"})
    models = [
        scorer,
        served_model("postprocess", plain),
        served_model("postprocess", ruled),
        served_model("similar", similar_contract("two_tower", "v1", 2)),
    ]
    ensembles = [
        ensemble("rank", contract.RANK, plain),
        ensemble("rank_ruled", contract.RANK, ruled),
        ensemble("recommend", contract.RECOMMEND, plain),
    ]
    publish_models(folder / "models", models, ensembles, {})
    with TritonServer(folder / "models", load=None, store=store, grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


@pytest.fixture
def connect(server: TritonServer) -> Iterator[Callable[..., RankClient]]:
    clients: list[RankClient] = []

    def make(**options: object) -> RankClient:
        clients.append(RankClient(server.grpc_url, **{"timeout_s": 10.0, **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.mark.parametrize("endpoint", ["rank", "recommend", "similar"])
def test_the_kits_endpoints_speak_the_clients_contract(connect, endpoint):
    client = connect()
    client.check_contract(endpoint=endpoint)

    assert client.ready(endpoint=endpoint) is True


def test_another_model_than_the_endpoints_is_refused(connect):
    with pytest.raises(ContractMismatch, match=r"input 'history': server has BYTES .* optional, client wants BYTES"):
        connect(recommend_model="rank").check_contract(endpoint="recommend")
    assert connect(similar_model="absent").ready(endpoint="similar") is False
    with pytest.raises(Unavailable):
        connect(similar_model="absent").similar("1")


def test_an_empty_history_is_served(connect):
    client = connect()

    assert client.recommend([], ["1", "3", "2"]).ids == ("1", "2", "3")
    assert client.rank("shoes", ["1", "3", "2"], history=[]).ids == ("1", "2", "3")
    assert client.rank("shoes", ["1", "3", "2"]).ids == ("3", "2", "1")


def test_a_history_is_read_by_both(connect):
    client = connect()

    assert list(client.recommend(["x", "y"], ["1", "3"])) == [("3", 5), ("1", 3)]
    assert list(client.rank("shoes", ["1", "3"], history=["x"], top_k=1)) == [("3", 4)]


def test_the_server_knows_a_user_by_the_keyed_hash(connect):
    hashed = hashed_id("user 7", KEY)
    for user_id, options in (("user 7", {"id_key": KEY}), (hashed, {})):
        client = connect(**options)
        assert client.rank("shoes", ["3", hashed], user_id=user_id).ids == (hashed, "3")
        assert client.recommend(["x"], ["3", hashed], user_id=user_id).ids == (hashed, "3")
    assert connect().rank("shoes", ["3", hashed], user_id="user 7").scored.tolist() == [True, False]


@pytest.mark.parametrize("recommend", [False, True])
@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        (None, "4321"),
        (Rules(), "4321"),
        (Rules(in_stock_only=True), "431"),
        (Rules(boosts={"color=red": 10}), "3421"),
        (Rules(boosts={"brand=Acme": 10}), "3214"),
        (Rules(pins={"1": 2}), "4132"),
        (Rules(boosts={"brand=Acme": 10}, max_per_brand=1), "3421"),
        (Rules(in_stock_only=True, boosts={"brand=Acme": 10}, pins={"1": 3}, max_per_brand=1), "431"),
        (Rules(in_stock_only=False, boosts={}, pins={}, max_per_brand=0), "4321"),
    ],
)
def test_rules_reach_the_server(connect, recommend, rules, wanted):
    ids, client = ["1", "2", "3", "4"], connect()
    ranked = client.recommend(["x"], ids, rules=rules) if recommend else client.rank("shoes", ids, rules=rules)

    assert "".join(ranked.ids) == wanted


def test_the_recipes_rules_hold_until_a_request_switches_them_off(connect):
    client = connect(model="rank_ruled")
    ids = ["1", "2", "3", "4"]

    assert list(client.rank("shoes", ids)) == [("1", 1), ("4", 4), ("3", 3)]
    assert client.rank("shoes", ids, rules=Rules(in_stock_only=False)).ids == ("1", "4", "3", "2")
    assert client.rank("shoes", ids, rules=Rules(in_stock_only=False, pins={})).ids == ("4", "3", "2", "1")
    assert client.rank("shoes", ids, top_k=1).ids == ("1",)


def test_the_answer_says_how_many_items_a_filter_left_out(connect):
    ruled, plain = connect(model="rank_ruled"), connect()

    assert ruled.rank("shoes", ["1", "2", "3"]).left_out == 1
    assert ruled.rank("shoes", ["1", "2", "3"], top_k=1).left_out == 1
    nothing_left = ruled.rank("shoes", ["2"])
    assert (nothing_left.ids, nothing_left.left_out) == ((), 1)
    assert plain.rank("shoes", ["1", "2", "3"]).left_out == 0
    assert plain.recommend(["x"], ["2", "3"], rules=Rules(in_stock_only=True)).left_out == 1


def test_the_endpoint_says_what_its_recipes_rules_may_do(connect, server):
    lists = GrpcTransport(server.grpc_url)
    ruled, plain = (lists.served_model(name, 10).lists for name in ("rank_ruled", "rank"))
    lists.close()

    assert ruled == ListRules(in_stock_only=True, pinned=frozenset("1"))
    assert plain == ListRules()


def test_what_the_served_ranker_does_not_read_is_refused_by_name(connect):
    with pytest.raises(InvalidRequest, match="context: model 'rank' on the server has no input 'context'") as caught:
        connect().rank("shoes", ["1"], context={"hour": 7})
    assert caught.value.argument == "context"


def test_similar_items_are_the_nearest_and_an_added_one_is_found(connect, store):
    client = connect()
    assert client.similar("1").ids == ("2", "3", "0")
    assert client.similar("1", top_k=1).scores.tolist() == pytest.approx([3 / 10**0.5])

    with ItemStore(store) as writer:
        writer.put("two_tower", "v1", [("new", np.array([5, 5], "<f4").tobytes())])
    assert client.similar("1", top_k=1).ids == ("new",)
    with pytest.raises(InvalidRequest, match="item_id: not in the item store"):
        client.similar("absent")


def test_nothing_that_was_asked_is_in_the_servers_log(connect, server):
    client = connect()
    client.rank("secret query", ["1", "2"], user_id="secret user", history=["secret item"])
    with pytest.raises(InvalidRequest):
        client.similar("secret other")
    with pytest.raises(InvalidRequest):
        client.recommend(["secret item"], ["1"], rules=Rules(), context={"secret": 1})

    assert "secret" not in server.log()
