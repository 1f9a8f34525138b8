"""What becomes of a server whose processes are killed or paused, and of requests under way when it is stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from server import TritonServer
from server.admin_key import GRPC_HEADER, key_file, read_or_make_key
from server.environment import REPOSITORY_ROOT
from server.guard import FAULT
from server.ports import port_to_bind
from server.stubs import LISTED, LOOKS, STARTED, StubWatch, _stat
from tests.support.endpoint import metric
from tests.support.repositories import ECHO, VECTOR_CONFIG, infer, python_model, vector, write_model
from tests.support.waiting import wait_until

ENSEMBLE = (
    VECTOR_CONFIG.replace('backend: "python"', 'platform: "ensemble"')
    + """
ensemble_scheduling { step [
  { model_name: "pre" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "m" } },
  { model_name: "post" model_version: -1 input_map { key: "x" value: "m" } output_map { key: "y" value: "y" } } ] }
"""
)
SLOW_S = 0.1
ANSWER = [1.0, 2.0]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An endpoint of two steps, each a stub; the first takes SLOW_S a request."""
    repository = tmp_path_factory.mktemp("models")
    write_model(repository, "pre", VECTOR_CONFIG, python_model({"y": "tensor('x')"}, f"time.sleep({SLOW_S})"))
    write_model(repository, "post", VECTOR_CONFIG, ECHO)
    write_model(repository, "rank", ENSEMBLE)
    return repository


class Launched:
    """`python -m server` on ports of its own, and a client of it."""

    def __init__(self, models: Path, *options: str, ports: dict[str, int] | None = None):
        self.ports = ports or {kind: port_to_bind("127.0.0.1", 0, kind) for kind in ("grpc", "http", "metrics")}
        command = [sys.executable, "-m", "server", "--repository", str(models), "--verify", "off", *options]
        command += [f"--{kind}-port={port}" for kind, port in self.ports.items()]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.client = grpc.InferenceServerClient(f"127.0.0.1:{self.ports['grpc']}")

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def tritonserver(self) -> int:
        """Process id of the newest."""
        return [int(line.split()[1].rstrip(";")) for line in self.said("       tritonserver ")][-1]

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['metrics']}/metrics"

    @property
    def ready(self) -> bool:
        return bool(self.said("       tritonserver "))

    def said(self, start: str) -> list[str]:
        return [line for line in list(self.lines) if line.startswith(start)]

    def stub(self, model: str) -> int:
        [pid] = [pid for pid in stubs(self.tritonserver) if f"/{model}/" in command_line(pid)]
        return pid

    def answers(self) -> bool:
        try:
            return bool(infer(self.client, "rank", x=vector(*ANSWER)).as_numpy("y").tolist() == ANSWER)
        except InferenceServerException:
            return False

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self._reader.join()


def stubs(server: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{server}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in path.read_text().split()]
    return found


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@contextlib.contextmanager
def launched(models: Path, *options: str, ports: dict[str, int] | None = None) -> Iterator[Launched]:
    server = Launched(models, *options, ports=ports)
    try:
        wait_until(lambda: server.ready or server.process.poll() is not None)
        assert server.ready, "".join(server.lines)
        yield server
    finally:
        server.end()


# ---------------------------------------------------------------- faults
@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Launched]:
    with launched(models, "--restarts=20") as server:
        yield server


FAULTS: dict[str, tuple[Callable[[Launched], int], signal.Signals, str]] = {
    "the first step's stub is killed": (lambda served: served.stub("pre"), signal.SIGKILL, "stub of pre_0"),
    "the first step's stub is paused": (lambda served: served.stub("pre"), signal.SIGSTOP, "stub of pre_0"),
    "the last step's stub is paused": (lambda served: served.stub("post"), signal.SIGSTOP, "stub of post_0"),
    "tritonserver is killed": (lambda served: served.tritonserver, signal.SIGKILL, "ended with code 9"),
}


@pytest.mark.server
@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_the_endpoint_answers_again_and_the_log_says_why(served: Launched, fault: str) -> None:
    victim, signal_number, told = FAULTS[fault]
    wait_until(served.answers)
    before, lines = served.tritonserver, len(served.lines)
    os.kill(victim(served), signal_number)
    wait_until(lambda: served.tritonserver != before and served.answers())
    assert any(line.startswith("error: ") and told in line for line in served.lines[lines:])
    assert not Path(f"/proc/{before}").exists()


@pytest.mark.server
def test_a_model_that_cannot_be_loaded_ends_nothing(served: Launched, models: Path) -> None:
    write_model(models, "broken", VECTOR_CONFIG, "raise ValueError('no such tokenizer')")
    wait_until(served.answers)
    before = served.tritonserver
    with pytest.raises(InferenceServerException, match="no such tokenizer"):
        served.client.load_model("broken", headers={GRPC_HEADER: read_or_make_key(key_file())})
    assert served.answers() and served.tritonserver == before


@pytest.mark.server
def test_without_restarts_the_launcher_ends_with_the_server_and_a_code(models: Path) -> None:
    with launched(models, "--restarts=0") as server:
        os.kill(server.stub("pre"), signal.SIGKILL)
        assert server.process.wait(30) == 1
        wait_until(lambda: bool(server.said("error: not started again: --restarts 0 in 10 minutes.")))


