"""The client against a real Triton."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException
from tritonrank_client import (
    ContractMismatch,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RankClient,
    ServerError,
    Unavailable,
)
from tritonrank_client._wire import translated

from builders.core.contract import ITEM_IDS, QUERY
from server import TritonServer
from tests.support.small_model import write_model

pytestmark = pytest.mark.server

WAIT_S = 30


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, "the condition did not come true"
        time.sleep(0.01)


def test_items_come_back_best_first(connect):
    ranked = connect().rank("shoes", ["1", "3", "unknown", "2"])

    assert list(ranked)[:3] == [("3", 3.0), ("2", 2.0), ("1", 1.0)]
    assert ranked.ids[3] == "unknown"
    assert ranked.scored.tolist() == [True, True, True, False]


@pytest.mark.parametrize(("top_k", "count"), [(None, 3), (0, 3), (1, 1), (3, 3), (99, 3)])
def test_top_k_cuts_the_list(connect, top_k, count):
    assert connect().rank("shoes", ["1", "2", "3"], top_k=top_k).ids == ("3", "2", "1")[:count]


def test_the_largest_request_comes_back_whole(connect):
    ids = [f"{row:0511}" for row in range(1024)]

    assert connect().rank("q" * 2048, ids).ids == tuple(reversed(ids))


def test_sixteen_threads_share_a_client(connect):
    client = connect(timeout_s=WAIT_S)

    def rank(start):
        return client.rank("shoes", [str(start), str(start + 1)], top_k=1).ids

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(rank, range(320))) == [(str(start + 1),) for start in range(320)]


def test_ready_is_the_models_readiness(connect):
    assert connect().ready() is True
    assert connect(model="rank_absent").ready() is False


def test_a_model_that_is_not_there_is_unavailable(connect):
    with pytest.raises(
        Unavailable, match=r"unknown model: 'rank_absent' is not found \(NOT_FOUND\); is Triton running"
    ):
        connect(model="rank_absent").rank("shoes", ["1"])


def test_a_foreign_contract_is_told_tensor_by_tensor(connect):
    client = connect(model="rank_foreign")
    for attempt in (lambda: client.rank("shoes", ["1"]), client.check_contract):
        with pytest.raises(ContractMismatch) as caught:
            attempt()
        assert caught.value.differences == (
            "input 'top_k': server has INT64 [1], client wants INT32 [1] optional",
            "output 'scores': server has none, client wants FP32 [any]",
        )


def test_a_held_request_ends_at_its_deadline(connect, gates):
    client = connect()
    client.check_contract()
    query = gates.query()

    with pytest.raises(DeadlineExceeded):
        client.rank(query, ["1"], timeout_s=0.3)
    gates.open()
    assert client.rank("shoes", ["1"]).ids == ("1",)


def test_the_model_is_told_the_time_budget_in_microseconds(connect):
    (microseconds,) = connect().rank("timeout", ["1"], timeout_s=10).scores

    assert 1_000_000 < microseconds <= 10_000_000


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("INVALID_ARG", InvalidRequest),
        ("NOT_FOUND", Unavailable),
        ("UNAVAILABLE", Unavailable),
        ("CANCELLED", Unavailable),
        ("INTERNAL", ServerError),
        ("UNKNOWN", ServerError),
        ("UNSUPPORTED", ServerError),
        ("ALREADY_EXISTS", ServerError),
    ],
)
def test_the_models_own_errors_keep_their_meaning(connect, code, error):
    with pytest.raises(error, match="as asked"):
        connect().rank(f"fail {code}", ["1"])


def test_a_model_that_raises_is_a_server_error(connect):
    with pytest.raises(ServerError, match=r"(?s)RuntimeError: as asked.*\(INTERNAL\); see the server's log"):
        connect().rank("crash", ["1"])


def test_a_score_that_is_not_a_number_is_a_server_error(connect):
    with pytest.raises(ServerError, match=r"scores\[0\]: found nan"):
        connect().rank("nan", ["1"])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("empty", "found 0 ranked_ids and 0 scores, wanted 3 of each"),
        ("short", "found 2 ranked_ids and 2 scores, wanted 3 of each"),
        ("rising", r"scores\[1\]: found 2.0 after 1.0, wanted the highest first"),
        ("twice", "ranked_ids: found 2 repeated ids, wanted distinct ones"),
        ("stranger", "ranked_ids: found '0', wanted ids of the request"),
    ],
)
def test_a_broken_list_is_a_server_error(connect, fault, message):
    with pytest.raises(ServerError, match=message):
        connect().rank(fault, ["1", "2", "3"])


@pytest.mark.parametrize("fault", ["rising", "twice", "stranger"])
def test_a_filter_of_the_servers_explains_no_other_fault(connect, fault):
    client = connect(model="rank_filters")

    assert client.rank("empty", ["1", "2", "3"]).ids == ()
    assert client.rank("short", ["1", "2", "3"]).ids == ("3", "2")
    with pytest.raises(ServerError, match="the server's answer breaks the contract"):
        client.rank(fault, ["1", "2", "3"])


def test_rules_that_a_client_cannot_read_are_a_mismatch(connect):
    with pytest.raises(ContractMismatch, match=r"(?s)model 'rank_unread' on the server says of its lists '{}'"):
        connect(model="rank_unread").rank("shoes", ["1"])


def test_a_full_queue_refuses_and_the_queued_are_still_ranked(connect, gates):
    client = connect(model="rank_queued", timeout_s=WAIT_S)
    query = gates.query()
    with ThreadPoolExecutor(8) as pool:
        requests = [pool.submit(client.rank, query, ["1"]) for _ in range(8)]
        wait(requests, timeout=WAIT_S, return_when=FIRST_COMPLETED)
        refused_at_once = [request for request in requests if request.done()]
        gates.open()
        errors = [request.exception() for request in requests]

    assert refused_at_once and all(isinstance(request.exception(), Overloaded) for request in refused_at_once)
    assert {type(error) for error in errors} == {Overloaded, type(None)}


def test_a_request_that_outlived_its_time_in_the_queue_is_an_overload(server):
    # The client's own deadline would come first: only a bare client can wait for the queue's.
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        inputs = []
        for name in (QUERY.name, ITEM_IDS.name):
            inputs.append(tritonclient.grpc.InferInput(name, [1], "BYTES"))
            inputs[-1].set_data_from_numpy(np.array([b"1"], dtype=object))
        with pytest.raises(InferenceServerException) as caught:
            client.infer("rank_queued", inputs, timeout=1, client_timeout=WAIT_S)

    assert type(translated(caught.value, server.grpc_url, WAIT_S)) is Overloaded


def test_a_closed_client_is_unavailable(connect):
    client = connect()
    client.rank("shoes", ["1"])
    client.close()

    with pytest.raises(Unavailable, match="this client is closed"):
        client.rank("shoes", ["1"])


def test_closing_ends_a_request_of_another_thread(connect, gates):
    client = connect(timeout_s=WAIT_S)
    query = gates.query()
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(client.rank, query, ["1"])
        wait_until(lambda: gates.is_held(query))
        client.close()
        assert isinstance(request.exception(timeout=WAIT_S), Unavailable)


def test_another_service_than_triton_is_unavailable(server):
    with (
        RankClient(server.http_url, timeout_s=WAIT_S) as client,
        pytest.raises(Unavailable, match="Triton's gRPC port"),
    ):
        client.rank("shoes", ["1"])


def test_a_server_that_dies_is_unavailable_until_it_is_back(tmp_path: Path, gates):
    write_model(tmp_path, "rank", gates.folder)
    query = gates.query()
    ports = {"http_port": 0, "metrics_port": 0}
    with (
        TritonServer(tmp_path, grpc_port=0, **ports) as server,
        RankClient(server.grpc_url, timeout_s=WAIT_S) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        request = pool.submit(client.rank, query, ["1"])
        wait_until(lambda: gates.is_held(query))
        server.kill()
        assert isinstance(request.exception(timeout=WAIT_S), Unavailable)
        with pytest.raises(Unavailable, match=r"Connection refused \(UNAVAILABLE\); is Triton running there"):
            client.rank("shoes", ["1"])
        assert client.ready() is False

        with TritonServer(tmp_path, grpc_port=server.grpc_port, **ports):
            wait_until(client.ready)
            assert client.rank("shoes", ["1", "2"]).ids == ("2", "1")
