"""Who reaches a port may ask for ranked lists and no more: the admin key, over both protocols, on the real server."""

from __future__ import annotations

import http.client
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from deploy import serve
from server import TritonServer, control
from server.__main__ import main as launch
from server.admin_key import (
    GRPC_HEADER,
    HEADER,
    KEY_FILE_VARIABLE,
    OPEN_VARIABLE,
    new_key,
    opened_by_variable,
    read_or_make_key,
    restricting_options,
)
from server.environment import REPOSITORY_ROOT
from server.errors import AdminKeyError
from tests.support.repositories import ECHO, VECTOR_CONFIG, infer, vector, write_model

ANY_PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
LOAD = "/v2/repository/models/echo/load"
OVERRIDE = json.dumps(
    {"parameters": {"config": '{"backend": "python"}', "file:1/model.py": "cmFpc2UgU3lzdGVtRXhpdA=="}}
)
HTTP_APIS = [
    ("POST", LOAD),
    ("POST", "/v2/repository/models/echo/unload"),
    ("POST", "/v2/repository/index"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/any/register"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/models/echo/trace/setting"),
]
GRPC_APIS: list[tuple[str, Callable[[grpc.InferenceServerClient, dict[str, str]], object]]] = [
    ("load", lambda client, headers: client.load_model("echo", headers=headers)),
    ("index", lambda client, headers: client.get_model_repository_index(headers=headers)),
    ("shared memory", lambda client, headers: client.get_system_shared_memory_status(headers=headers)),
    ("register", lambda client, headers: client.register_system_shared_memory("any", "/any", 8, headers=headers)),
    ("CUDA memory", lambda client, headers: client.get_cuda_shared_memory_status(headers=headers)),
    ("log", lambda client, headers: client.update_log_settings({"log_verbose_level": 0}, headers=headers)),
    ("trace", lambda client, headers: client.update_trace_settings(settings={"trace_rate": "7"}, headers=headers)),
]
REFUSED = 403


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """On every address of this machine."""
    repository = tmp_path_factory.mktemp("models")
    write_model(repository, "echo", VECTOR_CONFIG, ECHO)
    with TritonServer(repository, ["echo"], host="0.0.0.0", **ANY_PORTS) as running:
        yield running
        running.kill()


def http_status(
    server: TritonServer, method: str, path: str, headers: dict[str, str] | None = None, body: str = "{}"
) -> int:
    connection = http.client.HTTPConnection(server.http_host, server.http_port, timeout=30)
    try:
        connection.request(method, path, body if method == "POST" else None, headers or {})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.server
@pytest.mark.parametrize("headers", [{}, {HEADER: new_key()}, {GRPC_HEADER: "x"}], ids=["none", "another", "empty"])
@pytest.mark.parametrize(("method", "path"), HTTP_APIS)
def test_http_refuses_an_admin_api_without_the_key(
    server: TritonServer, method: str, path: str, headers: dict[str, str]
) -> None:
    assert http_status(server, method, path, headers) == REFUSED


@pytest.mark.server
@pytest.mark.parametrize(
    ("method", "path"), [one for one in HTTP_APIS if "register" not in one[1] and "unl" not in one[1]]
)
def test_http_takes_an_admin_call_with_the_key(server: TritonServer, method: str, path: str) -> None:
    assert http_status(server, method, path, {HEADER: server.admin_key}) == 200


@pytest.mark.server
@pytest.mark.parametrize(("name", "call"), GRPC_APIS, ids=[name for name, _ in GRPC_APIS])
def test_grpc_takes_an_admin_call_with_the_key_only(
    server: TritonServer, name: str, call: Callable[[grpc.InferenceServerClient, dict[str, str]], object]
) -> None:
    with grpc.InferenceServerClient(server.grpc_url) as client:
        for headers in ({}, {GRPC_HEADER: new_key()}, {HEADER: server.admin_key}):
            with pytest.raises(InferenceServerException, match="This protocol is restricted"):
                call(client, headers)
        try:
            call(client, {GRPC_HEADER: server.admin_key})
        except InferenceServerException as error:
            assert name == "register"  # there is no such region
            assert "restricted" not in str(error)


@pytest.mark.server
def test_a_page_of_another_origin_cannot_load_a_model_of_its_own(server: TritonServer) -> None:
    """A browser sends text/plain across origins without asking; a header of its own it does not."""
    of_a_page = {"Content-Type": "text/plain", "Origin": "https://elsewhere.example"}
    assert http_status(server, "POST", LOAD, of_a_page, OVERRIDE) == REFUSED
    with grpc.InferenceServerClient(server.grpc_url) as client:
        assert infer(client, "echo", x=vector(3)).as_numpy("y").tolist() == [3]


@pytest.mark.server
def test_what_callers_need_stays_open(server: TritonServer) -> None:
    for path in (
        "/v2/health/ready",
        "/v2/models/echo/ready",
        "/v2/models/echo",
        "/v2/models/echo/config",
        "/v2/models/echo/stats",
    ):
        assert http_status(server, "GET", path) == 200


@pytest.mark.server
def test_http_listens_on_this_machine_only_although_grpc_does_not(server: TritonServer) -> None:
    assert (server.grpc_url, server.http_url) == (f"0.0.0.0:{server.grpc_port}", f"127.0.0.1:{server.http_port}")
    addresses = {
        line.split()[1].rpartition(":")[0]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if int(line.split()[1].rpartition(":")[2], 16) == server.http_port and line.split()[3] == "0A"
    }
    assert addresses == {"0100007F"}


