"""`similar` on the real server: exact cosine against NumPy, what is refused, and a store that changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from builders.core.contract import DEFAULT_SIMILAR, MAX_SIMILAR, Contract
from builders.publish import model_config, similar_index
from builders.publish.endpoints import served_files
from builders.publish.item_store import MAX_READERS, ItemStore
from builders.publish.postprocessing import similar_contract
from builders.publish.repository import ServedModel, publish_models
from builders.publish.similar_index import SEARCH_CODE, SimilarPlan, plan_index
from server import ModelsNotReady, TritonServer
from tests.support.endpoint import Array, integers, metric, send, texts

pytestmark = pytest.mark.server

ANY_PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
TABLE, VERSION, WIDTH = "two_tower", "v1", 16
VECTORS = np.random.default_rng(0).normal(size=(2000, WIDTH)).astype("<f4")
"""Neither of length 1 nor in the order of their ids."""
IDS = [f"item {row}" for row in range(len(VECTORS))]


def write_repository(folder: Path, contract: Contract) -> None:
    files = {**served_files("similar"), SEARCH_CODE.name: SEARCH_CODE}
    publish_models(folder, [ServedModel(model_config.python_config(contract), contract, files)], [], {})


def put(store: Path, vectors: dict[str, np.ndarray]) -> None:
    with ItemStore(store) as writer:
        writer.put(TABLE, VERSION, ((item_id, vector.astype("<f4").tobytes()) for item_id, vector in vectors.items()))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("similar")
    write_repository(folder / "models", similar_contract(TABLE, VERSION, WIDTH))
    put(folder / "store", dict(zip(IDS, VECTORS, strict=True)))
    with TritonServer(folder / "models", ["similar"], store=folder / "store", **ANY_PORTS) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


def similar(
    client: grpc.InferenceServerClient, item_id: str, top_k: int | None = None
) -> tuple[list[str], list[float]]:
    limit = {} if top_k is None else {"top_k": integers([top_k])}
    return send(client, "similar", item_id=texts(item_id), **limit)


def cosines_with(item_id: str) -> dict[str, float]:
    """Of every other item, by NumPy in FP64, highest first."""
    unit = VECTORS.astype(np.float64) / np.linalg.norm(VECTORS.astype(np.float64), axis=1, keepdims=True)
    cosines = dict(zip(IDS, (unit @ unit[IDS.index(item_id)]).tolist(), strict=True))
    return {other: cosines[other] for other in sorted(cosines, key=lambda one: -cosines[one]) if other != item_id}


@pytest.mark.parametrize("item_id", [IDS[0], IDS[7], IDS[1999]])
@pytest.mark.parametrize("count", [1, 10, MAX_SIMILAR])
def test_the_nearest_items_are_numpys_without_the_item_itself(
    client: grpc.InferenceServerClient, item_id: str, count: int
) -> None:
    wanted = cosines_with(item_id)
    found, scores = similar(client, item_id, count)

    assert scores == pytest.approx(list(wanted.values())[:count], abs=1e-6)
    assert [wanted[other] for other in found] == pytest.approx(scores, abs=1e-6)  # nearer ones may change places
    assert len(set(found)) == count


@pytest.mark.parametrize("top_k", [None, 0])
def test_ten_are_given_where_no_number_is_asked(client: grpc.InferenceServerClient, top_k: int | None) -> None:
    assert len(similar(client, IDS[0], top_k)[0]) == DEFAULT_SIMILAR == 10


def test_an_item_that_the_store_does_not_know_is_refused_and_counted(
    server: TritonServer, client: grpc.InferenceServerClient
) -> None:
    before = metric(server, "tritonrank_unknown_items_total", "similar")
    with pytest.raises(InferenceServerException, match="item_id: not in the item store") as refusal:
        similar(client, "absent")

    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert metric(server, "tritonrank_unknown_items_total", "similar") == before + 1


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"item_id": texts("")}, "item_id[0]: 0 bytes, wanted 1 to 511"),
        ({"item_id": texts("x" * 512)}, "item_id[0]: 512 bytes, wanted 1 to 511"),
        ({"item_id": texts(b"\xff")}, "item_id[0]: not UTF-8 (byte 0xff at 0)"),
        ({"top_k": integers([-1])}, "top_k: -1, wanted 0 (10 items) to 1024"),
        ({"top_k": integers([1025])}, "top_k: 1025, wanted 0 (10 items) to 1024"),
        (
            {"item_id": texts("a", "b")},
            "unexpected shape for input 'item_id' for model 'similar'. Expected [1], got [2].",
        ),
    ],
)
def test_a_bad_request_is_refused(client: grpc.InferenceServerClient, tensors: dict[str, Array], message: str) -> None:
    with pytest.raises(InferenceServerException) as refusal:
        send(client, "similar", **{"item_id": texts(IDS[0]), **tensors})

    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert message in refusal.value.message()


# ---------------------------------------------------------------- a store that changes
def test_an_added_and_a_replaced_item_are_found_without_a_restart(tmp_path: Path) -> None:
    write_repository(tmp_path / "models", similar_contract(TABLE, VERSION, 2))
    put(tmp_path / "store", {"east": np.array([2, 0])})
    with (
        TritonServer(tmp_path / "models", ["similar"], store=tmp_path / "store", **ANY_PORTS) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        assert similar(client, "east") == ([], [])

        put(tmp_path / "store", {"north": np.array([0, 1]), "a north": np.array([0, 3]), "none": np.array([0, 0])})
        assert similar(client, "east") == (["a north", "none", "north"], [0, 0, 0])  # equal: in the order of their ids
        assert similar(client, "north") == (["a north", "east", "none"], [1, 0, 0])
        assert similar(client, "none", 2) == (["a north", "east"], [0, 0])

        put(tmp_path / "store", {"a north": np.array([1, -1])})
        assert similar(client, "east", 1) == (["a north"], [pytest.approx(0.5**0.5)])


def test_a_removed_item_is_found_no_more_and_found_again_when_it_comes_back(tmp_path: Path) -> None:
    write_repository(tmp_path / "models", similar_contract(TABLE, VERSION, 2))
    put(tmp_path / "store", {"east": np.array([2, 0]), "north": np.array([0, 1])})
    with (
        TritonServer(tmp_path / "models", ["similar"], store=tmp_path / "store", **ANY_PORTS) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        with ItemStore(tmp_path / "store") as writer:
            assert writer.remove(f"{TABLE}@{VERSION}", ["north"]) == 1
        assert similar(client, "east") == ([], [])
        with pytest.raises(InferenceServerException, match="item_id: not in the item store"):
            similar(client, "north")
        put(tmp_path / "store", {"north": np.array([1, 1])})
        assert similar(client, "east") == (["north"], [pytest.approx(0.5**0.5)])


def test_a_store_built_for_another_model_is_refused_with_both_versions(tmp_path: Path) -> None:
    write_repository(tmp_path / "models", similar_contract(TABLE, "v2", WIDTH))
    put(tmp_path / "store", {"a": VECTORS[0]})
    with (
        pytest.raises(ModelsNotReady) as refusal,
        TritonServer(tmp_path / "models", ["similar"], store=tmp_path / "store", **ANY_PORTS),
    ):
        pytest.fail("served with another model's vectors")

    assert "has two_tower@v1; this model was built with two_tower@v2" in str(refusal.value)


def test_vectors_of_another_width_are_refused(tmp_path: Path) -> None:
    write_repository(tmp_path / "models", similar_contract(TABLE, VERSION, WIDTH + 1))
    put(tmp_path / "store", {"a": VECTORS[0]})
    with (
        pytest.raises(ModelsNotReady) as refusal,
        TritonServer(tmp_path / "models", ["similar"], store=tmp_path / "store", **ANY_PORTS),
    ):
        pytest.fail("served with vectors of another width")

    assert "a stored vector has 64 bytes, wanted 68: fill the item store anew" in str(refusal.value)


def test_an_index_answers_by_exact_cosines_and_follows_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similar_index, "EXACT_UP_TO", len(IDS))
    write_repository(tmp_path / "models", similar_contract(TABLE, VERSION, WIDTH))
    put(tmp_path / "store", dict(zip(IDS, VECTORS, strict=True)))
    with ItemStore(tmp_path / "store") as writer:
        plan_index(writer, f"{TABLE}@{VERSION}", SimilarPlan(WIDTH, exact=False, recall=0.9), print)
    with (
        TritonServer(tmp_path / "models", ["similar"], store=tmp_path / "store", **ANY_PORTS) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        answers = {item_id: similar(client, item_id) for item_id in IDS[::100]}
        shares = []
        for item_id, (found, scores) in answers.items():
            wanted = cosines_with(item_id)
            assert scores == pytest.approx([wanted[one] for one in found], abs=1e-6)
            shares.append(len(set(found) & set(list(wanted)[:10])) / 10)
        assert np.mean(shares) >= 0.85
        assert 0.9 <= metric(server, "tritonrank_similar_recall", "similar") < 1
        put(tmp_path / "store", {"new": VECTORS[0]})
        assert similar(client, IDS[0], 1) == (["new"], [pytest.approx(1)])
        assert metric(server, "tritonrank_similar_beside", "similar") == 1


# ---------------------------------------------------------------- metrics of the store
def test_size_age_and_free_readers_of_the_store_are_metrics(
    server: TritonServer, client: grpc.InferenceServerClient
) -> None:
    similar(client, IDS[0])
    assert metric(server, "tritonrank_store_bytes", "similar") > VECTORS.nbytes
    assert 0 < metric(server, "tritonrank_store_free_readers", "similar") <= MAX_READERS
    assert 0 <= metric(server, "tritonrank_store_age_seconds", "similar") < 3600
