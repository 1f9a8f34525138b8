"""The Dockerfile, as far as a machine without containers can hold it to its word."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
import typer
from dockerfile_parse import DockerfileParser

import gateway.__main__ as gateway_cli
from builders.__main__ import app
from builders.core.versions import TRITON_RELEASE
from deploy.serve import checked_repository
from server import TritonServer, find_environment
from server.__main__ import _parse as parse_server_options
from server.admin_key import HEADER
from server.backend_directory import assemble_backends
from server.health import call
from server.ports import port_to_bind
from tests.support.repositories import ECHO, VECTOR_CONFIG, write_model
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
IN_IMAGE = PurePosixPath("/opt/tritonrank")
STAGES = ("engines", "server-cpu", "gateway", "server")
SERVERS = ("server-cpu", "server")
FIRST_PARTY = {"builders", "server", "backends", "perf", "clients", "tritonrank_client", "gateway", "deploy", "tests"}
OF_THE_CONTAINER = {"numpy", "triton_python_backend_utils"}
NAMES_THE_RELEASE = {"Dockerfile", "builders/core/versions.py"}
CODE = ("*.py", "*.toml", "*.txt", "*.in", "*.sh", "*.yml", "*.yaml", "Makefile", "Dockerfile*", ".ci/*")


@dataclass(frozen=True)
class Instruction:
    name: str
    value: str


@dataclass(frozen=True)
class Stage:
    base: str
    instructions: tuple[Instruction, ...]

    def values(self, name: str) -> list[str]:
        return [instruction.value for instruction in self.instructions if instruction.name == name]

    def copies(self) -> list[tuple[str, PurePosixPath]]:
        """Each copied path and where it lies in the image."""
        folder, found = PurePosixPath("/"), []
        for instruction in self.instructions:
            if instruction.name == "WORKDIR":
                folder /= instruction.value
            elif instruction.name == "COPY":
                *sources, target = shlex.split(instruction.value)
                into = folder / target
                found += [(source, into / Path(source).name if target.endswith("/") else into) for source in sources]
        return found

    def command(self, name: str) -> list[str]:
        """The exec form's words; fails on the shell form, under which signals would not reach the program."""
        (text,) = self.values(name)
        words: list[str] = json.loads(text[text.index("[") :])
        return words


def instructions() -> list[Instruction]:
    with (ROOT / "Dockerfile").open("rb") as file:
        parsed = DockerfileParser(fileobj=file).structure
    return [Instruction(one["instruction"], one["value"]) for one in parsed if one["instruction"] != "COMMENT"]


def stages() -> dict[str, Stage]:
    found: dict[str, tuple[str, list[Instruction]]] = {}
    for instruction in instructions():
        if instruction.name == "FROM":
            base, _, name = instruction.value.partition(" AS ")
            current = found.setdefault(name, (base, []))[1]
        elif found:
            current.append(instruction)
    return {name: Stage(base, tuple(body)) for name, (base, body) in found.items()}


def arguments() -> dict[str, str]:
    return dict(one.value.split("=", 1) for one in instructions() if one.name == "ARG")


def expanded(value: str) -> str:
    """A value with the defaults of the Dockerfile's arguments."""
    while "${" in value:
        value = re.sub(r"\$\{(\w+)\}", lambda name: arguments()[name[1]], value)
    return value


def imports_of(path: Path) -> Iterator[str]:
    """The top-level name of every package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def programs_of(source: str) -> list[Path]:
    path = ROOT / source
    return sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.suffix == ".py" else []


def pins(name: str) -> dict[str, str]:
    """Package => version; see tests/test_requirements.py for their hashes."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


def installed_into_the_container() -> set[str]:
    (install,) = (run for run in stages()["server"].values("RUN") if "pip3 install" in run)
    assert "--require-hashes --no-deps" in install
    assert f"--requirement {IN_IMAGE / 'requirements/container.txt'} " in install
    return set(pins("requirements/container.txt"))


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)

    assert (found.returncode, found.stdout) == (0, "")


def test_it_has_the_four_images_and_the_gpu_server_last_which_is_the_default() -> None:
    assert tuple(stages()) == STAGES


def test_every_copied_path_exists_and_nothing_else_is_sent_to_the_build() -> None:
    copied = {source for stage in stages().values() for source, _ in stage.copies()}
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]

    assert [path for path in copied if not (ROOT / path).exists()] == []
    assert rules[0] == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert sent <= copied
    assert [path for path in copied if sent.isdisjoint({path, path.partition("/")[0]})] == []
    assert rules[-1] == "**/__pycache__"


@pytest.mark.parametrize("name", STAGES)
def test_what_is_copied_lies_in_the_image_as_in_the_checkout(name: str) -> None:
    for source, target in stages()[name].copies():
        assert target == IN_IMAGE / source


