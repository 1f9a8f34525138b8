"""Each alert fires on the fault that it is for, and clears after it.

By promtool at its true duration on made-up series, and by Prometheus and Alertmanager, faster, on faults of the real
server."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import math
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from builders.core.contract import ITEM_IDS, QUERY
from builders.publish.lifecycle import promote
from builders.publish.manifest import PublishedVersion, read_manifest, write_manifest
from server import TritonServer
from tests.support import monitoring
from tests.support.admin import admin_client
from tests.support.endpoint import send, texts
from tests.support.monitoring import Monitoring
from tests.support.own_ranker import built_own_ranker, catalogue
from tests.support.small_model import Gates, write_model
from tests.support.waiting import wait_until
from tests.test_compose import alerts, panel_expressions

CASES = Path(__file__).with_name("alerts_test.yml")
GATED = "rank_gated"
"""An endpoint that answers when it is told to."""
KNOWN = list(catalogue().products)[:20]
UNKNOWN = [f"unknown-{row}" for row in range(20)]
WITHIN_S = 60.0
needs_prometheus = pytest.mark.skipif(bool(monitoring.missing()), reason=monitoring.missing())


# ---------------------------------------------------------------- true durations
@needs_prometheus
def test_alerts_fire_and_clear_at_their_true_durations() -> None:
    ran = subprocess.run(["promtool", "test", "rules", CASES], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_has_a_case() -> None:
    cases = CASES.read_text(encoding="utf-8")
    assert [name for name in sorted(rule["alert"] for rule in alerts()) if f'alertname="{name}"' not in cases] == []


# ---------------------------------------------------------------- the real server
@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Gates:
    return Gates(tmp_path_factory.mktemp("gates"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, gates: Gates) -> Callable[..., TritonServer]:
    """Makes servers of one repository: `rank` is a ranker with the kit's own pre- and post-processing."""
    built, workspace = built_own_ranker(tmp_path_factory.mktemp("own"))
    promote(workspace.repository, "rank", f"rank_{built.recipe.model_name(built.variants[0].variant)}")
    write_model(workspace.repository, GATED, gates.folder)
    manifest = read_manifest(workspace.repository)
    published = {1: PublishedVersion(built_from={}, since="some day")}
    write_manifest(workspace.repository, manifest.model_copy(update={"models": {**manifest.models, GATED: published}}))

    def start(**ports: int) -> TritonServer:
        return TritonServer(workspace.repository, ["rank", GATED], store=workspace.item_store, **ports)

    return start


@pytest.fixture(scope="module")
def server(start: Callable[..., TritonServer]) -> Iterator[TritonServer]:
    with start(grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def watched(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitoring]:
    with monitoring.monitoring(tmp_path_factory.mktemp("monitoring"), f"{server.host}:{server.metrics_port}") as found:
        yield found


@contextlib.contextmanager
def requests(
    server: TritonServer, items: list[str], query: str = "red coffee mug", model: str = "rank", callers: int = 1
) -> Iterator[None]:
    """Callers that ask one request after the other, whatever comes of it, until the end of the block."""
    over = threading.Event()

    def call() -> None:
        with grpc.InferenceServerClient(server.grpc_url) as client:
            while not over.is_set():
                with contextlib.suppress(InferenceServerException):
                    send(client, model, **{QUERY.name: texts(query), ITEM_IDS.name: texts(*items)})

    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        running = [pool.submit(call) for _ in range(callers)]
        try:
            yield
        finally:
            over.set()
    for each in running:
        each.result()


def fires(watched: Monitoring, alert: str) -> None:
    wait_until(lambda: alert in watched.alerts(), WITHIN_S)


def clears(watched: Monitoring, alert: str) -> None:
    wait_until(lambda: alert not in watched.alerts(), WITHIN_S)


@needs_prometheus
@pytest.mark.server
def test_nothing_fires_while_all_is_well(server: TritonServer, watched: Monitoring) -> None:
    with requests(server, KNOWN):
        wait_until(
            lambda: watched.values('increase(nv_inference_request_success{model="rank"}[1m])') > [100.0], WITHIN_S
        )
        assert watched.alerts() == set()


REFUSED: dict[str, Any] = {"items": KNOWN, "query": ""}
FAULTS: dict[str, list[dict[str, Any]]] = {
    "RequestsFail": [{"items": KNOWN}, REFUSED],
    "EndpointDown": [REFUSED],
    "ManyUnknownItems": [{"items": KNOWN + UNKNOWN}],
    "QueueTimeHigh": [{"items": KNOWN, "callers": 16}],
}
"""Alert => what is asked side by side until it fires."""


@needs_prometheus
@pytest.mark.server
@pytest.mark.parametrize("alert", FAULTS)
def test_what_is_asked_fires_and_clears(alert: str, server: TritonServer, watched: Monitoring) -> None:
    with contextlib.ExitStack() as load:
        for asked in FAULTS[alert]:
            load.enter_context(requests(server, **asked))
        fires(watched, alert)
    with requests(server, KNOWN):
        clears(watched, alert)


@needs_prometheus
@pytest.mark.server
def test_every_panel_of_the_dashboard_shows_something(server: TritonServer, watched: Monitoring) -> None:
    """After what the tests above did, but for what only a GPU gives, a ranker that reads texts, or a score cache."""
    panels = [
        expression
        for _, expression in panel_expressions()
        if not any(name in expression for name in ("nv_gpu", "truncated_texts", "score_cache"))
    ]

    def shows(expression: str) -> bool:
        return any(map(math.isfinite, watched.values(expression)))

    with requests(server, KNOWN + UNKNOWN), requests(server, KNOWN, query=""):
        for expression in panels:
            wait_until(functools.partial(shows, expression), WITHIN_S)


@needs_prometheus
@pytest.mark.server
def test_a_model_that_hangs(server: TritonServer, watched: Monitoring, gates: Gates) -> None:
    with requests(server, ["1", "2"], query=gates.query(), model=GATED, callers=3):
        fires(watched, "RequestsStuck")
        gates.open()
        clears(watched, "RequestsStuck")


@needs_prometheus
@pytest.mark.server
def test_the_stores_reader_slots_are_nearly_gone(server: TritonServer, watched: Monitoring) -> None:
    with lmdb.open(str(server.store), max_readers=1024, max_dbs=1, lock=True, readonly=True) as environment:
        held = [environment.begin() for _ in range(950)]  # a slot each
        with requests(server, KNOWN):
            fires(watched, "StoreReadersNearlyGone")
            held.clear()
            clears(watched, "StoreReadersNearlyGone")


@needs_prometheus
@pytest.mark.server
def test_rank_is_not_served(server: TritonServer, watched: Monitoring) -> None:
    with admin_client(server) as client:
        client.unload_model("rank")
        fires(watched, "RankNotServed")
        client.load_model("rank")
    clears(watched, "RankNotServed")


@needs_prometheus
@pytest.mark.server
def test_the_server_is_down(server: TritonServer, watched: Monitoring) -> None:
    server.stop()
    fires(watched, "TritonDown")
    server.start()
    clears(watched, "TritonDown")
