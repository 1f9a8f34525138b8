"""The Dockerfile, as far as a machine without containers can hold it to its word."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from server import TritonServer
from tests.server.repositories import ECHO, VECTOR_CONFIG, write_model

ROOT = Path(__file__).resolve().parent.parent
PINS = "requirements/server.txt"
OF_THE_CONTAINER = {"numpy", "triton_python_backend_utils"}
CODE = ("*.py", "*.toml", "*.txt", "*.in", "*.sh", "*.yml", "*.yaml", "Makefile", "Dockerfile*", ".ci/*")


def instructions(name: str) -> list[str]:
    """What follows the instruction `name`, once for each time it stands in the Dockerfile, on one line."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [line.partition(" ")[2].strip() for line in joined if line.startswith(f"{name} ")]


def copied_paths() -> list[str]:
    return [path for copy in instructions("COPY") for path in shlex.split(copy)[:-1] if not path.startswith("--")]


def installed_packages() -> set[str]:
    (install,) = (run for run in instructions("RUN") if "pip3 install" in run)
    words = shlex.split(install.partition("&&")[0].partition("pip3 install")[2])
    assert words.pop(words.index("--constraint") + 1) == "/opt/tritonrank/server.txt"
    return {word for word in words if not word.startswith("--")}


def command_of(instruction: str) -> list[str]:
    """The exec form's words; fails on the shell form, under which signals would not reach the server."""
    (text,) = instructions(instruction)
    return json.loads(text[text.index("[") :])


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / PINS).read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def release() -> str:
    (argument,) = instructions("ARG")
    name, _, value = argument.partition("=")
    assert name == "TRITON_VERSION"
    return value


def test_every_copied_path_exists_and_is_sent_to_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()

    assert copied_paths() == [PINS]
    assert (ROOT / PINS).is_file()
    assert [line for line in ignored if not line.startswith("#")] == ["*", *(f"!{path}" for path in copied_paths())]


def test_it_installs_what_the_served_models_import_at_the_pip_only_servers_pins() -> None:
    imported: set[str] = set()
    for path in (*(ROOT / "model_repository").glob("*.py"), *(ROOT / "model_repository").glob("*/model.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    beside_the_model = {"served", "features", "rules"}
    third_party = imported - sys.stdlib_module_names - beside_the_model

    assert installed_packages() == third_party - OF_THE_CONTAINER
    assert installed_packages() <= pins().keys()


def test_the_release_is_an_argument_of_the_image() -> None:
    assert instructions("FROM") == ["nvcr.io/nvidia/tritonserver:${TRITON_VERSION}-py3"]
    assert re.fullmatch(r"\d\d\.\d\d", release())


def test_the_release_stands_nowhere_else() -> None:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *CODE]
    found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    alone = re.compile(rf"(?<![\d.]){re.escape(release())}(?![\d.])")
    naming = [
        f"{name}:{number}"
        for name in found
        if (ROOT / name).is_file() and Path(name).name != "Dockerfile"
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), start=1)
        if alone.search(line) or re.search(r"tritonserver:\d", line)
    ]

    assert naming == []


def test_it_does_not_run_as_root() -> None:
    (user,) = instructions("USER")

    assert user.partition(":")[0].isdigit()
    assert int(user.partition(":")[0]) > 0


@pytest.mark.server
def test_its_health_check_fails_until_a_server_is_ready(tmp_path: Path) -> None:
    write_model(tmp_path, "echo", VECTOR_CONFIG, ECHO)
    _, option, script = command_of("HEALTHCHECK")

    def health(port: int) -> int:
        probe = [sys.executable, option, script.replace("8000", str(port))]
        return subprocess.run(probe, capture_output=True, timeout=10).returncode

    with TritonServer(tmp_path, ["echo"], grpc_port=0, http_port=0, metrics_port=0) as server:
        assert health(server.http_port) == 0
    assert health(server.http_port) != 0


@pytest.mark.server
def test_triton_takes_its_arguments(tmp_path: Path) -> None:
    write_model(tmp_path, "rank", VECTOR_CONFIG, ECHO)
    _, program, *arguments = [*command_of("ENTRYPOINT"), *command_of("CMD")]
    own = [argument.replace("=/models", f"={tmp_path}") for argument in arguments]  # put last, they win
    assert program == "tritonserver"

    with TritonServer(tmp_path, ["rank"], grpc_port=0, http_port=0, metrics_port=0, extra_arguments=own) as server:
        (seconds,) = (argument.partition("=")[2] for argument in own if argument.startswith("--exit-timeout-secs"))
        assert re.search(rf"exit_timeout +\| {seconds} ", server.log())