@pytest.mark.parametrize("name", STAGES)
def test_an_image_holds_all_of_the_kit_that_its_programs_import(name: str) -> None:
    copied = [source for source, _ in stages()[name].copies()]
    imported = {package for source in copied for path in programs_of(source) for package in imports_of(path)}

    assert imported & FIRST_PARTY <= {part for source in copied for part in Path(source).parts}


def test_the_gpu_server_installs_what_the_served_models_import_at_the_pip_only_servers_pins() -> None:
    fused = [*programs_of("served"), *programs_of("backends/common"), *programs_of("backends/onnxruntime")]
    imported = {name for path in fused for name in imports_of(path)}
    beside = {path.stem for path in fused} | {
        "served",
        "deadlines",
        "features",
        "item_text",
        "index_search",
        "prompts",
        "rules",
    }
    third_party = imported - sys.stdlib_module_names - beside
    signatures = {"cryptography", "cffi", "pycparser"}  # what server/verify.py imports, with its own dependencies

    index = {"faiss-cpu", "packaging"}  # what index_search.py imports, with its own dependency

    assert installed_into_the_container() == (third_party - OF_THE_CONTAINER) | signatures | index
    assert pins("requirements/container.txt").items() <= pins("requirements/server.txt").items()


@pytest.mark.parametrize(
    ("name", "requirements"),
    [
        ("engines", "requirements/builders.txt"),
        ("server-cpu", "requirements/server.txt"),
        ("gateway", "requirements/gateway.txt"),
    ],
)
def test_an_image_installs_a_pinned_environment(name: str, requirements: str) -> None:
    (install,) = (run for run in stages()[name].values("RUN") if "pip" in run)
    words = shlex.split(install)

    assert words[words.index("--requirement") + 1] == str(IN_IMAGE / requirements)


def test_the_engines_image_has_modelopt_which_writes_fp16_into_graphs() -> None:
    assert "nvidia-modelopt" in pins("requirements/builders.txt")


def test_the_default_release_is_that_of_the_one_place_of_versions() -> None:
    assert arguments()["TRITON_RELEASE"] == TRITON_RELEASE


def test_server_and_engines_come_from_containers_of_one_release() -> None:
    assert expanded(stages()["server"].base) == f"nvcr.io/nvidia/tritonserver:{TRITON_RELEASE}-py3"
    assert expanded(stages()["engines"].base) == f"nvcr.io/nvidia/tensorrt:{TRITON_RELEASE}-py3"


def test_the_cpu_image_has_a_python_that_the_pip_only_server_has_a_stub_for() -> None:
    (minor,) = re.findall(r"/python:(\d+\.\d+)-", expanded(stages()["server-cpu"].base))

    assert (find_environment().triton / "python_backend_stubs" / minor).is_dir()


def test_the_release_stands_nowhere_else() -> None:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *CODE]
    found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    alone = re.compile(rf"(?<![\d.]){re.escape(TRITON_RELEASE)}(?![\d.])")
    naming = [
        f"{name}:{number}"
        for name in found
        if (ROOT / name).is_file() and name not in NAMES_THE_RELEASE
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), start=1)
        if alone.search(line) or re.search(r"tritonserver:\d", line)
    ]

    assert naming == []


@pytest.mark.parametrize("name", STAGES)
def test_an_image_does_not_run_as_root(name: str) -> None:
    *_, user = stages()[name].values("USER")

    assert user.partition(":")[0].isdigit()
    assert int(user.partition(":")[0]) > 0


def test_no_argument_or_variable_of_an_image_is_a_secret() -> None:
    set_here = [one.value for one in instructions() if one.name in ("ARG", "ENV")]
    names = [word.partition("=")[0] for value in set_here for word in shlex.split(value)]

    assert [
        name for name in names if re.search("PASSW|SECRET|TOKEN|CREDENTIAL|KEY(?!_FILE$)", name, re.IGNORECASE)
    ] == []


def test_the_programs_that_run_inside_are_those_that_run_outside() -> None:
    modules, scripts = set(), set()
    for stage in stages().values():
        copied = {target: source for source, target in stage.copies()}
        for name in ("ENTRYPOINT", "HEALTHCHECK"):
            words = stage.command(name) if stage.values(name) else []
            modules |= {words[at + 1] for at, word in enumerate(words) if word == "-m"}
            scripts |= {copied[PurePosixPath(word)] for word in words if word.endswith(".py")}

    assert modules == {"builders", "gateway", "server"}  # as in the Makefile
    assert all((ROOT / module / "__main__.py").is_file() for module in modules)
    assert scripts == {"deploy/serve.py", "deploy/ready.py"}


def test_the_engines_image_runs_a_verb_of_the_builders() -> None:
    (verb,) = stages()["engines"].command("CMD")

    assert verb in {command.name or command.callback.__name__ for command in app.registered_commands}


def test_the_cpu_servers_options_are_options_of_the_server() -> None:
    _, _, module, *options = [*stages()["server-cpu"].command("ENTRYPOINT"), *stages()["server-cpu"].command("CMD")]
    parsed = parse_server_options(options)

    assert (module, parsed.load, str(parsed.repository), str(parsed.store)) == (
        "server", ["rank"], "/models", "/item_store",
    )  # fmt: skip
    assert parsed.host == "0.0.0.0"  # a container's own address is what its published ports lead to
    assert parsed.http_host == "127.0.0.1"  # for the container's own health check


