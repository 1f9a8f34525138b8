"""Which way the project's parts may look, checked on every import statement."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"builders", "clients", "gateway", "tritonrank_client", "perf", "server", "backends", "deploy", "tests"}
TORCH = {"torch", "transformers", "peft"}
PARTS = "from backends.common.batching import "
STANDARD_LIBRARY = set(sys.stdlib_module_names)


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    """First part of every module that a file imports; relative imports are its own package's."""
    return imported_by(ast.parse(path.read_text(encoding="utf-8"), str(path)), top_level_only)


def imported_by(tree: ast.Module, top_level_only: bool = False) -> set[str]:
    """As :func:`imported`, of code."""
    nodes = _executed_on_import(tree) if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def _executed_on_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _executed_on_import(child)


def sources(*patterns: str) -> list[Path]:
    """Tracked or not."""
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})


def each(*patterns: str) -> pytest.MarkDecorator:
    """The test once for each file."""
    files = sources(*patterns)
    assert files, f"no file matches {patterns}"
    return pytest.mark.parametrize("path", files, ids=lambda path: str(path.relative_to(ROOT)))


@pytest.mark.parametrize("name", ["contract.py", "errors.py"])
def test_the_contract_is_the_floor_standard_library_only(name: str) -> None:
    code = (ROOT / "builders" / "core" / name).read_text(encoding="utf-8")
    lines = [line for line in code.splitlines() if line != "from builders.core.errors import BuilderError"]
    assert imported_by(ast.parse("\n".join(lines))) <= STANDARD_LIBRARY


def test_the_features_code_can_be_copied_beside_a_served_model() -> None:
    assert imported(ROOT / "builders" / "features" / "encoder.py") <= STANDARD_LIBRARY | {"numpy"}


@each("builders/**/*.py")
def test_builders_look_at_nothing_that_they_feed(path: Path) -> None:
    """But for the code that parts a run: in this process it must be that of the drop-in backends."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.strip().startswith(PARTS)]
    assert imported_by(ast.parse("\n".join(lines))) & ROOMS <= {"builders"}


@each("builders/**/*.py")
def test_importing_the_builders_needs_no_gpu_library(path: Path) -> None:
    assert not imported(path, top_level_only=True) & {"tensorrt", "pycuda", "cuda", "modelopt"}


@each("served/**/*.py", "backends/**/*.py")
def test_what_triton_runs_knows_nothing_else_of_ours_nor_torch(path: Path) -> None:
    assert not imported(path) & (ROOMS | TORCH)


@each("clients/tritonrank_client/**/*.py")
def test_the_client_stands_alone(path: Path) -> None:
    allowed = {"numpy", "tritonclient", "grpc", "google", "tritonrank_client"}
    # The plugin is loaded by pytest alone; the other is for type checkers, the extra is imported where it is asked for.
    further = {"_pytest.py": {"pytest"}, "_breaker.py": {"pybreaker"}}.get(path.name, set())
    assert imported(path) <= STANDARD_LIBRARY | allowed | further


@each("gateway/*.py")
def test_the_gateway_knows_the_client_and_its_web_libraries(path: Path) -> None:
    web = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "opentelemetry", "typer"}
    assert imported(path) <= STANDARD_LIBRARY | web | {"gateway", "tritonrank_client"}


@each("server/*.py")
def test_the_server_starts_with_the_standard_library_only(path: Path) -> None:
    # Where a signature is asked for, and where scores are compared, and only then.
    further = {"verify.py": {"cryptography"}, "canary.py": {"lmdb"}}.get(path.name, set())
    assert imported(path) <= STANDARD_LIBRARY | {"server"} | further


@pytest.mark.parametrize("path", sources("perf/**/*.py"), ids=lambda path: str(path.relative_to(ROOT)))
def test_perf_drives_what_users_drive(path: Path) -> None:
    assert imported(path) & ROOMS <= {"perf", "builders", "clients", "tritonrank_client", "server"}


@each("builders/**/*.py", "clients/**/*.py", "gateway/*.py", "server/*.py", "backends/**/*.py", "served/**/*.py")
def test_nothing_imports_its_tests(path: Path) -> None:
    assert "tests" not in imported(path)


def test_an_import_inside_a_function_is_not_counted_as_top_level(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import os\nif os:\n    import json\ndef f():\n    import tensorrt\n")
    assert imported(tmp_path / "module.py", top_level_only=True) == {"os", "json"}
    assert imported(tmp_path / "module.py") == {"os", "json", "tensorrt"}
