"""What a call leaves behind: spans, figures, a line of the log; and nothing where the packages are not installed."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import prometheus_client
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tritonrank_client import Degradation, MockTransport, RankClient, RetryPolicy, Unavailable

from builders.core.workspace import REPOSITORY_ROOT
from tests.support.failing_ranker import FailingRanker

IDS = ["a", "b"]
SECRET = "a secret query"


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def value(name: str, **labels: str) -> float:
    return prometheus_client.REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_span_says_how_the_call_ended_and_its_context_goes_to_the_server(spans: InMemorySpanExporter) -> None:
    spans.clear()
    server = FailingRanker(failures=1)
    RankClient("fake", transport=MockTransport(server), retry=RetryPolicy()).rank(SECRET, IDS, request_id="r1")
    [span] = spans.get_finished_spans()
    assert span.name == "tritonrank rank" and span.attributes is not None
    assert dict(span.attributes) == {
        "tritonrank.candidates": 2, "tritonrank.request_id": "r1", "tritonrank.model": "rank",
        "tritonrank.outcome": "answered", "tritonrank.retries": 1, "tritonrank.hedges": 0,
    }  # fmt: skip
    wanted = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}"
    assert [request.headers["traceparent"].rpartition("-")[0] for request in server.asked] == [wanted] * 2


def test_figures_count_by_outcome(spans: InMemorySpanExporter) -> None:
    seconds = "tritonrank_client_seconds_count"
    ranked = value(seconds, endpoint="rank", outcome="answered")
    degraded = value(seconds, endpoint="rank", outcome="first_stage")
    failed = value(seconds, endpoint="rank", outcome="Unavailable")
    further = value("tritonrank_client_further_attempts_total", endpoint="rank", kind="retry")
    RankClient("fake", transport=MockTransport(FailingRanker(1)), retry=RetryPolicy()).rank(SECRET, IDS)
    RankClient("fake", transport=MockTransport(FailingRanker(9)), degradation=Degradation()).rank(SECRET, IDS)
    with pytest.raises(Unavailable):
        RankClient("fake", transport=MockTransport(FailingRanker(9))).rank(SECRET, IDS)
    assert value(seconds, endpoint="rank", outcome="answered") == ranked + 1
    assert value(seconds, endpoint="rank", outcome="first_stage") == degraded + 1
    assert value(seconds, endpoint="rank", outcome="Unavailable") == failed + 1
    assert value("tritonrank_client_further_attempts_total", endpoint="rank", kind="retry") == further + 1


FIRST_CALLS = """
import threading
from concurrent.futures import ThreadPoolExecutor
from tritonrank_client import MockTransport, RankClient
from tests.support.failing_ranker import FailingRanker

client, ready = RankClient("fake", transport=MockTransport(FailingRanker())), threading.Barrier(16)

def ask(number):
    ready.wait()
    return len(client.rank("red", ["a", "b"]))

with ThreadPoolExecutor(16) as pool:
    print(sum(pool.map(ask, range(16))))
"""


def test_the_first_calls_of_many_threads_are_all_answered() -> None:
    """Of a process that has registered no figure yet."""
    done = subprocess.run([sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True, cwd=REPOSITORY_ROOT)
    assert done.stdout == "32\n", done.stderr


def test_a_degraded_call_is_logged_with_its_request_id_and_nothing_of_the_user(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "tritonrank_client"):
        RankClient("fake", transport=MockTransport(FailingRanker(9)), degradation=Degradation()).rank(
            SECRET, IDS, request_id="r2", user_id="a secret user"
        )
    [record] = caplog.records
    assert vars(record)["request_id"] == "r2" and vars(record)["step"] == "first_stage"
    assert "secret" not in str(vars(record))


WITHOUT = """
import sys
for name in ("prometheus_client", "opentelemetry", "tenacity", "pybreaker", "pytest"):
    sys.modules[name] = None
import numpy as np
from tritonrank_client import *
def order(request):
    ids = request.inputs["item_ids"]
    return {"ranked_ids": ids, "scores": np.zeros(len(ids), np.float32)}
print(RankClient("fake", transport=MockTransport(order), degradation=Degradation()).rank("shoes", ["a"]).ids)
for options in ({"retry": RetryPolicy()}, {"breaker": BreakerPolicy()}):
    try:
        RankClient("fake", transport=MockTransport(order), **options)
    except InvalidRequest as error:
        print(error)
"""


def test_numpy_and_tritonclient_are_enough() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "('a',)", done.stderr
    assert re.match(r"retry: found no package tenacity, .* pip install 'tritonrank-client\[resilience\]'", lines[1])
    assert "breaker: found no package pybreaker" in lines[2]
