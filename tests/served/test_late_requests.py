"""Requests that would be answered too late are not computed: whoever waits, in whichever step, by whatever clock."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException
from tritonrank_client import DeadlineExceeded, InferRequest
from tritonrank_client._sync._transport import GrpcTransport

from builders.core.workspace import SHARED_CODE
from server import TritonServer
from tests.support.onnx_models import CONFIG, save_summing_model
from tests.support.repositories import VECTOR_CONFIG, inputs_of, vector, write_model
from tests.support.waiting import wait_until

[DEADLINES] = [path for path in SHARED_CODE if path.stem == "deadlines"]
TIMEOUT_S = 0.2

# Writes down what it computes; the first request waits until the file "door" is there.
SLOW = """
import os, time
import triton_python_backend_utils as pb_utils
from deadlines import Deadlines

class TritonPythonModel:
    def initialize(self, args):
        self.folder, self.deadlines = os.environ["TRITONRANK_ITEM_STORE"], Deadlines(needed=0.5)

    def execute(self, requests):
        return self.deadlines.answer(requests, lambda kept: [self.respond(request) for request in kept])

    def respond(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        with open(self.folder + "/computed", "a") as computed:
            computed.write(f"{int(x[0])} ")
        while not os.path.exists(self.folder + "/door"):
            time.sleep(0.01)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", x)])
"""
ENSEMBLE = VECTOR_CONFIG.replace('backend: "python"', 'platform: "ensemble"') + (
    """
    ensemble_scheduling { step [
        { model_name: "slow" model_version: -1
          input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } }
    ] }
    """
)
ONE_INSTANCE = "instance_group [{ count: 1 kind: KIND_CPU }]"


# ---------------------------------------------------------------- by the clock of a test
class Asked:
    """A request that brings its timeout and these parameters."""

    def __init__(self, timeout_s: float = TIMEOUT_S, **parameters: object) -> None:
        self._timeout_us, self._parameters = int(timeout_s * 1e6), json.dumps(parameters)

    def timeout(self) -> int:
        return self._timeout_us

    def parameters(self) -> str:
        return self._parameters


class Clock:
    def __init__(self) -> None:
        self.now_s = 1e9

    def __call__(self) -> float:
        return self.now_s

    def sent(self, ago_s: float, ahead_s: float = 0.0, client: str = "a", **settings: float) -> Asked:
        """A request of a client whose clock is ahead by so much."""
        return Asked(**settings, sent_unix_us=int((self.now_s - ago_s + ahead_s) * 1e6), client=client)


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    spec = importlib.util.spec_from_file_location("shared_deadlines", DEADLINES)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0, -3600.0])
def test_a_request_is_late_by_what_it_waited_whatever_the_clients_clock_says(
    code: Any, clock: Clock, ahead_s: float
) -> None:
    deadlines = code.Deadlines(needed=0.5, now=clock)
    assert not deadlines.refusal(clock.sent(0.001, ahead_s))
    assert not deadlines.refusal(clock.sent(0.099, ahead_s))
    assert "Request timeout expired" in deadlines.refusal(clock.sent(0.103, ahead_s))
    assert not deadlines.refusal(clock.sent(0.103, ahead_s, timeout_s=1.0))
    assert not deadlines.refusal(clock.sent(5.0, -ahead_s, client="another"))  # its first


def test_a_quick_step_keeps_a_quarter_of_the_time_for_the_way_back(code: Any, clock: Clock) -> None:
    deadlines = code.Deadlines(now=clock)  # no call yet, so it takes none to be slow
    assert not deadlines.refusal(clock.sent(0.0))
    assert not deadlines.refusal(clock.sent(0.149))
    assert deadlines.refusal(clock.sent(0.151))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"sent_unix_us": 1},
        {"client": "a"},
        {"sent_unix_us": "x", "client": "a"},
        {"sent_unix_us": 1, "client": [1]},
    ],
)
def test_a_request_that_does_not_say_when_it_was_sent_is_computed(
    code: Any, clock: Clock, parameters: dict[str, object]
) -> None:
    deadlines = code.Deadlines(needed=0.5, now=clock)
    assert [deadlines.refusal(Asked(**parameters)) for _ in range(2)] == ["", ""]  # type: ignore[arg-type]


def test_one_without_a_timeout_is_computed(code: Any, clock: Clock) -> None:
    deadlines = code.Deadlines(needed=0.5, now=clock)
    deadlines.refusal(clock.sent(0.0))
    assert not deadlines.refusal(clock.sent(60.0, timeout_s=0))


def test_when_a_clock_is_set_anew_requests_are_in_time_again_after_a_second(
    code: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "RELEARNED_AFTER_S", 0.0)
    deadlines = code.Deadlines(needed=0.5, now=clock)
    deadlines.refusal(clock.sent(0.0))
    refused = [bool(deadlines.refusal(clock.sent(0.0, ahead_s=-7200.0))) for _ in range(code.RELEARNED_AFTER + 5)]
    assert refused == [True] * (code.RELEARNED_AFTER - 1) + [False] * 6


def test_no_more_clients_are_remembered_than_there_is_room_for(code: Any, clock: Clock) -> None:
    deadlines = code.Deadlines(now=clock)
    for client in range(code.CLIENTS + 10):
        deadlines.refusal(clock.sent(0.0, client=str(client)))
    assert len(deadlines._shortest) == code.CLIENTS


# ---------------------------------------------------------------- on the real server
@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository, store = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("store")
    slow = write_model(repository, "slow", VECTOR_CONFIG + ONE_INSTANCE, SLOW)
    shutil.copy(DEADLINES, slow / "1")
    write_model(repository, "endpoint", ENSEMBLE)
    save_summing_model(write_model(repository, "summing", CONFIG) / "1" / "model.onnx")
    with TritonServer(repository, None, store=store, grpc_port=0, http_port=0, metrics_port=0) as running:
        yield running
        running.kill()


@pytest.mark.server
@pytest.mark.parametrize("model", ["slow", "endpoint"])
def test_what_the_client_has_given_up_is_not_computed(server: TritonServer, model: str) -> None:
    computed, door = server.store / "computed", server.store / "door"
    door.unlink(missing_ok=True)
    computed.write_text("")
    transport = GrpcTransport(server.grpc_url)

    def ask(number: float, timeout_s: float) -> list[float]:
        answer = transport.infer(InferRequest(model, {"x": vector(number)}, ("y",), timeout_s))
        return list(answer["y"].tolist())

    with ThreadPoolExecutor(3) as pool:
        try:
            running = pool.submit(ask, 1, 60)
            wait_until(lambda: computed.read_text() == "1 ")
            given_up, waiting = pool.submit(ask, 2, 0.1), pool.submit(ask, 3, 60)
            with pytest.raises(DeadlineExceeded):
                given_up.result()
        finally:
            door.touch()
        assert (running.result(), waiting.result()) == ([1], [3])
    transport.close()
    assert computed.read_text() == "1 3 "


@pytest.mark.server
def test_a_drop_in_runs_no_late_request_and_those_in_time_that_came_with_it(server: TritonServer) -> None:
    with grpc.InferenceServerClient(server.grpc_url) as client:

        def ask(ago_s: float) -> list[float]:
            parameters = {"sent_unix_us": int((time.time() - ago_s) * 1e6), "client": "c"}
            inputs = inputs_of(tokens=np.array([[1, 2]], np.int64))
            answer = client.infer("summing", inputs, timeout=int(60e6), parameters=parameters)
            return list(answer.as_numpy("score").ravel().tolist())

        assert ask(0) == [3]
        with pytest.raises(InferenceServerException, match=r"UNAVAILABLE.*Request timeout expired.* of 60\.000 s"):
            ask(61)
        assert ask(10) == [3]
