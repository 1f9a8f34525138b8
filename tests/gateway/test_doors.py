"""Who may ask, and how much: keys, limits, what is described, counted and answered to orchestrators."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import numpy as np
import pytest
from tritonrank_client import AsyncMockTransport, AsyncRankClient, InferRequest
from typer.testing import CliRunner

import gateway.__main__ as command
from gateway import route, service
from gateway.app import create_app
from gateway.auth import Keys
from gateway.errors import GatewayError
from gateway.settings import Settings, models_of
from server import TritonServer
from tests.gateway.test_rerank import COHERE_2, INTERFACES, Interface, each
from tests.support.failing_ranker import FailingRanker
from tests.support.gateways import gateway
from tests.support.small_model import Gates
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
KEY, OTHER = "k" * 32, "0123456789abcdef" * 2
OWN = {
    "/v1/rank": {"query": "red", "item_ids": ["1"]},
    "/v1/recommend": {"history": [], "item_ids": ["1"]},
    "/v1/similar": {"item_id": "i1"},
}


def key_file(folder: Path, text: str = f"# of the search team\n{KEY}\n\n{OTHER}\n", mode: int = 0o600) -> Path:
    path = folder / "gateway.keys"
    path.write_text(text)
    path.chmod(mode)
    return path


# ---------------------------------------------------------------- keys
@pytest.mark.server
@each
def test_without_a_key_each_interface_refuses_in_its_own_form(
    started: Callable[..., httpx2.Client], tmp_path: Path, interface: Interface
) -> None:
    client = started(key_file=key_file(tmp_path))
    for header in ({}, {"authorization": "Bearer"}, {"authorization": f"Bearer {KEY}x"}, {"authorization": KEY}):
        answer = client.post(interface.path, json=interface.body("any", ["1"]), headers=header)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "key" in interface.error(answer.json()) and KEY not in answer.text
    for key in (KEY, OTHER):
        answer = client.post(
            interface.path, json=interface.body("any", ["1"]), headers={"authorization": f"bearer {key}"}
        )
        assert answer.status_code == 200


@pytest.mark.server
def test_without_a_key_only_health_metrics_and_the_description_answer(
    started: Callable[..., httpx2.Client], tmp_path: Path
) -> None:
    client = started(key_file=key_file(tmp_path))
    paths = create_app().openapi()["paths"]
    open_to_all = {
        path
        for path, methods in paths.items()
        for method in methods
        if client.request(method, path, json={}).status_code != 401
    }
    assert open_to_all == {"/healthz", "/readyz", "/metrics"}
    assert client.get("/openapi.json").status_code == 200
    assert [client.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]


@pytest.mark.server
def test_the_key_is_checked_before_the_body_is_read(started: Callable[..., httpx2.Client], tmp_path: Path) -> None:
    client = started(key_file=key_file(tmp_path))
    with contextlib.closing(connection(client)) as asked:
        asked.putrequest("POST", "/v2/rerank")
        asked.putheader("content-length", "1000")
        asked.endheaders()
        assert asked.getresponse().status == 401


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (KEY, 0o644, "everyone on this machine can read it; run 'chmod 600"),
        ("# none\n", 0o600, "found no key, wanted one a line"),
        (f"{KEY}\nshort\n", 0o600, ".keys:2: found no key, wanted 32 or more printable characters"),
        (f"{KEY} {KEY}\n", 0o600, ".keys:1: found no key"),
    ],
)
def test_a_key_file_that_cannot_be_is_refused_without_a_key_in_the_message(
    tmp_path: Path, text: str, mode: int, message: str
) -> None:
    with pytest.raises(GatewayError) as error:
        Keys.read(key_file(tmp_path, text, mode))
    assert message in str(error.value)
    assert KEY not in str(error.value) and "short" not in str(error.value)


def test_a_key_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="No such file or directory; name a file with one key a line"):
        Keys.read(tmp_path / "none")


def test_keys_are_in_no_repr(tmp_path: Path) -> None:
    assert KEY not in repr(Keys.read(key_file(tmp_path))) + repr(vars(Keys.read(key_file(tmp_path))).keys())


# ---------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0: whoever reaches this address could rank; give --key-file"),
        ({"host": "ranker.example"}, "--host ranker.example"),
        ({"timeout_s": 0}, "--timeout-s: found 0, wanted more than 0"),
        ({"max_in_flight": -1}, "--max-in-flight: found -1"),
        ({"certificate": Path("a.pem")}, "--tls-cert and --tls-key go together"),
        ({"models": {"scorer": "two_tower_fp32_onnx"}}, "--model ...=two_tower_fp32_onnx: not an endpoint for callers"),
        ({"models": {"steps": "ranker_preprocess"}}, "not an endpoint for callers"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(GatewayError) as error:
        Settings(**settings)
    assert str(error.value).startswith(message) or message in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_this_machines_own_address_no_key_is_needed(host: str) -> None:
    assert Settings(host=host).key_file is None
    assert Settings(host="0.0.0.0", open=True).open


@pytest.mark.parametrize("pair", ["rank", "=rank", "rank=", ""])
def test_a_model_that_is_no_pair_is_refused(pair: str) -> None:
    with pytest.raises(GatewayError, match="wanted NAME=ENDPOINT"):
        models_of([pair])


def test_models_have_names_of_their_own() -> None:
    assert models_of(["a=b=rank", "rerank-v3.5=rank_small"]) == {"a=b": "rank", "rerank-v3.5": "rank_small"}
    with pytest.raises(GatewayError, match="'a' is named already, for rank"):
        models_of(["a=rank", "a=recommend"])


# ---------------------------------------------------------------- limits
@pytest.mark.server
@each
def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so(
    started: Callable[..., httpx2.Client], interface: Interface
) -> None:
    client = started(max_body_bytes=1000)
    announced = client.post(interface.path, json=interface.body("any", ["x" * 1000]))
    in_parts = client.post(interface.path, content=iter([b"x" * 400] * 3))
    assert (announced.status_code, in_parts.status_code) == (413, 413)
    assert "bytes, wanted at most 1,000 (--max-body-bytes)" in interface.error(announced.json())
    assert "found more than 1,000 bytes" in interface.error(in_parts.json())
    assert interface.post(client, "any", ["1"]).status_code == 200


@pytest.mark.server
def test_a_body_that_does_not_come_is_given_up(
    started: Callable[..., httpx2.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "BODY_WITHIN_S", 0.1)
    with contextlib.closing(connection(started())) as asked:
        asked.putrequest("POST", "/v2/rerank")
        asked.putheader("content-length", "1000")
        asked.endheaders(b'{"query":')
        answer = asked.getresponse()
        assert answer.status == 408
        assert b"the body did not come within 0.1 s" in answer.read()


@pytest.mark.server
def test_requests_beyond_those_at_once_are_refused_at_once(started: Callable[..., httpx2.Client], gates: Gates) -> None:
    client = started(max_in_flight=1)
    held = gates.query()
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as at_last:
        at_last.callback(gates.open)
        first = pool.submit(COHERE_2.post, client, held, ["1"])
        wait_until(lambda: gates.is_held(held))
        assert "tritonrank_gateway_requests_in_flight 1.0" in client.get("/metrics").text
        second = COHERE_2.post(client, "any", ["1"])
    assert (second.status_code, second.headers["retry-after"]) == (429, "1")
    assert "the gateway has too much to do" in COHERE_2.error(second.json())
    assert first.result().status_code == 200
    assert COHERE_2.post(client, "any", ["1"]).status_code == 200


# ---------------------------------------------------------------- what is described
@pytest.mark.server
def test_answers_are_as_described(client: httpx2.Client) -> None:
    described = client.get("/openapi.json").json()
    good = {interface.path: interface.body("any", ["1", "2"]) for interface in INTERFACES} | OWN
    for path, body in good.items():
        for sent in (body, {}, {**body, "no_such_field": 1}):
            answer = client.post(path, json=sent)
            responses = described["paths"][path]["post"]["responses"]
            schema = responses[str(answer.status_code)]["content"]["application/json"]["schema"]
            jsonschema.validate(answer.json(), {**schema, "components": described["components"]})


def test_every_interface_describes_its_body_its_errors_and_its_key() -> None:
    described = create_app().openapi()
    asked = {path: methods["post"] for path, methods in described["paths"].items() if "post" in methods}
    assert asked.keys() == {interface.path for interface in INTERFACES} | OWN.keys()
    for operation in asked.values():
        assert operation["requestBody"]["content"]["application/json"]["schema"]
        assert operation["security"]
        assert {"200", "401", "404", "408", "413", "429", "500", "503", "504", "default"} <= operation[
            "responses"
        ].keys()
        assert all(one["content"]["application/json"]["schema"] for one in operation["responses"].values())
        assert "HTTPValidationError" not in str(operation)


@pytest.mark.server
def test_what_is_not_there_is_told(client: httpx2.Client) -> None:
    for method, path, status in (("GET", "/v2/models/rank/infer", 404), ("GET", "/v1/rank", 405)):
        answer = client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"] == f"{method} {path}: not here; /openapi.json lists what is"


# ---------------------------------------------------------------- health, metrics, ids
@pytest.mark.server
def test_it_is_live_without_a_ranker_and_ready_with_one(started: Callable[..., httpx2.Client]) -> None:
    alone = started("127.0.0.1:1", models={"rank": "rank"}, timeout_s=0.5)
    assert alone.get("/healthz").status_code == 200
    answer = alone.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "models": {"rank": False}})
    both = started(models={"shop": "rank", "near": "similar"}).get("/readyz")
    assert (both.status_code, both.json()) == (200, {"ready": True, "models": {"shop": True, "near": True}})
    foreign = started(models={"shop": "rank", "foreign": "rank_foreign"}).get("/readyz")
    assert (foreign.status_code, foreign.json()["models"]) == (503, {"shop": True, "foreign": False})


@pytest.mark.server
def test_requests_are_counted_by_interface_and_status(started: Callable[..., httpx2.Client]) -> None:
    client = started()
    COHERE_2.post(client, "any", ["1"])
    COHERE_2.post(client, "any", [])
    client.get("/no/such/path")
    page = client.get("/metrics").text
    assert 'tritonrank_gateway_requests_total{interface="/v2/rerank",status="200"} 1.0' in page
    assert 'tritonrank_gateway_requests_total{interface="/v2/rerank",status="400"} 1.0' in page
    assert 'tritonrank_gateway_request_seconds_count{interface="/v2/rerank"} 2.0' in page
    assert "no/such/path" not in page


@pytest.mark.server
@pytest.mark.parametrize("unfit", ["", "x" * 129, "two words", "ü"])
def test_an_id_that_no_log_should_hold_is_replaced(client: httpx2.Client, unfit: str) -> None:
    answer = client.post("/v2/rerank", json=COHERE_2.body("any", ["1"]), headers={b"x-request-id": unfit.encode()})
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] not in ("", unfit)
    assert answer.json()["id"] == answer.headers["x-request-id"]


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[FailingRanker], httpx2.Client]]:
    """Starts a gateway before a ranker of this process."""
    with contextlib.ExitStack() as stack:

        def start(ranker: FailingRanker) -> httpx2.Client:
            def connected(_: list[str], **options: Any) -> AsyncRankClient:
                return AsyncRankClient("mock", transport=AsyncMockTransport(ranker), **{**options, "tls": None})

            monkeypatch.setattr(service, "AsyncRankClient", connected)
            return stack.enter_context(gateway("127.0.0.1:1"))

        yield start


def test_a_callers_trace_goes_on_to_the_server(before: Callable[[FailingRanker], httpx2.Client]) -> None:
    trace, ranker = "4bf92f3577b34da6a3ce929d0e0e4736", FailingRanker()
    client = before(ranker)
    COHERE_2.post(client, "any", ["1"])
    header = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    client.post("/v2/rerank", json=COHERE_2.body("any", ["1"]), headers=header)
    assert [trace in request.headers.get("traceparent", "") for request in ranker.asked] == [False, True]


def test_a_server_that_does_not_answer_is_asked_once_more(before: Callable[[FailingRanker], httpx2.Client]) -> None:
    once, twice = FailingRanker(failures=1), FailingRanker(failures=2)
    assert COHERE_2.post(before(once), "any", ["1"]).status_code == 200
    assert COHERE_2.post(before(twice), "any", ["1"]).status_code == 503
    assert (len(once.asked), len(twice.asked)) == (2, 2)


def test_whoever_asks_whether_it_is_ready_cannot_keep_the_ranker_busy(
    before: Callable[[FailingRanker], httpx2.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "READY_FOR_S", 3600.0)
    ranker = FailingRanker()
    client = before(ranker)
    assert [client.get("/readyz").status_code for _ in range(5)] == [200] * 5
    assert len(ranker.asked) == 1


@pytest.mark.server
def test_the_log_names_the_request_and_quotes_nothing_of_it(
    client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.post("/v2/rerank", json=COHERE_2.body("crash", ["1234567"]), headers={"x-request-id": "search-9"})
    [line] = [record.getMessage() for record in caplog.records if "search-9" in record.getMessage()]
    assert line == "/v2/rerank: request search-9: ServerError; the server's log has more"


def test_a_mistake_of_the_gateway_is_500_and_its_place_is_in_the_log_without_its_text(
    before: Callable[[FailingRanker], httpx2.Client], caplog: pytest.LogCaptureFixture
) -> None:
    class Mistaken(FailingRanker):
        def __call__(self, request: InferRequest) -> dict[str, np.ndarray]:
            raise KeyError(request.inputs["query"][0])

    answer = before(Mistaken()).post("/v2/rerank", json=COHERE_2.body("a secret", ["1"]))
    assert answer.status_code == 500
    assert COHERE_2.error(answer.json()) == "the gateway made a mistake; its log has more under this request's id"
    [line] = [record.getMessage() for record in caplog.records if answer.headers["x-request-id"] in record.getMessage()]
    assert "KeyError at" in line and "in reranked" in line and "a secret" not in caplog.text


# ---------------------------------------------------------------- the command
@pytest.fixture
def process(triton: TritonServer, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[str]:
            started = subprocess.Popen(
                [sys.executable, "-m", "gateway", "--server", triton.grpc_url, *arguments],
                cwd=ROOT, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'clients'}"}, text=True, stderr=subprocess.PIPE,
            )  # fmt: skip
            stack.callback(started.communicate)
            stack.callback(started.kill)
            return started

        yield start


@pytest.mark.server
def test_the_command_serves_by_https_until_it_is_told_to_stop(
    process: Callable[..., subprocess.Popen[str]], certificates: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    import ssl

    authority, certificate, key = certificates
    port = free_port()
    running = process(
        "--port", str(port), "--key-file", str(key_file(tmp_path)), "--model", "shop=rank", "--timeout-s", "20",
        "--tls-cert", str(certificate), "--tls-key", str(key),
    )  # fmt: skip
    wait_until(lambda: listens(port) or running.poll() is not None)
    context = ssl.create_default_context(cafile=authority)
    with httpx2.Client(base_url=f"https://localhost:{port}", verify=context, timeout=60) as client:
        body = {"query": "red shoe", "documents": ["red shoe", "mug"], "model": "shop"}
        answer = client.post("/v2/rerank", json=body, headers={"authorization": f"Bearer {KEY}"})
        assert answer.status_code == 200
    running.terminate()
    _, log = running.communicate(timeout=60)
    assert "Traceback" not in log and KEY not in log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "error: --host 0.0.0.0: whoever reaches this address could rank"),
        (["--model", "rank"], "error: --model rank: wanted NAME=ENDPOINT"),
        (["--model", "scorer=two_tower_fp32_onnx"], "error: --model ...=two_tower_fp32_onnx: not an endpoint"),
        (["--key-file", "/none.keys"], "error: /none.keys: No such file or directory"),
        (["--server", "http://ranker"], "error: url: found 'http://ranker', wanted host:port"),
        (["--server-tls-ca", "/none.pem"], "error: tls: found no certificate in ca='/none.pem'"),
    ],
)
def test_what_the_command_cannot_start_with_is_told_in_one_line(arguments: list[str], message: str) -> None:
    ended = CliRunner().invoke(command.app, ["--port", "0", *arguments])
    assert ended.exit_code == 2
    assert ended.stderr.startswith(message) and ended.stderr.count("\n") == 1


# ---------------------------------------------------------------- parts
@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Authority, certificate for localhost, its key."""
    import trustme

    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "gateway.pem")
    issued.private_key_pem.write_to_path(folder / "gateway.key")
    return folder / "ca.pem", folder / "gateway.pem", folder / "gateway.key"


def connection(client: httpx2.Client) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=60)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0
