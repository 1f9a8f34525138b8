"""Clients of several real Tritons, and of one behind a network that breaks."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tritonrank_client import (
    Connections,
    DeadlineExceeded,
    Degradation,
    RankClient,
    RankedList,
    RetryPolicy,
    TritonRankError,
    Unavailable,
    _wire,
)

from server import TritonServer
from tests.support.endpoint import metric
from tests.support.proxy import Proxy
from tests.support.small_model import write_model
from tests.support.waiting import wait_until

pytestmark = pytest.mark.server
QUICK = Connections(eject_every_s=0.5, ejected_s=2.0)
IDS = ["1", "2", "3"]
LATE_S = 1.0
"""A call that ends so long after its deadline has hung: this machine may be busy."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[TritonServer]]:
    folder = tmp_path_factory.mktemp("pair")
    write_model(folder / "models", "rank", folder)
    ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    servers = [TritonServer(folder / "models", load=None, log_verbose=1, **ports) for _ in range(2)]
    for server in servers:
        server.start()
    yield servers
    for server in servers:
        server.stop()


def answered(server: TritonServer) -> float:
    return metric(server, "nv_inference_request_success", "rank")


def test_the_request_id_stands_in_the_servers_log(pair: list[TritonServer]) -> None:
    with RankClient(pair[0].grpc_url, timeout_s=5) as client:
        client.rank("shoes", IDS, request_id="search 4711")
    assert "[request id: search 4711]" in pair[0].log()


def good(client: RankClient) -> bool:
    try:
        return client.rank("shoes", IDS).ids == ("3", "2", "1")
    except TritonRankError:
        return False


def test_servers_take_turns(pair: list[TritonServer]) -> None:
    before = [answered(server) for server in pair]
    with RankClient([server.grpc_url for server in pair], timeout_s=5) as client:
        for _ in range(20):
            client.rank("shoes", IDS)

    def counted() -> list[float]:
        return [answered(server) - was for server, was in zip(pair, before, strict=True)]

    wait_until(lambda: sum(counted()) == 20)
    assert min(counted()) >= 5  # the first ones go to whichever is connected first


def test_one_that_hangs_is_set_aside_and_gets_requests_again(pair: list[TritonServer]) -> None:
    with RankClient([server.grpc_url for server in pair], timeout_s=0.05, connections=QUICK) as client:
        wait_until(lambda: all(good(client) for _ in range(4)))
        os.kill(pair[0].process_group, signal.SIGSTOP)
        os.kill(pair[0].pid, signal.SIGSTOP)
        try:
            wait_until(lambda: all(good(client) for _ in range(20)))
        finally:
            os.kill(pair[0].pid, signal.SIGKILL)  # its stub has ended meanwhile: it would not get well
            os.kill(pair[0].process_group, signal.SIGCONT)
        pair[0].restart()
        wait_until(lambda: good(client) and answered(pair[0]) > 0)


def test_one_that_was_killed_costs_no_call_that_may_be_retried(pair: list[TritonServer]) -> None:
    with RankClient([server.grpc_url for server in pair], timeout_s=2, retry=RetryPolicy()) as client:
        wait_until(lambda: good(client))
        pair[1].kill()
        assert [good(client) for _ in range(20)] == [True] * 20
        pair[1].restart()
        wait_until(lambda: good(client) and answered(pair[1]) > 0)


def test_a_new_address_gets_requests_when_connections_are_old(
    pair: list[TritonServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is resolved by a fake: this machine's names cannot be changed."""
    known = [pair[0].grpc_url]

    def resolve(url: str) -> list[tuple[socket.AddressFamily, str]]:
        return [(socket.AF_INET, address) for address in known]

    monkeypatch.setattr(_wire, "_addresses", resolve)
    with RankClient(["ranker:8001", "ranker:8001"], timeout_s=5, connections=Connections(max_age_s=0.3)) as client:
        client.rank("shoes", IDS)
        known.append(pair[1].grpc_url)
        was = answered(pair[1])
        wait_until(lambda: good(client) and answered(pair[1]) > was)


def test_a_name_that_is_none_is_unavailable() -> None:
    with RankClient(["no-such-host.invalid:8001", "localhost:1"]) as client, pytest.raises(Unavailable, match="right"):
        client.rank("shoes", IDS)


# ---------------------------------------------------------------- a network that breaks
@pytest.fixture(scope="module")
def proxied(pair: list[TritonServer]) -> Iterator[Callable[[], Proxy]]:
    made: list[Proxy] = []

    def make() -> Proxy:
        host, _, port = pair[0].grpc_url.partition(":")
        made.append(Proxy((host, int(port)), delay_s=0.02))
        return made[-1]

    yield make
    for proxy in made:
        proxy.__exit__()


@pytest.mark.parametrize("fault", ["delay", "blackhole", "reset", "half close", "noise"])
def test_a_broken_network_gives_no_wrong_list_and_no_late_one_and_is_over_when_it_is_over(
    proxied: Callable[[], Proxy], fault: str
) -> None:
    proxy = proxied()
    with RankClient(proxy.url, timeout_s=0.5, degradation=Degradation()) as client:
        wait_until(lambda: not client.rank("shoes", IDS).degraded)
        proxy.fault = fault
        for _ in range(6):
            start_s = time.monotonic()
            found = client.rank("shoes", IDS)
            assert time.monotonic() - start_s < 0.5 + LATE_S
            assert is_right(found)
        proxy.fault = ""
        wait_until(lambda: not client.rank("shoes", IDS).degraded)


def is_right(found: RankedList) -> bool:
    return found.ids == (("1", "2", "3") if found.degraded else ("3", "2", "1"))


def test_what_no_server_speaks_is_unavailable() -> None:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        assert RankClient(url, timeout_s=0.3, degradation=Degradation()).rank("shoes", IDS).degraded is not None


def test_names_that_take_too_long_end_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    answered_late = threading.Event()

    def resolve(url: str) -> list[tuple[socket.AddressFamily, str]]:
        answered_late.wait(10)
        return [(socket.AF_INET, "127.0.0.1:1")]

    monkeypatch.setattr(_wire, "_addresses", resolve)
    with RankClient(["a:8001", "b:8001"], timeout_s=0.1) as client, pytest.raises(DeadlineExceeded, match="names"):
        client.rank("shoes", IDS)
    answered_late.set()
