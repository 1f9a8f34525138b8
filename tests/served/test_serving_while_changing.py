"""The kit under many requests at once, and with an item store that changes or does not belong to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from builders.core.contract import ITEM_IDS, QUERY, TOP_K, UNSCORED
from builders.core.recipe import load_recipes
from builders.core.workspace import Workspace
from builders.data.beir import Request
from builders.data.find import JudgedQueries, Product
from builders.publish import pbtxt
from builders.publish.catalogue import add_items
from builders.publish.item_store import ItemStore
from builders.rankers.base import Ranker
from builders.rankers.load import load_ranker
from server import ModelsNotReady, TritonServer
from tests.support.endpoint import Array, integers, rank, send, texts
from tests.support.kit import WORKSPACE

pytestmark = pytest.mark.server

ENDPOINT = "rank_two_tower_fp32_onnx"
ANY_PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
REQUESTS = 200
ITEMS = 60


@pytest.fixture(scope="module")
def ranker() -> Ranker:
    return load_ranker(load_recipes()["two_tower"])


@pytest.fixture(scope="module")
def products(judged: JudgedQueries) -> list[Product]:
    return list(judged.products.values())[:ITEMS]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, ranker: Ranker, products: list[Product]) -> Workspace:
    """An item store of its own, so that the kit's stays as it is."""
    folder = tmp_path_factory.mktemp("workspace")
    workspace = Workspace(build=folder / "build", repository=folder / "models", item_store=folder / "store")
    add_items([ranker], products, workspace)
    return workspace


