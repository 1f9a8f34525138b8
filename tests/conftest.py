"""The kit itself as a fixture: built once from the real data (or the generated, where there is none), served once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from builders.core.recipe import load_recipes
from builders.core.workspace import PROJECT
from builders.data.find import JudgedQueries, find_data, load_judged
from perf.endpoints import published_endpoints
from server import TritonServer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # some tests import openvino themselves


@pytest.fixture(scope="session")
def judged() -> JudgedQueries:
    """The judged queries that the kit is built on."""
    return load_judged(find_data().folder)


@pytest.fixture(scope="session")
def kit() -> list[str]:
    """Builds what is missing, as ``make repository`` does; gives the endpoints, ``rank`` first.

    A recipe whose data is not there has none.
    """
    command = [sys.executable, "-m", "builders", "repository", "--fidelity-lists", "100"]  # as make demo
    subprocess.run(command, check=True, cwd=PROJECT.repository.parent)
    endpoints = published_endpoints(load_recipes(), data=None)
    return [*{endpoint.kind: None for endpoint in endpoints}, *(endpoint.name for endpoint in endpoints), "similar"]


@pytest.fixture(scope="session")
def served_kit(kit: list[str]) -> Iterator[TritonServer]:
    """The real server with every endpoint of the kit, on free ports."""
    with TritonServer(
        PROJECT.repository, load=kit, store=PROJECT.item_store, grpc_port=0, http_port=0, metrics_port=0
    ) as server:
        yield server
