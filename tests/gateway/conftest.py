"""One Triton with models that do as the query says, and gateways before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from builders.core.contract import ITEM_ID, RANKED_IDS, SCORES, TOP_K
from server import TritonServer
from tests.support import repositories
from tests.support.gateways import gateway
from tests.support.small_model import QUEUE_OF_TWO, TAKES_TEXTS, Gates, write_model

ANY_PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
MODELS = {"texts": "rank", "queued": "rank_queued", "foreign": "rank_foreign", "near": "similar"}
"""Of gateways: name that requests state => endpoint."""
SIMILAR = f"""
backend: "python"
max_batch_size: 0
input [ {{ name: "{ITEM_ID.name}" data_type: TYPE_STRING dims: [ 1 ] }},
        {{ name: "{TOP_K.name}" data_type: TYPE_INT32 dims: [ 1 ] optional: true }} ]
output [ {{ name: "{RANKED_IDS.name}" data_type: TYPE_STRING dims: [ -1 ] }},
         {{ name: "{SCORES.name}" data_type: TYPE_FP32 dims: [ -1 ] }} ]
"""
NEIGHBOURS = repositories.python_model(
    {RANKED_IDS.name: "np.array([b'a', b'b', b'c'][:count], dtype=object)", SCORES.name: "scores[:count]"},
    f"count = int(tensor('{TOP_K.name}')[0]); scores = np.array([0.9, 0.5, 0.1], dtype=np.float32)",
)


@pytest.fixture(scope="session")
def gates_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


@pytest.fixture
def gates(gates_folder: Path) -> Iterator[Gates]:
    gates = Gates(gates_folder)
    yield gates
    gates.open()


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory, gates_folder: Path) -> Iterator[TritonServer]:
    """`rank`, `rank_queued` and `rank_foreign` of small_model, and a `similar` with three items."""
    repository = tmp_path_factory.mktemp("gateway")
    write_model(repository, "rank", gates_folder, more=TAKES_TEXTS)
    write_model(repository, "rank_queued", gates_folder, more=TAKES_TEXTS + QUEUE_OF_TWO)
    write_model(repository, "rank_foreign", gates_folder, scores="logits")
    repositories.write_model(repository, "similar", SIMILAR, NEIGHBOURS)
    with TritonServer(repository, load=None, **ANY_PORTS) as server:
        yield server


@pytest.fixture(scope="session")
def client(triton: TritonServer) -> Iterator[httpx2.Client]:
    """Of a gateway without keys before all models."""
    with gateway(triton.grpc_url, models=MODELS) as found:
        yield found


@pytest.fixture
def started(triton: TritonServer) -> Iterator[Callable[..., httpx2.Client]]:
    """Starts gateways of one test; settings as of :class:`gateway.settings.Settings`."""
    with ExitStack() as stack:

        def start(triton_url: str = triton.grpc_url, **settings: Any) -> httpx2.Client:
            return stack.enter_context(gateway(triton_url, **{"models": MODELS, **settings}))

        yield start
