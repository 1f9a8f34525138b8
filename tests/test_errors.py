"""One root of errors in each package, told in one line: no ``__main__`` lists what it expects."""

from __future__ import annotations

import ast
import errno
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import lmdb
import pytest

import builders
import builders.__main__
import perf
import perf.__main__
import server
import server.__main__
from builders.core.contract import ContractError
from builders.core.errors import TRACE_VARIABLE, BuilderError
from builders.core.recipe import RecipeError
from builders.engines.build import TensorRTMissing
from builders.engines.gpu import GpuMissing
from builders.evaluate.metrics import GateFailed
from perf.errors import PerfError
from perf.sweep import load_sweep
from server.errors import EnvironmentUnfit, ServerError

ROOT = Path(__file__).parents[1]
ROOTS = {"builders": BuilderError, "perf": PerfError, "server": ServerError}
SERVED_TOO = {
    "server.verify.NotAsPublished",
    "builders.features.encoder.FeatureError",
    "builders.features.item_text.TemplateError",
    "builders.publish.index_search.IndexFault",
    "builders.publish.index_search.StoredVectorFault",
}
"""Their files are copied beside served models and cannot import the builders; they translate it where they call it."""
CAUGHT_WITHIN = {ROOT / "builders/features/encoder.py", ROOT / "server/plans.py"}
"""Files that run by themselves, without their package."""
WITH_PACKAGES_OF_THEIR_OWN = {"perf.peers.litserve_api"}
"""Run only in an environment that ``make peers`` makes: what they import is not installed here."""


