"""A Triton with small models, and clients of it. Knows nothing of real rankers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "clients"))  # the checkout's client, whether or not one is installed

from tritonrank_client import RankClient  # noqa: E402

from builders.core.contract import ANY_LIST  # noqa: E402
from server import TritonServer  # noqa: E402
from tests.support.small_model import QUEUE_OF_TWO, Gates, says_of_lists, write_model  # noqa: E402


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
    """Serves `rank`, `rank_queued` (a queue of two), `rank_foreign` (another contract), `rank_filters` and
    `rank_unread`, which say of their lists that a filter may shorten them and what no client can read."""
    repository = tmp_path_factory.mktemp("repository")
    write_model(repository, "rank", gates_folder)
    write_model(repository, "rank_queued", gates_folder, more=QUEUE_OF_TWO)
    write_model(
        repository, "rank_foreign", gates_folder, top_k_type="TYPE_INT64", top_k_optional="false", scores="logits"
    )
    filters = {**ANY_LIST, "rules": {"in_stock_only": True}}
    write_model(repository, "rank_filters", gates_folder, more=says_of_lists(json.dumps(filters)))
    write_model(repository, "rank_unread", gates_folder, more=says_of_lists("{}"))
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
