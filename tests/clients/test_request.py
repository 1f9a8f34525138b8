"""What a caller may ask, checked before anything leaves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tritonrank_client import (
    Boost,
    DeadlineExceeded,
    InvalidRequest,
    MockTransport,
    RankClient,
    Rules,
    _deadline,
    hashed_id,
)
from tritonrank_client._contract import LIMITS

from builders.core.contract import (
    CONTEXT,
    HISTORY,
    ITEM_FIELDS,
    ITEM_IDS,
    ITEM_TEXTS,
    LEFT_OUT,
    QUERY,
    RANKED_IDS,
    SCORES,
    TOP_K,
    USER_ID,
)


class Recorder:
    """A handler that keeps each request and answers in first-stage order."""

    def __init__(self):
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        ids = request.inputs[ITEM_IDS.name]
        count = int(request.inputs.get("top_k", np.zeros(1, np.int32))[0]) or len(ids)
        return {RANKED_IDS.name: ids[:count], SCORES.name: -np.arange(len(ids), dtype=np.float32)[:count]}


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def client(recorder):
    return RankClient("mock", timeout_s=30, transport=MockTransport(recorder))


def test_arrays_leave_in_the_contracts_names_dtypes_and_shapes(client, recorder):
    client.rank("rote Schühe", ["a", "鞋"], top_k=1)

    (request,) = recorder.requests
    assert request.model == "rank"
    assert request.outputs == (RANKED_IDS.name, SCORES.name, LEFT_OUT.name)
    assert request.inputs[QUERY.name].dtype == object and request.inputs[QUERY.name].tolist() == [
        "rote Schühe".encode()
    ]
    assert request.inputs[ITEM_IDS.name].dtype == object and request.inputs[ITEM_IDS.name].tolist() == [
        b"a",
        "鞋".encode(),
    ]
    assert request.inputs[TOP_K.name].dtype == np.int32 and request.inputs[TOP_K.name].tolist() == [1]


def test_without_top_k_no_such_input_leaves(client, recorder):
    client.rank("shoes", ["a"])

    assert list(recorder.requests[0].inputs) == [QUERY.name, ITEM_IDS.name]


@pytest.fixture
def clock(monkeypatch):
    """The package's clock, stopped; `clock.now_s` moves it."""
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(_deadline, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


def test_the_time_budget_leaves_with_the_request(recorder, clock):
    RankClient("mock", transport=MockTransport(recorder)).rank("shoes", ["a"])
    client = RankClient("mock", timeout_s=2, transport=MockTransport(recorder))
    client.rank("shoes", ["a"])
    client.rank("shoes", ["a"], timeout_s=np.float32(0.5))

    assert [request.timeout_s for request in recorder.requests] == pytest.approx([0.2, 2, 0.5])


class SlowToDescribe(MockTransport):
    def __init__(self, handler, clock, seconds):
        super().__init__(handler)
        self.clock, self.seconds = clock, seconds

    def served_model(self, model, timeout_s):
        self.clock.now_s += self.seconds
        return super().served_model(model, timeout_s)


def test_what_the_first_check_of_the_contract_takes_is_taken_from_the_budget(recorder, clock):
    RankClient("mock", timeout_s=2, transport=SlowToDescribe(recorder, clock, 1.5)).rank("shoes", ["a"])

    assert recorder.requests[0].timeout_s == pytest.approx(0.5)


def test_a_spent_budget_sends_nothing(recorder, clock):
    client = RankClient("mock", timeout_s=2, transport=SlowToDescribe(recorder, clock, 2))

    with pytest.raises(DeadlineExceeded, match="timeout_s=2 was spent before the server could be asked"):
        client.rank("shoes", ["a"])
    assert recorder.requests == []


@pytest.mark.parametrize(
    "ids",
    [("a", "b"), np.array(["a", "b"]), iter(["a", "b"]), {"a": 1, "b": 2}.keys().__reversed__()],
    ids=["tuple", "numpy array", "iterator", "reversed view"],
)
def test_ids_come_in_any_ordered_container(client, recorder, ids):
    assert sorted(client.rank("shoes", ids).ids) == ["a", "b"]


def test_top_k_may_be_zero_larger_than_the_items_or_a_numpy_integer(client):
    assert len(client.rank("shoes", ["a", "b"], top_k=0)) == 2
    assert len(client.rank("shoes", ["a", "b"], top_k=9)) == 2
    assert len(client.rank("shoes", ["a", "b"], top_k=np.int64(1))) == 1


def test_the_largest_request_is_taken(client, recorder):
    ids = [f"{row:0{LIMITS.max_item_id_bytes}}" for row in range(LIMITS.max_candidates)]

    assert client.rank("q" * LIMITS.max_query_bytes, ids).ids == tuple(ids)


IDS_TOO_MANY = [str(row) for row in range(1025)]

BAD = [
    ({"query": ""}, "query", "query: found '', wanted text that is not blank"),
    ({"query": " \t\n"}, "query", "query: found ' \\t\\n', wanted text that is not blank"),
    ({"query": "ü" * 1025}, "query", "query: found 2050 bytes of UTF-8, wanted at most 2048"),
    ({"query": b"shoes"}, "query", "query: found bytes, wanted str"),
    ({"query": None}, "query", "query: found NoneType, wanted str"),
    ({"query": "\udcff"}, "query", "query: found '\\udcff', wanted text that UTF-8 can hold"),
    ({"item_ids": []}, "item_ids", "item_ids: found 0 items, wanted 1 to 1024"),
    ({"item_ids": IDS_TOO_MANY}, "item_ids", "item_ids: found 1025 items, wanted 1 to 1024"),
    ({"item_ids": ["a", ""]}, "item_ids", "item_ids[1]: found 0 bytes of UTF-8, wanted 1 to 511"),
    ({"item_ids": ["é" * 256]}, "item_ids", "item_ids[0]: found 512 bytes of UTF-8, wanted 1 to 511"),
    ({"item_ids": ["a", b"b"]}, "item_ids", "item_ids[1]: found bytes, wanted str"),
    ({"item_ids": ["a", 7]}, "item_ids", "item_ids[1]: found int, wanted str"),
    ({"item_ids": [["a"]]}, "item_ids", "item_ids[0]: found list, wanted str"),
    ({"item_ids": ["\ud800"]}, "item_ids", "item_ids[0]: found '\\ud800', wanted text that UTF-8 can hold"),
    (
        {"item_ids": ["a", "b", "a"]},
        "item_ids",
        "item_ids[2]: found 'a', which item_ids[0] already is; wanted distinct ids",
    ),
    ({"item_ids": "abc"}, "item_ids", "item_ids: found str, wanted a sequence of strings in first-stage order"),
    ({"item_ids": {"a"}}, "item_ids", "item_ids: found set, wanted a sequence of strings in first-stage order"),
    ({"item_ids": None}, "item_ids", "item_ids: found NoneType, wanted a sequence of strings in first-stage order"),
    ({"top_k": -1}, "top_k", "top_k: found -1, wanted 0 (all items) to 2147483647"),
    ({"top_k": 2**31}, "top_k", "top_k: found 2147483648, wanted 0 (all items) to 2147483647"),
    ({"top_k": 1.0}, "top_k", "top_k: found 1.0, wanted an integer or None"),
    ({"top_k": True}, "top_k", "top_k: found True, wanted an integer or None"),
    ({"timeout_s": 0}, "timeout_s", "timeout_s: found 0, wanted seconds above 0 and at most 3600"),
    ({"timeout_s": -0.1}, "timeout_s", "timeout_s: found -0.1, wanted seconds above 0 and at most 3600"),
    ({"timeout_s": float("nan")}, "timeout_s", "timeout_s: found nan, wanted seconds above 0 and at most 3600"),
    ({"timeout_s": float("inf")}, "timeout_s", "timeout_s: found inf, wanted seconds above 0 and at most 3600"),
    ({"timeout_s": "1"}, "timeout_s", "timeout_s: found '1', wanted seconds above 0 and at most 3600"),
    ({"item_texts": ["a"]}, "item_texts", "item_texts: found list, wanted a mapping of item ids to texts"),
    ({"item_texts": {"z": "a"}}, "item_texts", "item_texts: found 'z', wanted ids of item_ids"),
    ({"item_texts": {"a": b"a"}}, "item_texts", "item_texts['a']: found bytes, wanted str"),
    (
        {"item_texts": {"a": ""}},
        "item_texts",
        "item_texts['a']: found no text, wanted some; leave the item out to use what is stored",
    ),
    (
        {"item_texts": {"a": "x" * 32_769}},
        "item_texts",
        "item_texts['a']: found 32769 bytes of UTF-8, wanted at most 32768; send its beginning",
    ),
    (
        {"item_texts": {"a": "x"}, "item_fields": {"a": {}}},
        "item_texts",
        "item_texts: found 'a', of which item_fields has the fields; wanted one of the two",
    ),
]


@pytest.mark.parametrize(("change", "argument", "message"), BAD, ids=[message[:50] for _, _, message in BAD])
def test_a_bad_argument_is_named_and_nothing_leaves(client, recorder, change, argument, message):
    with pytest.raises(InvalidRequest) as caught:
        client.rank(**{"query": "shoes", "item_ids": ["a"], **change})

    assert str(caught.value) == message
    assert caught.value.argument == argument
    assert recorder.requests == []


@pytest.mark.parametrize("url", ["", "http://localhost:8000", "grpc://localhost:8001"])
def test_a_client_is_not_made_for_a_url_with_a_scheme_or_none(url):
    with pytest.raises(InvalidRequest, match=f"url: found '{url}', wanted host:port") as caught:
        RankClient(url)
    assert caught.value.argument == "url"


def test_a_client_is_not_made_for_a_bad_budget():
    with pytest.raises(InvalidRequest, match="timeout_s: found -1"):
        RankClient("localhost:8001", timeout_s=-1)


def test_the_documented_limits_are_the_contracts():
    for limit in (LIMITS.max_query_bytes, LIMITS.max_candidates, LIMITS.max_item_id_bytes, LIMITS.max_text_bytes):
        assert f" {limit:,} " in RankClient.rank.__doc__
    for limit in (LIMITS.max_candidates, LIMITS.max_text_bytes):
        assert f" {limit:,} " in RankClient.rerank.__doc__


# ---------------------------------------------------------------- what only some rankers read
def test_without_further_arguments_no_further_input_leaves(client, recorder):
    client.recommend([], ["a"])

    (request,) = recorder.requests
    assert request.model == "recommend"
    assert list(request.inputs) == [HISTORY.name, ITEM_IDS.name]
    assert request.inputs[HISTORY.name].shape == (0,) and request.inputs[HISTORY.name].dtype == object


def test_each_endpoint_asks_its_own_model(recorder):
    client = RankClient(
        "mock", model="rank_a", recommend_model="recommend_b", timeout_s=30, transport=MockTransport(recorder)
    )
    client.rank("shoes", ["a"])
    client.recommend(["h"], ["a"])

    assert [request.model for request in recorder.requests] == ["rank_a", "recommend_b"]


def test_user_history_context_and_item_fields_leave_as_text(client, recorder):
    client.rank(
        "shoes",
        ["a", "é"],
        user_id="ü7",
        history=iter(["x", "x"]),
        context={"country": "Österreich", "hour": 7},
        item_fields={"é": {"price": 1.5}},
    )
    client.recommend(["h"], ["a"], user_id="u", context={}, item_fields={"a": {}}, top_k=1)

    inputs = {name: array.tolist() for name, array in recorder.requests[0].inputs.items()}
    assert inputs == {
        QUERY.name: [b"shoes"],
        ITEM_IDS.name: [b"a", "é".encode()],
        USER_ID.name: ["ü7".encode()],
        HISTORY.name: [b"x", b"x"],
        CONTEXT.name: ['{"country": "Österreich", "hour": 7}'.encode()],
        ITEM_FIELDS.name: [b"", b'{"price": 1.5}'],
    }
    assert {name: array.tolist() for name, array in recorder.requests[1].inputs.items()} == {
        HISTORY.name: [b"h"],
        ITEM_IDS.name: [b"a"],
        TOP_K.name: [1],
        USER_ID.name: [b"u"],
        CONTEXT.name: [b"{}"],
        ITEM_FIELDS.name: [b"{}"],
    }


def test_item_texts_leave_at_their_items_places(client, recorder):
    client.rank("shoes", ["a", "é", "c"], item_texts={"é": "röt"}, item_fields={"c": {}})

    inputs = recorder.requests[0].inputs
    assert inputs[ITEM_TEXTS.name].dtype == object
    assert inputs[ITEM_TEXTS.name].tolist() == [b"", "röt".encode(), b""]
    assert inputs[ITEM_FIELDS.name].tolist() == [b"", b"", b"{}"]


def test_documents_leave_as_texts_of_made_ids_and_come_back_as_positions(client, recorder):
    reranked = client.rerank("shoes", (text for text in ("same", "other", "same")), top_k=2)

    inputs = recorder.requests[0].inputs
    assert recorder.requests[0].model == "rank"
    assert inputs[ITEM_TEXTS.name].tolist() == [b"same", b"other", b"same"]
    assert len(set(inputs[ITEM_IDS.name].tolist())) == 3
    assert inputs[TOP_K.name].tolist() == [2]
    assert reranked.indices == (0, 1)
    assert reranked.scored.tolist() == [True, True]
    assert list(reranked) == [(0, 0.0), (1, -1.0)] and len(reranked) == 2


def test_documents_come_back_in_the_servers_order():
    def last_first(request):
        ids = request.inputs[ITEM_IDS.name]
        scores = np.arange(len(ids), dtype=np.float32)[::-1].copy()
        scores[-1] = LIMITS.unscored
        return {RANKED_IDS.name: ids[::-1], SCORES.name: scores}

    client = RankClient("mock", timeout_s=30, transport=MockTransport(last_first))
    reranked = client.rerank("shoes", ["a"] * LIMITS.max_candidates)

    assert reranked.indices == tuple(reversed(range(LIMITS.max_candidates)))
    assert reranked.scored.tolist() == [True] * (LIMITS.max_candidates - 1) + [False]


BAD_DOCUMENTS = [
    ([], "documents: found 0 documents, wanted 1 to 1024"),
    (["a"] * 1025, "documents: found 1025 documents, wanted 1 to 1024"),
    ("abc", "documents: found str, wanted a sequence of strings"),
    ({"a": "b"}, "documents: found dict, wanted a sequence of strings"),
    (["a", ""], "documents[1]: found no text, wanted some; leave it out"),
    (["a", 7], "documents[1]: found int, wanted str"),
    (["é" * 16_385], "documents[0]: found 32770 bytes of UTF-8, wanted at most 32768; send its beginning"),
    (["secret \ud800"], "documents[0]: found a lone surrogate, wanted text that UTF-8 can hold"),
]


@pytest.mark.parametrize(("documents", "message"), BAD_DOCUMENTS, ids=[message[:50] for _, message in BAD_DOCUMENTS])
def test_documents_that_cannot_be_are_named_and_nothing_leaves(client, recorder, documents, message):
    with pytest.raises(InvalidRequest) as caught:
        client.rerank("shoes", documents)

    assert str(caught.value) == message
    assert caught.value.argument == "documents"
    assert recorder.requests == []


def test_an_empty_history_of_rank_leaves_and_none_does_not(client, recorder):
    client.rank("shoes", ["a"], history=[])
    client.rank("shoes", ["a"])

    assert recorder.requests[0].inputs[HISTORY.name].shape == (0,)
    assert HISTORY.name not in recorder.requests[1].inputs


def rule_arrays(recorder):
    inputs = recorder.requests[-1].inputs
    return {name: array.tolist() for name, array in inputs.items() if name not in (QUERY.name, ITEM_IDS.name)}


def test_rules_leave_in_the_contracts_inputs(client, recorder):
    rules = Rules(
        in_stock_only=True, boosts={"brand=Acme": 0.5, "color=a=b": -1}, pins={"b": 1, "a": 2}, max_per_brand=2
    )
    client.rank("shoes", ["a", "b"], rules=rules)

    assert rule_arrays(recorder) == {
        "in_stock_only": [True],
        "boosted": [b"brand=Acme", b"color=a=b"],
        "boost_amounts": [0.5, -1],
        "pinned_ids": [b"b", b"a"],
        "pinned_positions": [1, 2],
        "max_per_brand": [2],
    }


def test_boosts_may_be_a_sequence(client, recorder):
    client.rank("shoes", ["a"], rules=Rules(boosts=(Boost("brand", "Ümlaut=1", 2), Boost("age", "7", np.float32(1)))))

    assert rule_arrays(recorder) == {"boosted": ["brand=Ümlaut=1".encode(), b"age=7"], "boost_amounts": [2, 1]}


def test_no_rule_leaves_nothing_and_an_empty_rule_leaves_empty(client, recorder):
    client.rank("shoes", ["a"], rules=Rules())
    assert rule_arrays(recorder) == {}
    client.rank("shoes", ["a"], rules=Rules(in_stock_only=False, boosts={}, pins={}, max_per_brand=0))
    assert rule_arrays(recorder) == {
        "in_stock_only": [False],
        "boosted": [],
        "boost_amounts": [],
        "pinned_ids": [],
        "pinned_positions": [],
        "max_per_brand": [0],
    }


def test_similar_sends_one_item_and_a_number(client, recorder):
    def nearest(request):
        recorder.requests.append(request)
        return {RANKED_IDS.name: np.array([b"b"], dtype=object), SCORES.name: np.ones(1, np.float32)}

    client = RankClient("mock", similar_model="similar_2", timeout_s=30, transport=MockTransport(nearest))
    client.similar("é")
    client.similar("é", np.int32(3))

    assert [request.model for request in recorder.requests] == ["similar_2", "similar_2"]
    assert [request.inputs["item_id"].tolist() for request in recorder.requests] == [["é".encode()]] * 2
    assert [request.inputs[TOP_K.name].tolist() for request in recorder.requests] == [[10], [3]]


MANY = {f"a={number}": 1 for number in range(65)}
BAD_FURTHER = [
    ({"user_id": ""}, "user_id", "user_id: found 0 bytes of UTF-8, wanted 1 to 511"),
    ({"user_id": 7}, "user_id", "user_id: found int, wanted str"),
    ({"user_id": "u\ud800"}, "user_id", "user_id: found a lone surrogate, wanted text that UTF-8 can hold"),
    ({"history": "abc"}, "history", "history: found str, wanted a sequence of strings oldest first"),
    ({"history": ["a", ""]}, "history", "history[1]: found 0 bytes of UTF-8, wanted 1 to 511"),
    ({"history": ["\udcff"]}, "history", "history[0]: found a lone surrogate, wanted text that UTF-8 can hold"),
    ({"history": ["a"] * 10_001}, "history", "history: found 10001 items, wanted at most 10000"),
    ({"context": "{}"}, "context", "context: found str, wanted a mapping of raw fields"),
    ({"context": {"a": {1}}}, "context", "context: found what JSON cannot hold (Object of type set is not JSON"),
    ({"context": {"a": float("nan")}}, "context", "context: found what JSON cannot hold (Out of range float values"),
    ({"context": {"a": "x" * 4096}}, "context", "context: found 4105 bytes of JSON, wanted at most 4096"),
    ({"item_fields": [{}]}, "item_fields", "item_fields: found list, wanted a mapping of item ids to fields"),
    ({"item_fields": {"z": {}}}, "item_fields", "item_fields: found 'z', wanted ids of item_ids"),
    ({"item_fields": {"a": 7}}, "item_fields", "item_fields['a']: found int, wanted a mapping of raw fields"),
    ({"rules": {"pins": {}}}, "rules", "rules: found dict, wanted Rules or None"),
    ({"rules": Rules(in_stock_only=1)}, "rules", "rules.in_stock_only: found 1, wanted True, False or None"),
    ({"rules": Rules(boosts="brand=a")}, "rules", "rules.boosts: found str, wanted a mapping or a sequence of Boost"),
    ({"rules": Rules(boosts=["brand=a"])}, "rules", "rules.boosts: found list, wanted a mapping or a sequence of Boo"),
    ({"rules": Rules(boosts={"brand": 1})}, "rules", "rules.boosts: found 'brand', wanted 'attribute=value'"),
    ({"rules": Rules(boosts={"=a": 1})}, "rules", "rules.boosts: found Boost(attribute='', value='a', amount=1), wan"),
    ({"rules": Rules(boosts={"brand=": 1})}, "rules", "rules.boosts: found Boost(attribute='brand', value='', amount"),
    (
        {"rules": Rules(boosts=[Boost("a=b", "c", 1)])},
        "rules",
        "rules.boosts: found Boost(attribute='a=b', value='c', a",
    ),
    ({"rules": Rules(boosts={"a=\udcff": 1})}, "rules", "rules.boosts: found Boost(attribute='a', value='\\udcff', am"),
    ({"rules": Rules(boosts={"a=" + "x" * 510: 1})}, "rules", "rules.boosts: found 512 bytes of UTF-8, wanted at most"),
    (
        {"rules": Rules(boosts={"a=b": float("nan")})},
        "rules",
        "rules.boosts: found Boost(attribute='a', value='b', amo",
    ),
    ({"rules": Rules(boosts={"a=b": 1e7})}, "rules", "rules.boosts: found Boost(attribute='a', value='b', amount=1000"),
    ({"rules": Rules(boosts={"a=b": "1"})}, "rules", "rules.boosts: found Boost(attribute='a', value='b', amount='1')"),
    ({"rules": Rules(boosts=MANY)}, "rules", "rules.boosts: found 65, wanted at most 64"),
    ({"rules": Rules(pins=["a"])}, "rules", "rules.pins: found list, wanted a mapping of item ids to positions"),
    ({"rules": Rules(pins={"z": 1})}, "rules", "rules.pins: found 'z', wanted ids of item_ids"),
    ({"rules": Rules(pins={"a": 0})}, "rules", "rules.pins['a']: found 0, wanted an integer from 1 to 2"),
    ({"rules": Rules(pins={"a": 3})}, "rules", "rules.pins['a']: found 3, wanted an integer from 1 to 2"),
    ({"rules": Rules(pins={"a": 1, "b": 1})}, "rules", "rules.pins: found positions [1, 1], wanted distinct ones"),
    (
        {"rules": Rules(max_per_brand=-1)},
        "rules",
        "rules.max_per_brand: found -1, wanted an integer from 0 to 21474836",
    ),
    ({"rules": Rules(max_per_brand=True)}, "rules", "rules.max_per_brand: found True, wanted an integer from 0 to"),
]


@pytest.mark.parametrize(("change", "argument", "message"), BAD_FURTHER, ids=[message for _, _, message in BAD_FURTHER])
def test_a_bad_further_argument_is_named_and_nothing_leaves(client, recorder, change, argument, message):
    calls = [lambda: client.recommend(**{"history": [], "item_ids": ["a", "b"], **change})]
    calls.append(lambda: client.rank(**{"query": "shoes", "item_ids": ["a", "b"], **change}))
    for call in calls:
        with pytest.raises(InvalidRequest) as caught:
            call()
        assert str(caught.value).startswith(message)
        assert caught.value.argument == argument
    assert recorder.requests == []


def test_recommend_wants_a_history(client):
    with pytest.raises(InvalidRequest, match="history: found NoneType, wanted a sequence of strings oldest first"):
        client.recommend(None, ["a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", 1), "item_id: found 0 bytes of UTF-8, wanted 1 to 511"),
        ((7, 1), "item_id: found int, wanted str"),
        (("a", 0), "top_k: found 0, wanted an integer from 1 to 1024"),
        (("a", 1025), "top_k: found 1025, wanted an integer from 1 to 1024"),
        (("a", None), "top_k: found None, wanted an integer from 1 to 1024"),
        (("a", True), "top_k: found True, wanted an integer from 1 to 1024"),
    ],
)
def test_a_bad_request_for_similar_items_does_not_leave(client, recorder, arguments, message):
    with pytest.raises(InvalidRequest) as caught:
        client.similar(*arguments)

    assert str(caught.value) == message
    assert recorder.requests == []


