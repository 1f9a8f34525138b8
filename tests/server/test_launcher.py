"""The launcher: what it checks, starts, says and leaves behind."""

from __future__ import annotations

import http.server
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as grpc

from server import (
    EnvironmentUnfit,
    ModelsNotReady,
    RepositoryError,
    ServerNotReady,
    TritonServer,
    find_environment,
    self_test,
)
from server.environment import ENVIRONMENT_VARIABLE, REPOSITORY_ROOT
from server.errors import PortInUse
from tests.support.repositories import ECHO, VECTOR_CONFIG, infer, inputs_of, python_model, vector, write_model
from tests.support.waiting import wait_until

ANY_PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
ANY_PORT_OPTIONS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path / "models", "echo", VECTOR_CONFIG, ECHO)
    return tmp_path / "models"


def processes_of_group(group: int) -> list[int]:
    """The live processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rpartition(") ")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(process_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.server
def test_serves_and_leaves_no_process_memory_or_file_behind(repository: Path) -> None:
    with TritonServer(repository, ["echo"], **ANY_PORTS) as server:
        client = grpc.InferenceServerClient(server.grpc_url)
        assert infer(client, "echo", x=vector(1, 2)).as_numpy("y").tolist() == [1, 2]
        folder, group = server._work_folder, server.process_group
        assert len(processes_of_group(group)) == 3  # tritonserver, its guard and one stub
        assert list(Path("/dev/shm").glob(f"{folder.name}_*"))
    assert processes_of_group(group) == []
    assert not list(Path("/dev/shm").glob(f"{folder.name}_*"))
    assert not folder.exists()
    assert "successfully loaded 'echo'" in server.log()


@pytest.fixture
def launched(repository: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`python -m server` when it is ready, and the process group of its tritonserver."""
    command = [sys.executable, "-m", "server", "--repository", str(repository), "--load", "echo", "--verify", "off"]
    command += [*ANY_PORT_OPTIONS, "--drain-s", "0"]
    with subprocess.Popen(
        command, cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as launcher:
        assert launcher.stdout is not None
        for line in launcher.stdout:
            if line.strip().startswith("tritonserver"):
                yield launcher, os.getpgid(int(line.split()[1].rstrip(";")))
                break
        launcher.kill()


@pytest.mark.server
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stops_cleanly_on_a_signal(launched: tuple[subprocess.Popen[str], int], stop: signal.Signals) -> None:
    launcher, group = launched
    launcher.send_signal(stop)
    assert launcher.wait(60) == 0
    assert processes_of_group(group) == []


@pytest.mark.server
def test_a_killed_launcher_leaves_no_server_and_no_stub(launched: tuple[subprocess.Popen[str], int]) -> None:
    launcher, group = launched
    assert len(processes_of_group(group)) == 3
    launcher.kill()
    wait_until(lambda: processes_of_group(group) == [])


@pytest.mark.server
def test_a_stub_that_is_busy_in_a_model_does_not_outlive_tritonserver(repository: Path) -> None:
    write_model(repository, "stuck", VECTOR_CONFIG, python_model({}, "while True: time.sleep(0.01)"))
    with TritonServer(repository, ["stuck"], **ANY_PORTS) as server:
        grpc.InferenceServerClient(server.grpc_url).async_infer(
            "stuck", inputs_of(x=vector(1)), callback=lambda *_: None
        )
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: processes_of_group(server.process_group) == [])


@pytest.mark.server
def test_models_see_the_item_store_and_nothing_of_this_checkout(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY_ROOT))
    seen = "np.array([os.environ['TRITONRANK_ITEM_STORE'], *map(os.path.abspath, sys.path)], dtype=object)"
    config = VECTOR_CONFIG.replace('"y" data_type: TYPE_FP32', '"seen" data_type: TYPE_STRING')
    write_model(repository, "seen", config, python_model({"seen": seen}))
    with TritonServer(repository, ["seen"], store=tmp_path / "store", **ANY_PORTS) as server:
        client = grpc.InferenceServerClient(server.grpc_url)
        store, *folders = [text.decode() for text in infer(client, "seen", x=vector(0)).as_numpy("seen")]
    assert store == str(tmp_path / "store")
    assert str(REPOSITORY_ROOT) not in folders