@pytest.mark.server
def test_the_key_is_not_in_the_log(server: TritonServer) -> None:
    assert server.admin_key not in server.log()


@pytest.mark.server
def test_the_control_command_shows_the_key(
    server: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "admin.key"
    file.write_text(server.admin_key)
    file.chmod(0o600)
    at = ["--http-port", str(server.http_port), "--admin-key-file"]
    assert control.main(["load", "echo", *at, str(file)]) == 0
    assert control.main(["load", "nothing", *at, str(file)]) == 1
    assert control.main(["load", "echo", *at, str(tmp_path / "none")]) == 1
    file.write_text(new_key())
    assert control.main(["unload", "echo", *at, str(file)]) == 1
    file.chmod(0o604)
    assert control.main(["load", "echo", *at, str(file)]) == 1
    told = capsys.readouterr()
    assert told.out == "echo: loaded\n"
    nothing, none, another, open_file = told.err.splitlines()
    assert "nothing was not loaded: failed to load 'nothing'" in nothing
    assert "asks for its admin key, and none was found; name the file that it was started with" in none
    assert "echo was not unloaded: " in another and "the one found is another" in another
    assert f"run 'chmod 600 {file}'" in open_file


def test_the_control_command_says_where_it_asked_in_vain(capsys: pytest.CaptureFixture[str]) -> None:
    assert control.main(["load", "rank", "--http-port", "1"]) == 1
    assert "rank was not loaded: no answer from 127.0.0.1:1 (" in capsys.readouterr().err


@pytest.mark.server
def test_opened_for_development_nobody_is_asked_for_a_key_and_doors_to_the_network_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "server")  # other tests' libraries raise the root's
    write_model(tmp_path, "echo", VECTOR_CONFIG, ECHO)
    with TritonServer(tmp_path, ["echo"], open_apis=True, http_host="0.0.0.0", **ANY_PORTS) as running:
        control.ask("load", "echo", running.http_host, running.http_port, None)
        running.kill()
    assert f"HTTP listens on 0.0.0.0:{running.http_port}: one request of very many chunks" in caplog.text
    assert "no admin key is asked for: whoever reaches 127.0.0.1:" in caplog.text


@pytest.mark.server
def test_closed_doors_are_not_worth_a_word(server: TritonServer, caplog: pytest.LogCaptureFixture) -> None:
    server._warn_of_open_doors()
    assert caplog.text == ""


# ---------------------------------------------------------------- the key's file
def test_the_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "admin.key"
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(read_or_make_key, [file] * 32))
    assert len(keys) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["admin.key"]
    assert read_or_make_key(tmp_path / "another") not in keys


@pytest.mark.parametrize("content", ["", "short", "a" * 32 + ",x=y", "a" * 31 + "\u00e9"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "admin.key"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(AdminKeyError, match="holds no admin key, expected 32 or more letters"):
        read_or_make_key(file)


@pytest.mark.parametrize("place", ["none/admin.key", ""], ids=["no folder", "a folder"])
def test_a_file_that_cannot_be_made_or_read_is_refused(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    with pytest.raises(AdminKeyError, match=r"cannot be kept in .*--admin-key-file or TRITONRANK_ADMIN_KEY_FILE"):
        read_or_make_key(folder / place)


def test_the_launcher_tells_a_key_that_cannot_be_kept_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "models", "echo", VECTOR_CONFIG, ECHO)
    assert launch(["--repository", str(tmp_path / "models"), "--admin-key-file", str(tmp_path / "none" / "key")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("value", "opened"), [("", False), ("0", False), ("1", True)])
def test_the_variable_opens_the_apis(monkeypatch: pytest.MonkeyPatch, value: str, opened: bool) -> None:
    monkeypatch.setenv(OPEN_VARIABLE, value)
    assert opened_by_variable() is opened


def test_another_value_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPEN_VARIABLE, "yes")
    with pytest.raises(AdminKeyError, match="found 'yes', expected 1"):
        opened_by_variable()


# ---------------------------------------------------------------- the container's entry point
def test_the_entry_point_asks_for_the_key_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "admin.key"))
    assert serve.admin_options() == restricting_options(read_or_make_key(tmp_path / "admin.key"))
    monkeypatch.setenv(OPEN_VARIABLE, "1")
    assert serve.admin_options() == []


def test_the_entry_point_ends_where_the_key_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "none" / "admin.key"))
    with pytest.raises(SystemExit) as ended:
        serve.admin_options()
    assert ended.value.code == 1


def test_the_programs_of_a_container_run_without_the_rest_of_the_package(tmp_path: Path) -> None:
    """The GPU image holds a few files of server/ and no __init__.py."""
    (tmp_path / "server").mkdir()
    for name in ("admin_key.py", "control.py", "errors.py", "health.py"):
        (tmp_path / "server" / name).write_text((REPOSITORY_ROOT / "server" / name).read_text())
    variables = {**os.environ, KEY_FILE_VARIABLE: str(tmp_path / "admin.key"), "PYTHONPATH": ""}
    for arguments in (["server.admin_key"], ["server.control", "--help"]):
        subprocess.run([sys.executable, "-m", *arguments], cwd=tmp_path, env=variables, check=True, capture_output=True)