# ---------------------------------------------------------------- privacy
KEY = b"sixteen secrets!"


def test_a_hashed_id_is_hmac_sha256_in_hexadecimal():
    # openssl: printf 'user 7' | openssl dgst -sha256 -hmac 'sixteen secrets!'
    assert hashed_id("user 7", KEY) == "967577ce898f87b478c678abff90f524af727fb1047a9c620b6ac95c7b9f536b"
    assert hashed_id("user 8", KEY) != hashed_id("user 7", KEY) != hashed_id("user 7", KEY[::-1])


def test_with_a_key_the_users_id_leaves_hashed_and_all_else_as_it_is(recorder):
    client = RankClient("mock", id_key=KEY, timeout_s=30, transport=MockTransport(recorder))
    client.rank("shoes", ["a"], user_id="user 7", history=["h"])
    client.recommend(["h"], ["a"], user_id="user 7")
    client.rank("shoes", ["a"])

    hashed = hashed_id("user 7", KEY).encode()
    assert [request.inputs.get("user_id", np.array([None]))[0] for request in recorder.requests] == [
        hashed,
        hashed,
        None,
    ]
    assert [request.inputs[HISTORY.name].tolist() for request in recorder.requests[:2]] == [[b"h"], [b"h"]]


@pytest.mark.parametrize(
    ("key", "message"),
    [("text", "id_key: found str, wanted bytes"), (KEY[:15], "id_key: found 15 bytes, wanted at least 16 secret ones")],
)
def test_a_bad_key_is_refused(key, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        RankClient("localhost:8001", id_key=key)
    assert caught.value.argument == "id_key"
    with pytest.raises(InvalidRequest, match=message):
        hashed_id("user 7", key)


def test_no_id_is_not_hashed():
    with pytest.raises(InvalidRequest, match="user_id: found no text"):
        hashed_id("", KEY)
