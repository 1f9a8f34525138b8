"""Our own interface: ranking, recommending and similar items by ids, and what goes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sentence_transformers import CrossEncoder
from tritonrank_client import RankClient, Rules

from builders.core.contract import CONTEXT, HISTORY, ITEM_FIELDS, ITEM_IDS, RANKED_IDS, SCORES, TOP_K, USER_ID
from builders.publish.manifest import MANIFEST
from server import TritonServer
from tests.gateway.conftest import ANY_PORTS, NEIGHBOURS, SIMILAR
from tests.gateway.test_rerank import INTERFACES
from tests.support.gateways import PATIENT_S, gateway
from tests.support.library_checkpoints import shop, write_cross_encoder
from tests.support.repositories import python_model, write_model
from tests.support.served_checkpoints import published

pytestmark = pytest.mark.server
MODELS = {"shop": "rank_saved_fp32_onnx", "basket": "recommend", "near": "similar"}
IDS = ["p1", "p2", "p3", "fresh"]
ITEM = "{title}. {brand}. {text}"
QUERY_TEXT = "red running shoe"
RECOMMEND = f"""
backend: "python"
max_batch_size: 0
input [ {{ name: "{HISTORY.name}" data_type: TYPE_STRING dims: [ -1 ] }},
        {{ name: "{ITEM_IDS.name}" data_type: TYPE_STRING dims: [ -1 ] }},
        {{ name: "{TOP_K.name}" data_type: TYPE_INT32 dims: [ 1 ] optional: true }},
        {{ name: "{USER_ID.name}" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
        {{ name: "{CONTEXT.name}" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
        {{ name: "{ITEM_FIELDS.name}" data_type: TYPE_STRING dims: [ -1 ] optional: true }} ]
output [ {{ name: "{RANKED_IDS.name}" data_type: TYPE_STRING dims: [ -1 ] }},
         {{ name: "{SCORES.name}" data_type: TYPE_FP32 dims: [ -1 ] }} ]
"""
WARM_HOURS = python_model(
    {RANKED_IDS.name: "ids[order]", SCORES.name: "scores[order]"},
    f"""
    ids, fields, context = tensor('{ITEM_IDS.name}'), tensor('{ITEM_FIELDS.name}'), tensor('{CONTEXT.name}')
    prices = [json.loads(each or '{{}}').get('price', 0) for each in (ids[:0] if fields is None else fields)]
    base = len(tensor('{HISTORY.name}')) + (0 if context is None else json.loads(context[0])['hour'])
    base += 0 if tensor('{USER_ID.name}') is None else len(tensor('{USER_ID.name}')[0]) / 16
    scores = np.array([base + price for price in prices or [0] * len(ids)], dtype=np.float32)
    order = np.argsort(-scores, kind='stable')
    """,
)
"""Scores by history's length, context's hour, user's id and items' prices."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported cross-encoder, built and published as users do; beside it models of a few lines."""
    folder = tmp_path_factory.mktemp("own")
    workspace = published({"saved": write_cross_encoder}, shop(), ITEM, folder)
    write_model(workspace.repository, "recommend", RECOMMEND, WARM_HOURS)
    write_model(workspace.repository, "similar", SIMILAR, NEIGHBOURS)
    (workspace.repository / MANIFEST).unlink()  # it names the published one alone
    return folder


@pytest.fixture(scope="module")
def triton(folder: Path) -> Iterator[TritonServer]:
    with TritonServer(folder / "models", list(MODELS.values()), store=folder / "store", **ANY_PORTS) as server:
        yield server


@pytest.fixture(scope="module")
def client(triton: TritonServer) -> Iterator[httpx2.Client]:
    with gateway(triton.grpc_url, models=MODELS) as found:
        yield found


def scores_of_the_library(folder: Path, texts: Sequence[str]) -> list[float]:
    library = CrossEncoder(str(folder / "checkpoints" / "saved" / "saved"), device="cpu")
    return [float(score) for score in library.predict([(QUERY_TEXT, text) for text in texts])]


def items(answer: httpx2.Response) -> list[tuple[str, float | None]]:
    assert answer.status_code == 200, answer.text
    return [(item["id"], item["score"]) for item in answer.json()["items"]]


def fault(answer: httpx2.Response) -> tuple[int, str, str]:
    body = answer.json()
    assert body.keys() == {"error"}
    return answer.status_code, body["error"]["fault"], body["error"]["message"]


def test_every_interface_gives_what_cross_encoder_predict_gives(client: httpx2.Client, folder: Path) -> None:
    texts = [product.title for product in list(shop().products.values())[:12]]
    wanted = scores_of_the_library(folder, texts)
    for interface in INTERFACES:
        pairs = interface.pairs(interface.post(client, QUERY_TEXT, texts).json())
        assert [score for _, score in sorted(pairs)] == pytest.approx(wanted, abs=1e-4)
    by_id = {f"new{place}": text for place, text in enumerate(texts)}
    body = {"query": QUERY_TEXT, "item_ids": list(by_id), "item_texts": by_id}
    found = dict(items(client.post("/v1/rank", json=body)))
    assert [found[item_id] for item_id in by_id] == pytest.approx(wanted, abs=1e-4)
    assert 0 < min(wanted) < max(wanted) - 0.01 < 1  # its activation is a sigmoid


def test_items_are_ranked_as_by_the_python_client(triton: TritonServer, client: httpx2.Client) -> None:
    answer = client.post("/v1/rank", json={"query": QUERY_TEXT, "item_ids": IDS, "model": "shop"})
    with RankClient(triton.grpc_url, model=MODELS["shop"], timeout_s=PATIENT_S) as direct:
        ranked = direct.rank(QUERY_TEXT, IDS)
    wanted = [
        (item_id, score if scored else None) for (item_id, score), scored in zip(ranked, ranked.scored, strict=True)
    ]
    assert items(answer) == wanted
    assert wanted[-1] == ("fresh", None)
    body = answer.json()
    assert (body["model"], body["degraded"]) == (MODELS["shop"], None)
    assert body["request_id"] == answer.headers["x-request-id"]


RULES: dict[str, dict[str, Any]] = {
    "pins": {"pins": {"p3": 1}},
    "boosts": {"boosts": {"brand=Acme": 50.0}},
    "boosts as a list": {"boosts": [{"attribute": "brand", "value": "Acme", "amount": 50.0}]},
    "a limit of a brand": {"max_per_brand": 1},
    "in stock": {"in_stock_only": True},
}


@pytest.mark.parametrize("name", RULES)
def test_rules_are_the_clients(triton: TritonServer, client: httpx2.Client, name: str) -> None:
    rules = RULES[name]
    body = {"query": QUERY_TEXT, "item_ids": IDS, "model": "shop", "rules": rules, "top_k": 3}
    boosts = {"boosts": {"brand=Acme": 50.0}} if "boosts" in rules else {}
    with RankClient(triton.grpc_url, model=MODELS["shop"], timeout_s=PATIENT_S) as direct:
        wanted = direct.rank(QUERY_TEXT, IDS, 3, rules=Rules(**{**rules, **boosts}))
        plain = direct.rank(QUERY_TEXT, IDS, 3)
    answer = client.post("/v1/rank", json=body)
    assert [item_id for item_id, _ in items(answer)] == list(wanted.ids)
    assert answer.json()["left_out"] == wanted.left_out
    assert ("pins" not in rules and "boosts" not in rules) or wanted.ids != plain.ids


def test_a_text_of_the_request_takes_the_place_of_the_stored_one(client: httpx2.Client) -> None:
    body = {"query": "red shoe", "item_ids": ["p1", "fresh"], "item_texts": {"fresh": "red shoe"}, "model": "shop"}
    assert {item_id for item_id, score in items(client.post("/v1/rank", json=body)) if score is None} == set()


def test_items_are_recommended_after_a_history_with_context_and_fields(
    triton: TritonServer, client: httpx2.Client
) -> None:
    further: dict[str, Any] = {
        "context": {"hour": 7},
        "item_fields": {"fresh": {"price": 3, "brand": "Acme"}},
        "user_id": "anna",
    }
    with RankClient(triton.grpc_url, model=MODELS["shop"], timeout_s=PATIENT_S) as direct:
        wanted = list(direct.recommend(["i1"], IDS, **further))
    answer = client.post("/v1/recommend", json={"history": ["i1"], "item_ids": IDS, **further})
    assert items(answer) == wanted == [("fresh", 11.25), ("p1", 8.25), ("p2", 8.25), ("p3", 8.25)]
    without = client.post("/v1/recommend", json={"history": [], "item_ids": IDS})
    assert items(without) == [(item_id, 0.0) for item_id in IDS]


def test_similar_items(client: httpx2.Client) -> None:
    answer = client.post("/v1/similar", json={"item_id": "i1", "top_k": 2})
    assert [item_id for item_id, _ in items(answer)] == ["a", "b"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/rank", {"query": "red", "item_ids": ["a", "a"]}, "item_ids[1]: found 'a', which item_ids[0] already is"),
        ("/v1/rank", {"query": "red", "item_ids": []}, "item_ids: found 0 items"),
        ("/v1/rank", {"query": "red", "item_ids": ["1"], "rules": {"pins": {"9": 1}}}, "rules.pins: found '9'"),
        (
            "/v1/rank",
            {"query": "red", "item_ids": ["1"], "user_id": "u"},
            "user_id: model 'rank_saved_fp32_onnx' on the server",
        ),
        ("/v1/rank", {"query": "red", "item_ids": ["1"], "timeout_s": 99}, "timeout_s: found 99, wanted at most 20"),
        ("/v1/recommend", {"history": ["x" * 512], "item_ids": ["1"]}, "history[0]: found 512 bytes"),
        ("/v1/similar", {"item_id": "i1", "top_k": 0}, "top_k: found 0"),
    ],
)
def test_what_the_client_refuses_is_told(client: httpx2.Client, path: str, body: dict[str, Any], message: str) -> None:
    status, kind, told = fault(client.post(path, json=body))
    assert (status, kind) == (422, "invalid")
    assert told.startswith(message)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"item_ids": ["1"]}, "query: Field required"),
        ({"query": "red", "item_ids": "1"}, "item_ids: "),
        ({"query": "red", "item_ids": ["1"], "rules": {"pin": {}}}, "rules.pin: Extra inputs are not permitted"),
        ({"query": "red", "item_ids": ["1"], "timeout_s": 0}, "timeout_s: "),
    ],
)
def test_a_malformed_request_names_the_field(client: httpx2.Client, body: dict[str, Any], place: str) -> None:
    status, kind, told = fault(client.post("/v1/rank", json=body))
    assert (status, kind) == (422, "malformed")
    assert told.startswith(place)


