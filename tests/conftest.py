"""The kit itself as a fixture: built once from the real data (or the generated, where there is none), served once."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry

from builders.core.recipe import load_recipes
from builders.core.workspace import REPOSITORY_ROOT
from builders.data.find import JudgedQueries, find_data, load_judged
from perf.endpoints import published_endpoints
from server import TritonServer
from server.admin_key import KEY_FILE_VARIABLE
from tests.support.kit import WORKSPACE, Untouched

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # some tests import openvino themselves

# torch reads the source of all its ONNX functions anew in each export: a second, hundreds of times
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]

READY_TIMEOUT_S = 600
"""A busy machine takes minutes for the whole kit."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One file that needs the kit first and the others last: while a worker builds it, none waits for it.

    The rest as ``--dist loadfile`` orders them by itself, files of most tests first; see ``make test``.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    needs_kit = {path for path, found in files.items() if any("kit" in _fixtures(item) for item in found)}
    first = next(iter(sorted(needs_kit)), None)
    files_in_order = sorted(files, key=lambda path: (path != first, path in needs_kit, -len(files[path])))
    items[:] = [item for path in files_in_order for item in files[path]]


def _fixtures(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])


@pytest.fixture(scope="session", autouse=True)
def developers_folders() -> Iterator[Untouched]:
    """Fails the run at its end where tests wrote to what ``make`` built for whoever works here."""
    folders = Untouched()
    yield folders
    assert not folders.touched(), "written while the tests ran; tests build in a folder of their own"


@pytest.fixture(scope="session", autouse=True)
def admin_key_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`python -m server` of a test keeps its admin key elsewhere than in the developer's checkout."""
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv(KEY_FILE_VARIABLE, str(tmp_path_factory.mktemp("admin") / "admin.key"))
        yield


@pytest.fixture(scope="session")
def judged() -> JudgedQueries:
    """The judged queries that the kit is built on."""
    return load_judged(find_data().folder)


@pytest.fixture(scope="session")
def kit() -> list[str]:
    """Builds what is missing of the tests' own kit, see tests/support/kit.py; gives the endpoints, ``rank`` first.

    A recipe whose data is not there has none.
    """
    subprocess.run([sys.executable, "-m", "tests.support.kit"], check=True, cwd=REPOSITORY_ROOT)
    endpoints = published_endpoints(load_recipes(), WORKSPACE, data=None)
    return [*{endpoint.kind: None for endpoint in endpoints}, *(endpoint.name for endpoint in endpoints), "similar"]


@pytest.fixture(scope="session")
def served_kit(kit: list[str]) -> Iterator[TritonServer]:
    """The real server with every endpoint of the kit, on free ports."""
    with TritonServer(
        WORKSPACE.repository,
        load=kit,
        store=WORKSPACE.item_store,
        grpc_port=0,
        http_port=0,
        metrics_port=0,
        ready_timeout_s=READY_TIMEOUT_S,
    ) as server:
        yield server