@pytest.mark.server
def test_a_start_that_fails_is_one_more_end_and_after_so_many_the_launcher_gives_up_with_a_code(tmp_path: Path) -> None:
    model = write_model(tmp_path, "rank", VECTOR_CONFIG, ECHO)
    with launched(tmp_path, "--restarts=1") as server:
        (model / "1" / "model.py").write_text("raise ValueError('gone')")
        os.kill(server.tritonserver, signal.SIGKILL)
        assert server.process.wait(30) == 1
        wait_until(lambda: bool(server.said("error: 1 of the models")) and bool(server.said("error: not started")))


@pytest.mark.server
def test_a_server_with_a_dead_stub_stops_without_waiting_for_it(models: Path) -> None:
    with TritonServer(models, ["rank"], grpc_port=0, http_port=0, metrics_port=0) as server:
        os.kill(stubs(server.pid)[0], signal.SIGKILL)
        server.stop()
        assert server._running().exit_code() in (signal.SIGKILL, FAULT)


def test_a_stub_that_starts_later_is_listed_too() -> None:
    watch = StubWatch(os.getpid())
    assert watch.look() is None
    with subprocess.Popen(["sleep", "60"]) as child:
        child.send_signal(signal.SIGSTOP)
        wait_until(lambda: _stat(child.pid)[0] == "T")
        looks = [watch.look() for _ in range(LISTED + LOOKS["T"])]
        child.kill()
    assert any(f"(process {child.pid}) is stopped" in look for look in looks if look)


def test_a_stub_that_ended_at_once_is_reported_where_the_first_models_are_loaded() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        child.kill()
        wait_until(lambda: _stat(child.pid)[0] == "Z")
        watch = StubWatch(os.getpid())
        assert [watch.look() for _ in range(LOOKS["Z"])] == [None] * LOOKS["Z"]
        watch.count_as_loaded()
        looks = [watch.look() for _ in range(LOOKS["Z"])]
    assert looks[-1] is not None and f"(process {child.pid}) has ended" in looks[-1]


def test_a_process_is_reported_after_so_many_looks_and_one_that_is_collected_is_not() -> None:
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    ended, stopped, collected = children
    try:
        watch = StubWatch(os.getpid())
        assert [watch.look() for _ in range(STARTED)] == [None] * STARTED
        ended.kill()
        collected.kill()
        stopped.send_signal(signal.SIGSTOP)
        wait_until(lambda: [_stat(child.pid)[0] for child in children] == ["Z", "T", "Z"])
        looks = [watch.look() for _ in range(LOOKS["T"])]
        collected.wait()
        assert looks == [None] * (LOOKS["T"] - 1) + [
            f"the stub of a model (process {stopped.pid}) is stopped by a signal"
        ]
        [last] = [watch.look() for _ in range(LOOKS["Z"] - LOOKS["T"])]
        assert last is not None and f"(process {ended.pid}) has ended" in last and str(collected.pid) not in last
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.server
def test_a_server_with_an_endpoint_that_does_not_answer_its_canary_is_ended(tmp_path: Path) -> None:
    write_model(tmp_path, "rank", VECTOR_CONFIG, python_model({}, "while True: time.sleep(0.01)"))
    canary = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": ANSWER}]}
    generation = {"number": 1, "variant": "rank", "steps": {"rank": 1}, "since": "some day", "canary": canary}
    (tmp_path / "manifest.json").write_text(json.dumps({"models": {}, "endpoints": {"rank": [generation]}}))
    with launched(tmp_path, "--restarts=0", "--answer-within-s=0.5") as server:
        assert server.process.wait(30) == 1
        wait_until(lambda: bool(server.said("error: 'rank' has not answered within 0.5 s; Triton does not heal that")))


# ---------------------------------------------------------------- stopping
@pytest.mark.server
def test_no_request_that_came_before_the_server_was_unready_is_lost_and_the_next_can_start(models: Path) -> None:
    """Eight at once, which wait for each other, and one after another until the server says that it is not ready."""
    with launched(models, "--drain-s=2") as server, ThreadPoolExecutor(9) as pool:
        assert server.client.is_server_ready()
        clients = [grpc.InferenceServerClient(f"127.0.0.1:{server.ports['grpc']}") for _ in range(9)]
        flight = [pool.submit(infer, client, "rank", x=vector(*ANSWER)) for client in clients[1:]]
        wait_until(lambda: metric(server, "nv_inference_pending_request_count", "pre") >= 4)
        trickle = pool.submit(answers_until_unready, clients[0])
        wait_until(lambda: metric(server, "nv_inference_count", "pre") >= 1)
        server.process.terminate()
        assert [one.result().as_numpy("y").tolist() for one in flight] == [ANSWER] * 8
        assert trickle.result() >= 1
        assert server.answers()
        assert server.process.wait(30) == 0
        assert server.said("draining: not ready any more, answering for another 2 s")
        assert [port_to_bind("127.0.0.1", port, kind) for kind, port in server.ports.items()] == [
            *server.ports.values()
        ]


def answers_until_unready(client: grpc.InferenceServerClient) -> int:
    """How many requests were answered, all that were sent."""
    sent = 0
    while client.is_server_ready():
        assert infer(client, "rank", x=vector(*ANSWER)).as_numpy("y").tolist() == ANSWER
        sent += 1
    return sent


@pytest.mark.server
def test_a_second_signal_cuts_the_drain_short(models: Path) -> None:
    with launched(models, "--drain-s=600") as server:
        server.process.terminate()
        wait_until(lambda: bool(server.said("draining: ")))
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