def test_the_gateways_options_are_options_of_the_gateway() -> None:
    _, _, module, *options = [*stages()["gateway"].command("ENTRYPOINT"), *stages()["gateway"].command("CMD")]
    parsed = typer.main.get_command(gateway_cli.app).make_context("gateway", options).params

    assert module == "gateway"
    assert (parsed["host"], parsed["port"]) == ("0.0.0.0", int(stages()["gateway"].values("EXPOSE")[0]))
    assert parsed["key_file"] is not None


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_keeps_its_admin_key_in_the_container_and_exposes_no_http(name: str) -> None:
    (key_file,) = [one for one in stages()[name].values("ENV") if one.startswith("TRITONRANK_ADMIN_KEY_FILE")]

    assert PurePosixPath(key_file.partition("=")[2]).parent == PurePosixPath("/tmp")  # each user may write there
    assert stages()[name].values("EXPOSE") == ["8001 8002"]


@pytest.mark.server
@pytest.mark.parametrize("name", SERVERS)
def test_the_health_check_fails_until_a_server_is_ready(name: str, tmp_path: Path) -> None:
    write_model(tmp_path, "echo", VECTOR_CONFIG, ECHO)
    _, script = stages()[name].command("HEALTHCHECK")

    def health(port: int) -> int:
        probe = [sys.executable, ROOT / PurePosixPath(script).relative_to(IN_IMAGE), str(port), str(tmp_path)]
        return subprocess.run(probe, capture_output=True, timeout=10).returncode

    with TritonServer(tmp_path, ["echo"], grpc_port=0, http_port=0, metrics_port=0) as server:
        assert health(server.http_port) == 0
    assert health(server.http_port) == 1


@pytest.mark.server
def test_the_gpu_servers_entry_point_guards_triton_with_its_arguments_and_ends_with_a_dead_stub(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "rank", VECTOR_CONFIG, ECHO)
    _, _, script, models, *options = [*stages()["server"].command("ENTRYPOINT"), *stages()["server"].command("CMD")]
    ports = {kind: port_to_bind("127.0.0.1", 0, kind) for kind in ("http", "grpc", "metrics")}
    environment = find_environment()
    command = [
        sys.executable, str(ROOT / PurePosixPath(script).relative_to(IN_IMAGE)), str(tmp_path / "models"), *options,
        *(f"--{kind}-port={port}" for kind, port in ports.items()),
        f"--backend-directory={assemble_backends(environment, tmp_path / 'backends')}",
    ]  # fmt: skip
    variables = {
        **os.environ,
        "TRITONRANK_VERIFY": "off",  # of a repository written by hand
        "TRITONRANK_ADMIN_KEY_FILE": str(tmp_path / "admin.key"),
        "TRITONRANK_DRAIN_S": "600",
        "PATH": os.pathsep.join([str(environment.bin), str(environment.tritonserver.parent), os.environ["PATH"]]),
        "LD_LIBRARY_PATH": str(environment.libraries),
    }
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
    try:
        ready = [sys.executable, str(ROOT / "deploy" / "ready.py"), str(ports["http"]), str(tmp_path / "models")]
        wait_until(lambda: subprocess.run(ready).returncode == 0 or server.poll() is not None)
        [triton] = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        program = Path(f"/proc/{triton}/exe").resolve().name
        key = (tmp_path / "admin.key").read_text().strip()
        index = ("127.0.0.1", ports["http"], "POST", "/v2/repository/index")
        assert [call(*index)[0], call(*index, {HEADER: key})[0]] == [403, 200]
        server.terminate()
        wait_until(lambda: subprocess.run(ready).returncode == 1)
        assert (models, program, server.poll()) == ("/models", "tritonserver", None)  # it drains

        [stub] = [pid for path in Path(f"/proc/{triton}/task").glob("*/children") for pid in path.read_text().split()]
        os.kill(int(stub), signal.SIGKILL)
        assert server.wait(timeout=30) == signal.SIGKILL
    finally:
        server.kill()
        server.wait()


def test_the_entry_point_serves_the_fallback_of_an_engine_that_cannot_be_loaded(tmp_path: Path) -> None:
    for model, file in (("ranker_fp16_trt", "model.plan"), ("ranker_fp16_onnx", "model.onnx")):
        (write_model(tmp_path, model, f'name: "{model}"\n') / "1" / file).write_bytes(b"")

    served = Path(checked_repository(str(tmp_path)))

    assert served != tmp_path
    assert [path.name for path in (served / "ranker_fp16_trt" / "1").iterdir()] == ["model.onnx"]


def test_the_entry_point_ends_where_no_repository_is_mounted(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        checked_repository(str(tmp_path / "nothing"))

    assert ended.value.code == 1