@pytest.mark.server
def test_names_the_models_that_failed_and_their_reasons(repository: Path) -> None:
    write_model(repository, "broken", VECTOR_CONFIG, "raise ValueError('no such tokenizer')")
    write_model(repository, "misspelt", VECTOR_CONFIG.replace("max_batch_size", "max_batchsize"), ECHO)
    with pytest.raises(ModelsNotReady) as failure, TritonServer(repository, None, **ANY_PORTS):
        pass
    assert set(failure.value.reasons) == {"broken", "misspelt"}
    assert "ValueError: no such tokenizer" in failure.value.reasons["broken"]
    assert "make repository" in str(failure.value)


@pytest.mark.server
def test_a_server_that_is_not_ready_in_time_is_stopped(repository: Path) -> None:
    write_model(repository, "endless", VECTOR_CONFIG, python_model({}, initialize="time.sleep(600)"))
    server = TritonServer(repository, ["endless"], ready_timeout_s=0.5, **ANY_PORTS)
    with pytest.raises(ServerNotReady, match=r"not ready after 0.5 s; give it longer with --ready-timeout-s"), server:
        pass
    assert processes_of_group(server.process_group) == []


def test_refuses_a_model_that_the_repository_does_not_hold(repository: Path) -> None:
    with pytest.raises(RepositoryError, match=r"no model rank; it holds echo\. Name one of these with --load"):
        TritonServer(repository, ["rank"], **ANY_PORTS).start()


@pytest.fixture
def with_unpublished(repository: Path) -> Path:
    """A manifest that names `echo`, and beside it an ensemble of a version of `echo` that is not there."""
    config = VECTOR_CONFIG.replace('backend: "python"', 'platform: "ensemble"') + (
        """
        ensemble_scheduling { step [{ model_name: "echo" model_version: 3
            input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } }] }
        """
    )
    write_model(repository, "stranger", config)
    (repository / "manifest.json").write_text(json.dumps({"models": {"echo": {}}, "endpoints": {}}))
    return repository


@pytest.mark.server
def test_all_is_what_was_published_here_and_the_rest_is_named(
    with_unpublished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server")  # other tests' libraries raise the root's
    with TritonServer(with_unpublished, None, **ANY_PORTS) as server:
        assert infer(grpc.InferenceServerClient(server.grpc_url), "echo", x=vector(1)).as_numpy("y").tolist() == [1]
    assert "left out, not published on this machine: stranger (failed the gate here, or not built" in caplog.text


def test_refuses_a_model_that_was_not_published_here(with_unpublished: Path) -> None:
    refused = r"stranger was not published on this machine: .*'python -m builders gate VARIANT' says which"
    with pytest.raises(RepositoryError, match=refused):
        TritonServer(with_unpublished, ["echo", "stranger"], **ANY_PORTS).start()


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        ("{", "cannot be read"),
        ("{}", "cannot be read .*models"),
        ('{"models": {}, "endpoints": {}}', "nothing was pub"),
    ],
)
def test_refuses_a_manifest_that_says_nothing(repository: Path, manifest: str, complaint: str) -> None:
    (repository / "manifest.json").write_text(manifest)
    with pytest.raises(RepositoryError, match=f"{complaint}.*run 'make repository'"):
        TritonServer(repository, None, **ANY_PORTS).start()


def test_refuses_a_repository_that_is_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no such folder; run 'make repository'"):
        TritonServer(tmp_path / "none", ["rank"], **ANY_PORTS).start()
    with pytest.raises(RepositoryError, match="holds no model; run 'make repository'"):
        TritonServer(tmp_path, None, **ANY_PORTS).start()


