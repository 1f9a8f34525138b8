"""Our own interface: ranking, recommending and similar items by ids, and what goes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from tritonrank_client import RankClient, Rules

from builders.publish.manifest import MANIFEST
from server import TritonServer
from tests.gateway.conftest import ANY_PORTS, NEIGHBOURS, SIMILAR
from tests.support.gateways import PATIENT_S, gateway
from tests.support.raw_endpoints import write_raw_endpoints
from tests.support.repositories import write_model

pytestmark = pytest.mark.server
MODELS = {"shop": "rank", "basket": "recommend", "near": "similar"}
IDS = ["i1", "i2", "i3", "fresh"]


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """`rank` and `recommend` of the kit's own steps, and a `similar` with three items."""
    folder = tmp_path_factory.mktemp("own")
    write_raw_endpoints(folder)
    write_model(folder / "models", "similar", SIMILAR, NEIGHBOURS)
    (folder / "models" / MANIFEST).unlink()  # it names the published ones alone
    with TritonServer(folder / "models", list(MODELS.values()), store=folder / "store", **ANY_PORTS) as server:
        yield server


@pytest.fixture(scope="module")
def client(triton: TritonServer) -> Iterator[httpx2.Client]:
    with gateway(triton.grpc_url, models=MODELS) as found:
        yield found


def items(answer: httpx2.Response) -> list[tuple[str, float | None]]:
    assert answer.status_code == 200, answer.text
    return [(item["id"], item["score"]) for item in answer.json()["items"]]


def fault(answer: httpx2.Response) -> tuple[int, str, str]:
    body = answer.json()
    assert body.keys() == {"error"}
    return answer.status_code, body["error"]["fault"], body["error"]["message"]


def test_items_are_ranked_as_by_the_python_client(triton: TritonServer, client: httpx2.Client) -> None:
    answer = client.post("/v1/rank", json={"query": "red shoe", "item_ids": IDS, "model": "shop"})
    with RankClient(triton.grpc_url, timeout_s=PATIENT_S) as direct:
        ranked = direct.rank("red shoe", IDS)
    wanted = [
        (item_id, score if scored else None) for (item_id, score), scored in zip(ranked, ranked.scored, strict=True)
    ]
    assert items(answer) == wanted
    assert wanted[-1] == ("fresh", None)
    body = answer.json()
    assert (body["model"], body["degraded"]) == ("rank", None)
    assert body["request_id"] == answer.headers["x-request-id"]


RULES: dict[str, dict[str, Any]] = {
    "pins": {"pins": {"i3": 1}},
    "boosts": {"boosts": {"brand=Acme": 50.0}},
    "boosts as a list": {"boosts": [{"attribute": "brand", "value": "Acme", "amount": 50.0}]},
    "a limit of a brand": {"max_per_brand": 1},
    "in stock": {"in_stock_only": True},
}


@pytest.mark.parametrize("name", RULES)
def test_rules_are_the_clients(triton: TritonServer, client: httpx2.Client, name: str) -> None:
    rules = RULES[name]
    body = {"query": "red shoe", "item_ids": IDS, "model": "shop", "rules": rules, "top_k": 3}
    boosts = {"boosts": {"brand=Acme": 50.0}} if "boosts" in rules else {}
    with RankClient(triton.grpc_url, timeout_s=PATIENT_S) as direct:
        wanted = direct.rank("red shoe", IDS, 3, rules=Rules(**{**rules, **boosts}))
    answer = client.post("/v1/rank", json=body)
    assert [item_id for item_id, _ in items(answer)] == list(wanted.ids)
    assert answer.json()["left_out"] == wanted.left_out


def test_a_text_of_the_request_takes_the_place_of_the_stored_one(client: httpx2.Client) -> None:
    body = {"query": "red shoe", "item_ids": ["i1", "fresh"], "item_texts": {"fresh": "red shoe"}, "model": "shop"}
    assert {item_id for item_id, score in items(client.post("/v1/rank", json=body)) if score is None} == set()


def test_items_are_recommended_after_a_history_with_context_and_fields(
    triton: TritonServer, client: httpx2.Client
) -> None:
    further: dict[str, Any] = {"context": {"hour": 7}, "item_fields": {"fresh": {"price": 3, "brand": "Acme"}}}
    with RankClient(triton.grpc_url, timeout_s=PATIENT_S) as direct:
        wanted = list(direct.recommend(["i1"], IDS, **further))
    answer = client.post("/v1/recommend", json={"history": ["i1"], "item_ids": IDS, **further})
    assert items(answer) == wanted
    without = client.post("/v1/recommend", json={"history": [], "item_ids": IDS})
    assert items(without) != wanted


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
            "user_id: model 'rank' on the server",
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
    assert items(answer) == [("i1", None), ("i2", None)]
    assert answer.headers["x-tritonrank-degraded"] == "first_stage"
    assert answer.json()["degraded"] == {"step": "first_stage", "reason": "Unavailable"}
    assert answer.json()["model"] == ""