def test_many_faults_are_counted(client: httpx2.Client) -> None:
    _, _, told = fault(client.post("/v1/rank", json={"query": "red", "item_ids": [1] * 12}))
    assert told.count("item_ids[") == 5 and told.endswith("; and 7 more")


def test_models_of_another_kind_are_none(client: httpx2.Client, started: Callable[..., httpx2.Client]) -> None:
    asked = {"query": "red", "item_ids": ["1"], "model": "basket"}
    status, kind, told = fault(client.post("/v1/rank", json=asked))
    assert (status, kind) == (404, "not_found") and told == "model: found 'basket', wanted one of 'shop'"
    only_rank = started(models={"shop": "rank"})
    _, _, told = fault(only_rank.post("/v1/similar", json={"item_id": "i1"}))
    assert told == "this gateway serves no similar; start it with --model NAME=similar"


def test_models_are_listed(client: httpx2.Client) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["shop", "basket", "near"]
    assert {model["object"] for model in listed["data"]} == {"model"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rank", {"query": "red", "item_ids": IDS, "top_k": 2}),
        ("/v1/recommend", {"history": [], "item_ids": IDS, "top_k": 2}),
    ],
)
def test_a_degraded_list_says_so_in_header_and_answer(
    started: Callable[..., httpx2.Client], path: str, body: dict[str, Any]
) -> None:
    answer = started("127.0.0.1:1", first_stage=True, models=MODELS).post(path, json=body)
    assert items(answer) == [("p1", None), ("p2", None)]
    assert answer.headers["x-tritonrank-degraded"] == "first_stage"
    assert answer.json()["degraded"] == {"step": "first_stage", "reason": "Unavailable"}
    assert answer.json()["model"] == ""