def modules(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if found.name in WITH_PACKAGES_OF_THEIR_OWN:
            continue
        yield importlib.import_module(found.name)


def defined(package: ModuleType) -> list[type[BaseException]]:
    """Exceptions that a package defines; a name with an underscore never leaves its module."""
    return [
        each
        for module in modules(package)
        for each in vars(module).values()
        if inspect.isclass(each)
        and issubclass(each, BaseException)
        and each.__module__ == module.__name__
        and not each.__name__.startswith("_")
    ]


@pytest.mark.parametrize("package", [builders, perf, server], ids=lambda package: package.__name__)
def test_every_error_of_a_package_derives_from_its_one_root_and_says_what_it_is(package: ModuleType) -> None:
    found = defined(package)
    root = ROOTS[package.__name__]
    assert root in found
    strangers = {f"{each.__module__}.{each.__qualname__}" for each in found if not issubclass(each, root)}
    assert strangers <= SERVED_TOO
    assert [each.__name__ for each in found if "__doc__" not in vars(each) or not each.__doc__] == []


@pytest.mark.parametrize("package", ROOTS)
def test_no_main_names_the_classes_that_it_expects(package: str) -> None:
    """It names the root at most, which another module gives it."""
    tree = ast.parse((ROOT / package / "__main__.py").read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    errors = {each.__name__ for each in defined(importlib.import_module(package))}
    caught = {
        name.id
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and node.type is not None
        for name in ast.walk(node.type)
        if isinstance(name, ast.Name)
    }
    assert caught & errors <= {ROOTS[package].__name__}
    assert names & errors <= {ROOTS[package].__name__}


def raises_of(path: Path) -> Iterator[str]:
    """Built-in errors that a file raises by name, but within pydantic's validators, which tell them themselves."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef) or any(
            "validator" in ast.unparse(one) for one in function.decorator_list
        ):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func)
                if name in {"ValueError", "RuntimeError", "KeyError", "Exception"}:
                    yield f"{path.relative_to(ROOT)}:{node.lineno} {name}"


@pytest.mark.parametrize("package", ROOTS)
def test_no_bare_error_is_raised_where_a_user_can_cause_it(package: str) -> None:
    files = set((ROOT / package).rglob("*.py")) - CAUGHT_WITHIN
    assert [found for path in sorted(files) for found in raises_of(path)] == []


def test_a_bare_error_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(
        "def f():\n    raise ValueError('x')\n@model_validator()\ndef g():\n    raise ValueError('y')\n"
    )
    assert [*raises_of(tmp_path / "a.py")] == ["a.py:2 ValueError"]


# ---------------------------------------------------------------- how they are told
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ContractError("first\n  second"), 1),
        (RecipeError("first\n  second"), 2),
        (GateFailed("first\n  second"), 3),
        (TensorRTMissing("first\n  second"), 4),
        (GpuMissing("first\n  second"), 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_the_builders_tell_an_error_in_one_line_and_exit_with_its_code(
    error: BuilderError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb() -> None:
        raise error

    monkeypatch.setattr(builders.__main__, "app", verb)
    with pytest.raises(SystemExit) as ended:
        builders.__main__.main()
    assert ended.value.code == code
    assert capsys.readouterr().err == "error: first second\n"


@pytest.mark.parametrize(
    ("error", "code"), [(PerfError("a\nb"), 1), (GpuMissing("a\nb"), 4), (EnvironmentUnfit("a\nb"), 4)]
)
def test_perf_tells_its_own_errors_and_those_of_what_it_drives_alike(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb() -> None:
        raise error

    monkeypatch.setattr(perf.__main__, "app", verb)
    with pytest.raises(SystemExit) as ended:
        perf.__main__.main()
    assert ended.value.code == code
    assert capsys.readouterr().err == "error: a b\n"


def refuse(*_: object) -> None:
    """Stands for a disk that root cannot be refused by."""
    raise PermissionError(errno.EACCES, "Permission denied", "/some/file")


def open_what_is_no_store(folder: Path) -> None:
    (folder / "data.mdb").write_bytes(b"no page of LMDB" * 1000)
    lmdb.open(str(folder))


def fill_a_small_map(folder: Path) -> None:
    with lmdb.open(str(folder), map_size=2**16) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"key", b"x" * 2**17)


def write_to_a_reader(folder: Path) -> None:
    lmdb.open(str(folder)).close()
    with lmdb.open(str(folder), readonly=True) as environment:
        environment.begin(write=True)


def write_under_a_file(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "file" / "below").write_text("x")


REFUSED_BY_THE_SYSTEM = [
    (lambda folder: folder.read_text(), "it is a folder, expected a file"),
    (write_under_a_file, "part of this path is a file, expected a folder"),
    (lambda folder: (folder / "none").read_text(), "none: No such file or directory; check the path"),
    (lambda folder: folder.mkdir(), "remove what lies there, or name another path"),
    (lambda folder: Path("/dev/full").write_text("x" * 9), "no room on the disk"),
    (lambda folder: (folder / ("x" * 300)).touch(), "name a shorter path"),
    (refuse, "/some/file: Permission denied; give this user the right"),
]
REFUSED_BY_LMDB = [
    (open_what_is_no_store, "what lies there is no item store: move it away and run 'make repository'"),
    (fill_a_small_map, "run 'python -m builders prune'"),
    (write_to_a_reader, "see that this user may write the item store's folder"),
]


@pytest.mark.parametrize("main", [builders.__main__, perf.__main__], ids=["builders", "perf"])
@pytest.mark.parametrize(
    ("cause", "told"),
    [pytest.param(*each, id=each[1]) for each in [*REFUSED_BY_THE_SYSTEM, *REFUSED_BY_LMDB]],
)
def test_what_the_system_or_lmdb_refuses_is_told_in_one_line(
    main: ModuleType,
    cause: Callable[[Path], object],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(main, "app", lambda: cause(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main.main()
    error = capsys.readouterr().err
    assert ended.value.code == 1
    assert error.startswith("error: ") and error.count("\n") == 1
    assert told in error


def test_the_trace_of_what_the_system_refuses_is_there_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRACE_VARIABLE, "1")
    monkeypatch.setattr(builders.__main__, "app", refuse)
    with pytest.raises(SystemExit):
        builders.__main__.main()
    trace, _, last = capsys.readouterr().err.rpartition("error: ")
    assert "in refuse" in trace
    assert f"{TRACE_VARIABLE}=1 shows where" in last


@pytest.mark.parametrize("cause", [cause for cause, _ in REFUSED_BY_THE_SYSTEM])
def test_the_server_tells_what_the_system_refuses_in_one_line(
    cause: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server.__main__, "_server", lambda _: cause(tmp_path))
    assert server.__main__.main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "see that this user may read the repository" in error


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"= ["], ids=["a folder", "not UTF-8", "not TOML"])
def test_a_sweep_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.toml"
    sweep.mkdir() if content is None else sweep.write_bytes(content)
    with pytest.raises(PerfError, match=re.escape(str(sweep))):
        load_sweep(sweep)


def test_what_nobody_raises_on_purpose_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def verb() -> None:
        raise KeyError("a mistake of ours")

    for main in (builders.__main__, perf.__main__):
        monkeypatch.setattr(main, "app", verb)
        with pytest.raises(KeyError):
            main.main()


def test_the_server_tells_a_missing_repository_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server", "--repository", str(tmp_path / "nothing")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


def test_a_recipe_that_is_not_there_ends_the_builders_with_code_2() -> None:
    command = [sys.executable, "-m", "builders", "gate", "a_fp32_onnx", "--recipe", "nowhere.toml"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "error: no recipe at 'nowhere.toml'; 'ls recipes' shows those of the kit\n"
