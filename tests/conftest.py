"""The kit itself as a fixture: built once from the real data (or the generated, where there is none), served once."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator

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
