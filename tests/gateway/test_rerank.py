"""The interfaces of texts, each by the requests that its documentation shows: Cohere's and its kin, TEI's, NeMo's."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from tritonrank_client import RankClient

from server import TritonServer
from tests.gateway.conftest import MODELS
from tests.support.gateways import PATIENT_S, gateway
from tests.support.small_model import Gates
from tests.support.waiting import wait_until

pytestmark = pytest.mark.server
SHOES = ["a blue mug", "red running shoe", "red shoe, waterproof"]


@dataclass(frozen=True)
class Interface:
    """One to rerank texts by.

    Attributes:
        body: query and texts => body of a request.
        pairs: answer => position and score, in its order.
        field: of the request, that holds the texts.
        statuses: of an invalid request, of too many texts, of no texts, of a failed ranker.
        error: the body of an error => its message; fails unless it has this interface's form.
    """

    path: str
    body: Callable[[str, Sequence[str]], dict[str, Any]]
    pairs: Callable[[Any], list[tuple[int, float]]]
    field: str
    statuses: tuple[int, int, int, int]
    error: Callable[[Mapping[str, Any]], str]

    def post(self, client: httpx2.Client, query: str, texts: Sequence[str], **further: Any) -> httpx2.Response:
        return client.post(self.path, json={**self.body(query, texts), **further})


def cohere_body(query: str, texts: Sequence[str]) -> dict[str, Any]:
    return {"query": query, "documents": list(texts)}


def cohere_pairs(answer: Mapping[str, Any]) -> list[tuple[int, float]]:
    return [(result["index"], result["relevance_score"]) for result in answer["results"]]


def cohere_error(body: Mapping[str, Any]) -> str:
    assert body.keys() == {"message", "detail"} and body["message"] == body["detail"]
    return str(body["message"])


def model_server_error(body: Mapping[str, Any]) -> str:
    assert body.keys() == {"error"}
    return str(body["error"])


def tei_error(body: Mapping[str, Any]) -> str:
    assert body.keys() == {"error", "error_type"}
    return str(body["error"])


def nim_error(body: Mapping[str, Any]) -> str:
    assert body.keys() == {"object", "message", "detail", "type"} and body["object"] == "error"
    return str(body["message"])


COHERE_1 = Interface("/v1/rerank", cohere_body, cohere_pairs, "documents", (400, 413, 400, 502), cohere_error)
COHERE_2 = Interface("/v2/rerank", cohere_body, cohere_pairs, "documents", (400, 413, 400, 502), cohere_error)
MODEL_SERVER = Interface("/v3/rerank", cohere_body, cohere_pairs, "documents", (400, 413, 400, 502), model_server_error)
TEI = Interface(
    "/rerank",
    lambda query, texts: {"query": query, "texts": list(texts)},
    lambda answer: [(rank["index"], rank["score"]) for rank in answer],
    "texts",
    (413, 413, 400, 424),
    tei_error,
)
NEMO = Interface(
    "/v1/ranking",
    lambda query, texts: {"query": {"text": query}, "passages": [{"text": text} for text in texts]},
    lambda answer: [(ranking["index"], ranking["logit"]) for ranking in answer["rankings"]],
    "passages",
    (400, 413, 400, 502),
    nim_error,
)
INTERFACES = (COHERE_1, COHERE_2, MODEL_SERVER, TEI, NEMO)
each = pytest.mark.parametrize("interface", INTERFACES, ids=lambda interface: interface.path)


# ---------------------------------------------------------------- lists
@each
def test_texts_come_in_the_rankers_order_with_its_scores(client: httpx2.Client, interface: Interface) -> None:
    answer = interface.post(client, "any", ["0.25", "-3", "7.5"])
    assert answer.status_code == 200
    assert interface.pairs(answer.json()) == [(2, 7.5), (0, 0.25), (1, -3.0)]


@each
def test_scores_are_those_of_the_python_client(
    triton: TritonServer, client: httpx2.Client, interface: Interface
) -> None:
    with RankClient(triton.grpc_url, timeout_s=PATIENT_S) as direct, gateway(triton.grpc_url) as default:
        wanted = list(direct.rerank("red shoe", SHOES))
        assert interface.pairs(interface.post(default, "red shoe", SHOES).json()) == wanted
    assert len({score for _, score in wanted}) == len(SHOES)


@pytest.mark.parametrize("interface", [COHERE_1, COHERE_2, MODEL_SERVER, NEMO], ids=lambda one: one.path)
def test_the_request_names_a_model(client: httpx2.Client, interface: Interface) -> None:
    by_name = interface.pairs(interface.post(client, "red shoe", SHOES, model="texts").json())
    assert [score for _, score in by_name] == sorted((score for _, score in by_name), reverse=True)
    unknown = interface.post(client, "red shoe", SHOES, model="rank_two_tower")
    assert unknown.status_code == 404
    assert interface.error(unknown.json()) == (
        "model: found 'rank_two_tower', wanted one of 'texts', 'queued', 'foreign'"
    )


@pytest.mark.parametrize("interface", [COHERE_1, COHERE_2, MODEL_SERVER], ids=lambda one: one.path)
def test_of_cohere_top_n_and_documents_that_are_objects(client: httpx2.Client, interface: Interface) -> None:
    documents = ["1", {"text": "3", "title": "three"}, {"text": "2"}]
    body = {"query": "any", "documents": documents, "top_n": 2}
    assert client.post(interface.path, json=body).json()["results"] == [
        {"index": 1, "relevance_score": 3.0},
        {"index": 2, "relevance_score": 2.0},
    ]
    with_documents = client.post(interface.path, json={**body, "return_documents": True, "top_n": 9}).json()["results"]
    assert [result["document"] for result in with_documents] == [documents[1], documents[2], {"text": "1"}]


def test_of_cohere_the_answer_has_id_model_and_version(client: httpx2.Client) -> None:
    for version in ("1", "2"):
        answer = client.post(
            f"/v{version}/rerank", json=cohere_body("any", ["1"]), headers={"x-request-id": "search-7"}
        )
        rest = {key: value for key, value in answer.json().items() if key != "results"}
        assert rest == {"id": "search-7", "model": "texts", "meta": {"api_version": {"version": version}}}
        assert answer.headers["x-request-id"] == "search-7"
    assert client.post("/v3/rerank", json=cohere_body("any", ["1"])).json().keys() == {"results"}


def test_of_tei_texts_come_with_their_scores_when_asked_for(client: httpx2.Client) -> None:
    body = {"query": "any", "texts": ["1", "2"], "return_text": True, "raw_scores": False, "truncate": True}
    assert client.post("/rerank", json=body).json() == [
        {"index": 1, "text": "2", "score": 2.0},
        {"index": 0, "text": "1", "score": 1.0},
    ]


def test_of_nemo_the_request_of_its_documentation(client: httpx2.Client) -> None:
    body = {
        "model": "texts",
        "query": {"text": "which way should i go?"},
        "passages": [{"text": "two roads diverged in a yellow wood"}, {"text": "then took the other, as just as fair"}],
        "truncate": "END",
    }
    rankings = client.post("/v1/ranking", json=body).json()["rankings"]
    assert [ranking.keys() for ranking in rankings] == [{"index", "logit"}] * 2
    assert rankings[0]["logit"] > rankings[1]["logit"]


# ---------------------------------------------------------------- what is not ranked
@each
def test_a_field_that_is_not_the_interfaces_is_refused(client: httpx2.Client, interface: Interface) -> None:
    answer = interface.post(client, "any", ["1"], rank_fields=["title"])
    assert answer.status_code in (400, 422)
    assert interface.error(answer.json()) == "rank_fields: Extra inputs are not permitted"


@each
def test_a_field_that_is_null_asks_for_nothing(client: httpx2.Client, interface: Interface) -> None:
    """LangChain's CohereRerank sends ``max_tokens_per_doc`` so."""
    further = {"max_tokens_per_doc": None, "top_n": None, "return_documents": None, "truncate": None}
    assert interface.post(client, "any", ["1"], **further).status_code == 200