def test_refuses_a_port_in_use_and_names_the_option(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"cannot listen on 127.0.0.1:{port} .* with --http-port PORT"):
            TritonServer(repository, ["echo"], grpc_port=0, http_port=port, metrics_port=0, run_self_test=False).start()


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A folder that looks like a server environment."""
    packages = tmp_path / "environment" / "lib" / "python3.11" / "site-packages"
    triton = packages / "pytriton" / "tritonserver"
    for file in ["bin/tritonserver", "python_backend_stubs/3.11/triton_python_backend_stub"]:
        (triton / file).parent.mkdir(parents=True)
        (triton / file).touch()
    install(packages, "numpy", "1.26.4")
    return tmp_path / "environment"


def install(packages: Path, name: str, version: str) -> None:
    folder = packages / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_finds_the_environment_that_the_variable_names(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(environment))
    assert find_environment().root == environment


def test_refuses_a_missing_environment(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnfit, match="run 'make setup' to build it"):
        find_environment(tmp_path / "none")


def test_refuses_an_environment_without_triton(environment: Path) -> None:
    next(environment.rglob("bin/tritonserver")).unlink()
    with pytest.raises(EnvironmentUnfit, match=r"no tritonserver in it, wanted the package nvidia-pytriton==0\.7\.0"):
        find_environment(environment)


def test_refuses_a_python_that_triton_has_no_stub_for(environment: Path) -> None:
    (environment / "lib" / "python3.11").rename(environment / "lib" / "python3.14")
    with pytest.raises(
        EnvironmentUnfit, match=r"has Python 3.14, this Triton's Python backend has stubs for 3.11 only"
    ):
        find_environment(environment)


def test_refuses_numpy_2(environment: Path) -> None:
    packages = next(environment.glob("lib/*/site-packages"))
    (packages / "numpy-1.26.4.dist-info").rename(packages / "removed")
    install(packages, "numpy", "2.3.1")
    with pytest.raises(EnvironmentUnfit, match=r"numpy is 2\.3\.1, wanted < 2"):
        find_environment(environment)


def test_the_self_test_is_remembered_for_the_versions_it_was_run_with(environment: Path) -> None:
    assert not self_test.has_passed(find_environment(environment))
    self_test.remember_pass(find_environment(environment))
    assert self_test.has_passed(find_environment(environment))
    packages = next(environment.glob("lib/*/site-packages"))
    (packages / "numpy-1.26.4.dist-info").rename(packages / "removed")
    install(packages, "numpy", "1.26.5")
    assert not self_test.has_passed(find_environment(environment))


def test_the_self_test_refuses_a_stub_that_loses_the_tensor(environment: Path) -> None:
    class EmptyTensor(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"outputs": [{"name": "received", "data": []}]}).encode())

    with http.server.HTTPServer(("127.0.0.1", 0), EmptyTensor) as fake:
        threading.Thread(target=fake.handle_request).start()
        with pytest.raises(EnvironmentUnfit, match=r"came back as \[\], wanted \[1.0, -2.5, 0.125\]"):
            self_test.check_tensor_returns("127.0.0.1", fake.server_address[1], find_environment(environment))


@pytest.mark.server
def test_the_self_test_passes_in_the_server_environment(tmp_path: Path) -> None:
    self_test.write_repository(tmp_path)
    with TritonServer(tmp_path, [self_test.MODEL], run_self_test=False, **ANY_PORTS) as server:
        self_test.check_tensor_returns(server.http_host, server.http_port, server.environment)


COUNTED = """
from pathlib import Path

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        (Path({folder!r}) / "completed").touch()
        return config

    def execute(self, requests):
        return []
"""


@pytest.mark.server
@pytest.mark.parametrize("published", [False, True])
def test_a_configuration_is_completed_only_where_our_builders_did_not_write_it(tmp_path: Path, published: bool) -> None:
    """Completing one starts the model's process once more: half of the time that a restart takes."""
    write_model(tmp_path / "models", "echo", VECTOR_CONFIG, COUNTED.format(folder=str(tmp_path)))
    if published:
        (tmp_path / "models" / "manifest.json").write_text(json.dumps({"models": {"echo": {}}, "endpoints": {}}))
    with TritonServer(tmp_path / "models", ["echo"], **ANY_PORTS):
        assert (tmp_path / "completed").exists() is not published