def copy_with_long_queues(endpoint: str, target: Path) -> None:
    """The endpoint and its steps as published, but with queues that hold every request of these tests."""
    config = pbtxt.parse((WORKSPACE.repository / endpoint / "config.pbtxt").read_text())
    for name in (endpoint, *(step.model_name for step in config.ensemble_scheduling.step)):
        shutil.copytree(WORKSPACE.repository / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        path = target / name / "config.pbtxt"
        config = pbtxt.parse(path.read_text())
        if config.HasField("dynamic_batching"):
            config.dynamic_batching.default_queue_policy.max_queue_size = REQUESTS
            path.write_text(pbtxt.render(config))


@pytest.fixture(scope="module")
def client(kit: list[str], workspace: Workspace) -> Iterator[grpc.InferenceServerClient]:
    assert ENDPOINT in kit
    copy_with_long_queues(ENDPOINT, workspace.repository)
    with (
        TritonServer(workspace.repository, [ENDPOINT], store=workspace.item_store, **ANY_PORTS) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        yield client


# ---------------------------------------------------------------- many at once
def mixed_request(number: int, ids: list[str], queries: list[str]) -> tuple[dict[str, Array], str | None]:
    """The n-th request, and for every third what it is refused with."""
    query, items = queries[number % len(queries)], ids[number % 7 : number % 7 + 1 + number % 50]
    good = {QUERY.name: texts(query), ITEM_IDS.name: texts(*items), TOP_K.name: integers([number % 5])}
    if number % 3:
        return good, None
    faults: list[tuple[dict[str, Array], str]] = [
        ({QUERY.name: texts(" ")}, f"{QUERY.name}: empty"),
        ({ITEM_IDS.name: texts()}, f"{ITEM_IDS.name}: 0 items"),
        ({ITEM_IDS.name: texts(ids[0], ids[0])}, f"{ITEM_IDS.name}[1] repeats {ITEM_IDS.name}[0]"),
        ({ITEM_IDS.name: texts(b"\xff")}, f"{ITEM_IDS.name}[0]: not UTF-8"),
        ({TOP_K.name: integers([-number])}, f"top_k: [{-number}]"),
        ({TOP_K.name: integers([1, 2])}, "unexpected shape for input 'top_k'"),
        ({QUERY.name: integers([1])}, "data-type is 'INT32'"),
    ]
    changes, message = faults[number // 3 % len(faults)]
    return {**good, **changes}, message


def test_200_good_and_bad_requests_at_once_are_each_answered_right(
    client: grpc.InferenceServerClient, judged: JudgedQueries, ranker: Ranker, products: list[Product]
) -> None:
    queries = list(judged.queries.values())[:8]
    by_id = {product.item_id: product for product in products}
    wanted = {
        query: dict(zip(by_id, map(float, ranker.score(Request(query), products)), strict=True)) for query in queries
    }
    requests = [mixed_request(number, list(by_id), queries) for number in range(REQUESTS)]
    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = [pool.submit(send, client, ENDPOINT, **tensors) for tensors, _ in requests]

    for (tensors, message), answer in zip(requests, answers, strict=True):
        if message is not None:
            error = answer.exception()
            assert isinstance(error, InferenceServerException)
            assert error.status() == "StatusCode.INVALID_ARGUMENT"
            assert message in error.message()
            continue
        ids, scores = answer.result()
        asked = [item_id.decode() for item_id in tensors[ITEM_IDS.name][0]]
        truth = wanted[tensors[QUERY.name][0][0].decode()]
        assert len(ids) == (min(tensors[TOP_K.name][0][0], len(asked)) or len(asked))
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx([truth[item_id] for item_id in ids], abs=1e-4)
        assert scores == pytest.approx(sorted((truth[one] for one in asked), reverse=True)[: len(ids)], abs=1e-4)


# ---------------------------------------------------------------- the item store
def test_an_item_added_while_serving_is_rankable_at_once(
    client: grpc.InferenceServerClient, workspace: Workspace, ranker: Ranker, products: list[Product]
) -> None:
    new = Product("new 杯", "hand made stoneware coffee mug")
    asked = [products[0].item_id, new.item_id]
    assert rank(client, ENDPOINT, "coffee mug", asked) == (asked, [pytest.approx(0, abs=1), UNSCORED])
    add_items([ranker], [new], workspace)
    ids, scores = rank(client, ENDPOINT, "coffee mug", asked)
    assert ids[0] == new.item_id
    assert scores[0] == pytest.approx(float(ranker.score(Request("coffee mug"), [new])[0]), abs=1e-4)


def test_an_item_replaced_while_serving_is_ranked_by_its_new_title(
    client: grpc.InferenceServerClient, workspace: Workspace, ranker: Ranker
) -> None:
    query = "camping tent"
    for title in ("blue ankle socks", "camping tent for two"):
        product = Product("replaced", title)
        add_items([ranker], [product], workspace)
        expected = float(ranker.score(Request(query), [product])[0])
        assert rank(client, ENDPOINT, query, ["replaced"]) == (["replaced"], [pytest.approx(expected, abs=1e-4)])


def reasons_for_refusing(kit: list[str], store: Path) -> dict[str, str]:
    """Model => why it was not loaded with this store."""
    assert ENDPOINT in kit
    with (
        pytest.raises(ModelsNotReady) as refusal,
        TritonServer(WORKSPACE.repository, [ENDPOINT], store=store, **ANY_PORTS),
    ):
        pytest.fail("served with a store that it cannot use")
    return refusal.value.reasons


def test_a_store_of_another_version_is_refused_with_both_versions(
    kit: list[str], ranker: Ranker, tmp_path: Path
) -> None:
    with ItemStore(tmp_path) as store:
        store.put("two_tower", "0ld", [("a", b"x")])
    reason = reasons_for_refusing(kit, tmp_path)["two_tower_preprocess"]
    wanted = ranker.preprocess.parameters["item_features_version"]
    assert f"has two_tower@0ld; this model was built with two_tower@{wanted}: run 'make repository'" in reason


def test_a_missing_store_is_refused_with_what_to_do(kit: list[str], tmp_path: Path) -> None:
    reason = reasons_for_refusing(kit, tmp_path)["two_tower_preprocess"]
    assert f"no item store at '{tmp_path}' (TRITONRANK_ITEM_STORE): run 'make repository', or mount" in reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write any file")
def test_a_store_whose_lock_file_is_not_writable_is_refused(
    kit: list[str], workspace: Workspace, tmp_path: Path
) -> None:
    store = shutil.copytree(workspace.item_store, tmp_path / "store")
    (store / "lock.mdb").chmod(0o444)
    reason = reasons_for_refusing(kit, store)["two_tower_preprocess"]
    assert f"'{store / 'lock.mdb'}' is not writable: mount the item store writable" in reason
