"""What a caller may ask, checked before anything leaves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tritonrank_client import DeadlineExceeded, InvalidRequest, MockTransport, RankClient, _deadline
from tritonrank_client._contract import RANK


class Recorder:
    """A handler that keeps each request and answers in first-stage order."""

    def __init__(self):
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        ids = request.inputs["item_ids"]
        count = int(request.inputs.get("top_k", np.zeros(1, np.int32))[0]) or len(ids)
        return {"ranked_ids": ids[:count], "scores": -np.arange(len(ids), dtype=np.float32)[:count]}


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
    assert request.outputs == ("ranked_ids", "scores")
    assert request.inputs["query"].dtype == object and request.inputs["query"].tolist() == ["rote Schühe".encode()]
    assert request.inputs["item_ids"].dtype == object and request.inputs["item_ids"].tolist() == [b"a", "鞋".encode()]
    assert request.inputs["top_k"].dtype == np.int32 and request.inputs["top_k"].tolist() == [1]


def test_without_top_k_no_such_input_leaves(client, recorder):
    client.rank("shoes", ["a"])

    assert list(recorder.requests[0].inputs) == ["query", "item_ids"]


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
    ids = [f"{row:0{RANK.max_item_id_bytes}}" for row in range(RANK.max_candidates)]

    assert client.rank("q" * RANK.max_query_bytes, ids).ids == tuple(ids)


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
    for limit in (RANK.max_query_bytes, RANK.max_candidates, RANK.max_item_id_bytes):
        assert f" {limit:,} " in RankClient.rank.__doc__