@pytest.mark.parametrize(
    ("interface", "further"),
    [(TEI, {"raw_scores": True}), (NEMO, {"truncate": "NONE"}), (COHERE_1, {"max_chunks_per_doc": 3})],
)
def test_what_the_gateway_cannot_do_is_refused(
    client: httpx2.Client, interface: Interface, further: dict[str, Any]
) -> None:
    answer = interface.post(client, "any", ["1"], **further)
    assert answer.status_code in (400, 422)
    assert next(iter(further)) in interface.error(answer.json())


MALFORMED: dict[str, tuple[bytes, str]] = {
    "not JSON": (b'{"query": ', "body"),
    "a list": (b"[]", "body"),
    "deep": (b"[" * 100_000, "body"),
    "a number of ten thousand digits": (b'{"query": ' + b"9" * 10_000 + b"}", "body"),
    "not UTF-8": (b'{"query": "\xff"}', "body"),
}


@each
@pytest.mark.parametrize("fault", MALFORMED)
def test_a_body_that_is_none_is_refused_in_the_interfaces_form(
    client: httpx2.Client, interface: Interface, fault: str
) -> None:
    body, place = MALFORMED[fault]
    answer = client.post(interface.path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413, 422)
    assert place in interface.error(answer.json())


@each
@pytest.mark.parametrize(("query", "text", "place"), [("\ud800", "1", "query"), ("any", "\ud800", "")])
def test_half_a_character_is_refused(
    client: httpx2.Client, interface: Interface, query: str, text: str, place: str
) -> None:
    body = json.dumps(interface.body(query, [text]))
    answer = client.post(interface.path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == interface.statuses[0]
    assert interface.error(answer.json()).startswith(place or f"{interface.field}[0]")


@each
def test_a_text_that_is_none_is_named_by_its_place_and_not_shown(client: httpx2.Client, interface: Interface) -> None:
    body = interface.body("any", ["1", "secret"])
    body[interface.field][1] = {"text": ["secret"]}
    answer = client.post(interface.path, json=body)
    message = interface.error(answer.json())
    assert answer.status_code in (400, 422)
    assert message.startswith(f"{interface.field}[1]") and "secret" not in message


@each
def test_limits_of_the_ranker_are_told_by_the_interfaces_own_fields(
    client: httpx2.Client, interface: Interface
) -> None:
    invalid, _, empty, _ = interface.statuses
    too_long = interface.post(client, "any", ["1", "x" * 32_769])
    assert too_long.status_code == invalid
    assert interface.error(too_long.json()) == (
        f"{interface.field}[1]: found 32769 bytes of UTF-8, wanted at most 32768; send its beginning"
    )
    blank = interface.post(client, " ", ["1"])
    assert blank.status_code == invalid
    assert interface.error(blank.json()) == "query: found ' ', wanted text that is not blank"
    none = interface.post(client, "any", [])
    assert none.status_code == empty
    assert interface.error(none.json()) == f"{interface.field}: found none, wanted 1 to 1000"


@each
def test_more_texts_than_the_gateway_takes_are_refused(client: httpx2.Client, interface: Interface) -> None:
    answer = interface.post(client, "any", ["1"] * 1001)
    assert answer.status_code == interface.statuses[1]
    assert interface.error(answer.json()) == f"{interface.field}: found 1001, wanted at most 1000 (--max-documents)"


@each
def test_a_ranker_that_fails_is_told_without_its_address(
    triton: TritonServer, client: httpx2.Client, interface: Interface
) -> None:
    answer = interface.post(client, "crash", ["1"])
    assert answer.status_code == interface.statuses[3]
    assert interface.error(answer.json()) == "the ranker failed"


@each
def test_what_the_server_refuses_is_told_without_its_address(client: httpx2.Client, interface: Interface) -> None:
    answer = interface.post(client, "fail INVALID_ARG", ["1"])
    assert answer.status_code == interface.statuses[0]
    assert interface.error(answer.json()).startswith("as asked (INVALID_ARGUMENT)")


@each
def test_a_ranker_that_is_not_there_is_503(started: Callable[..., httpx2.Client], interface: Interface) -> None:
    answer = interface.post(started("127.0.0.1:1"), "any", ["1"])
    assert answer.status_code == 503
    assert "cannot be reached" in interface.error(answer.json())


@each
def test_a_ranker_that_is_late_is_504(
    started: Callable[..., httpx2.Client], gates: Gates, interface: Interface
) -> None:
    answer = interface.post(started(timeout_s=0.1), gates.query(), ["1"])
    assert answer.status_code == 504
    assert "did not answer in time" in interface.error(answer.json())


def test_a_ranker_that_has_too_much_to_do_is_429_with_a_time_to_wait(client: httpx2.Client, gates: Gates) -> None:
    from concurrent.futures import ThreadPoolExecutor

    held = gates.query()
    with ThreadPoolExecutor(8) as pool, contextlib.ExitStack() as at_last:
        at_last.callback(gates.open)
        first = pool.submit(COHERE_2.post, client, held, ["1"], model="queued")
        wait_until(lambda: gates.is_held(held))
        others = [pool.submit(COHERE_2.post, client, "any", ["1"], model="queued") for _ in range(7)]
        wait_until(lambda: sum(other.done() for other in others) >= 5)
        refused = [other.result() for other in others if other.done()]
    assert {answer.status_code for answer in refused} == {429}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert "too much to do" in cohere_error(refused[0].json())
    assert first.result().status_code == 200


@each
def test_in_place_of_a_ranker_that_is_not_there_the_requests_order(
    started: Callable[..., httpx2.Client], interface: Interface
) -> None:
    client = started("127.0.0.1:1", first_stage=True, models={"rank": "rank"})
    answer = interface.post(client, "any", ["1", "3", "2"])
    assert answer.status_code == 200
    assert answer.headers["x-tritonrank-degraded"] == "first_stage"
    assert interface.pairs(answer.json()) == [(0, 0.0), (1, 0.0), (2, 0.0)]
    if interface in (COHERE_1, COHERE_2):
        assert answer.json()["meta"]["warnings"] == ["degraded: first_stage"]
    page = client.get("/metrics").text
    assert f'tritonrank_gateway_degraded_total{{interface="{interface.path}",step="first_stage"}} 1.0' in page


def test_an_invalid_request_is_never_degraded(started: Callable[..., httpx2.Client]) -> None:
    client = started(first_stage=True)
    assert COHERE_2.post(client, " ", ["1"]).status_code == 400
    assert MODELS["foreign"] == "rank_foreign"
    assert COHERE_2.post(client, "any", ["1"], model="foreign").headers["x-tritonrank-degraded"] == "first_stage"
