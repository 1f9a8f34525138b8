"""A Triton with small models, and clients of it. Knows nothing of real rankers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "clients"))  # the checkout's client, whether or not one is installed

from tritonrank_client import RankClient  # noqa: E402

from server import TritonServer  # noqa: E402
from tests.support.small_model import QUEUE_OF_TWO, Gates, write_model  # noqa: E402


@pytest.fixture(scope="session")
def gates_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


@pytest.fixture
def gates(gates_folder: Path) -> Iterator[Gates]:
    gates = Gates(gates_folder)
    yield gates
    gates.open()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, gates_folder: Path) -> Iterator[TritonServer]:
    """Serves `rank`, `rank_queued` (a queue of two) and `rank_foreign` (another contract)."""
    repository = tmp_path_factory.mktemp("repository")
    write_model(repository, "rank", gates_folder)
    write_model(repository, "rank_queued", gates_folder, more=QUEUE_OF_TWO)
    write_model(
        repository, "rank_foreign", gates_folder, top_k_type="TYPE_INT64", top_k_optional="false", scores="logits"
    )
    with TritonServer(repository, load=None, grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


@pytest.fixture
def connect(server: TritonServer) -> Iterator[Callable[..., RankClient]]:
    """Makes clients of the server with ten seconds a request, and closes them."""
    clients: list[RankClient] = []

    def make(**options: object) -> RankClient:
        clients.append(RankClient(server.grpc_url, **{"timeout_s": 10.0, **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
