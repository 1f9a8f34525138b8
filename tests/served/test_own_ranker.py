"""A module that the kit has never seen, from its user's recipe to served scores; what the served features do."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from builders.core import contract
from builders.core.contract import UNSCORED
from builders.core.workspace import Workspace
from builders.data.beir import Product, Request, read_users
from builders.data.synthetic import write_generated
from builders.evaluate.judge import BuiltRanker
from builders.publish.catalogue import add_items, add_users, fill_item_store
from builders.publish.endpoints import publish_rankers
from builders.publish.fused import WINS_BY, FormsReport, form_of
from builders.publish.item_store import ItemStore
from builders.publish.lifecycle import promote
from builders.publish.manifest import read_manifest
from deploy import ready
from perf.forms import run_forms
from server import TritonServer, canary
from tests.support.endpoint import Array, metric, send, texts
from tests.support.own_ranker import built_own_ranker

pytestmark = pytest.mark.server
ENDPOINT = "rank_every_kind_fp32_onnx"
ANY_PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
QUERY = "red coffee mug"
CONTEXT = {"hour": 14}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[BuiltRanker, Workspace]:
    return built_own_ranker(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def server(own: tuple[BuiltRanker, Workspace]) -> Iterator[TritonServer]:
    _, workspace = own
    with TritonServer(
        workspace.repository, load=[ENDPOINT], store=workspace.item_store, grpc_port=0, http_port=0, metrics_port=0
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as connected:
        yield connected


def served(
    client: grpc.InferenceServerClient, item_ids: list[str], endpoint: str = ENDPOINT, **further: Array
) -> dict[str, float]:
    """Item id => score."""
    asked = {contract.QUERY.name: texts(QUERY), contract.ITEM_IDS.name: texts(*item_ids), **further}
    return dict(zip(*send(client, endpoint, **asked), strict=True))


def by_torch(own: tuple[BuiltRanker, Workspace], products: list[Product], **further: Any) -> dict[str, float]:
    scores = own[0].ranker.score(Request(QUERY, **further), products)
    return {product.item_id: float(score) for product, score in zip(products, scores, strict=True)}


@pytest.mark.parametrize("candidates", [1, 40, 600])
def test_served_scores_are_torchs(
    own: tuple[BuiltRanker, Workspace], client: grpc.InferenceServerClient, candidates: int
) -> None:
    products = list(own[0].data.products.values())[:candidates]
    found = served(
        client,
        [product.item_id for product in products],
        user_id=texts("anna"),
        history=texts(products[0].item_id, "never seen"),
        context=texts(json.dumps(CONTEXT)),
    )
    history = (products[0].item_id, "never seen")
    wanted = by_torch(own, products, user={"country": "se"}, history=history, context=CONTEXT)
    assert found == pytest.approx(wanted, abs=1e-4)
    assert len(set(found.values())) > candidates / 2


def test_what_the_request_leaves_out_counts_as_absent(
    own: tuple[BuiltRanker, Workspace], client: grpc.InferenceServerClient
) -> None:
    products = list(own[0].data.products.values())[:20]
    found = served(client, [product.item_id for product in products])
    assert found == pytest.approx(by_torch(own, products), abs=1e-4)
    assert found != pytest.approx(by_torch(own, products, user={"country": "se"}), abs=1e-4)


def test_a_user_that_the_store_does_not_know_is_an_unknown_one(
    own: tuple[BuiltRanker, Workspace], client: grpc.InferenceServerClient
) -> None:
    ids = list(own[0].data.products)[:5]
    assert served(client, ids, user_id=texts("nobody")) == served(client, ids)


def test_an_added_user_is_known_from_the_next_request_on(
    own: tuple[BuiltRanker, Workspace], client: grpc.InferenceServerClient, tmp_path: Path
) -> None:
    ids = list(own[0].data.products)[:5]
    before = served(client, ids, user_id=texts("mia"))
    (tmp_path / "users.jsonl").write_text('{"_id": "mia", "country": "no"}\n', encoding="utf-8")
    add_users([own[0].ranker], read_users(tmp_path / "users.jsonl"), own[1])
    products = [own[0].data.products[item_id] for item_id in ids]
    found = served(client, ids, user_id=texts("mia"))
    assert found == pytest.approx(by_torch(own, products, user={"country": "no"}), abs=1e-4)
    assert found != pytest.approx(before, abs=1e-4)


def test_an_image_vector_changes_the_score_from_store_to_served(
    own: tuple[BuiltRanker, Workspace], client: grpc.InferenceServerClient
) -> None:
    with_image = next(product for product in own[0].data.products.values() if product.fields)
    without = Product(**{**vars(with_image), "item_id": "no-image", "fields": {}})
    add_items([own[0].ranker], [without], own[1])
    found = served(client, [with_image.item_id, "no-image"])
    assert found == pytest.approx(by_torch(own, [with_image, without]), abs=1e-4)
    assert abs(found[with_image.item_id] - found["no-image"]) > 1e-3


def test_a_fresh_items_fields_may_ride_in_the_request(
    own: tuple[BuiltRanker, Workspace], client: grpc.InferenceServerClient
) -> None:
    stored = list(own[0].data.products.values())[7]
    fresh = Product("fresh", "Green travel mug", brand="Alder", color="green", price=9.5)
    fields = json.dumps({"title": fresh.title, "brand": "Alder", "color": "green", "price": 9.5})
    found = served(client, [stored.item_id, "fresh"], item_fields=texts("", fields))
    assert found == pytest.approx(by_torch(own, [stored, fresh]), abs=1e-4)


def test_an_unknown_item_comes_last_and_is_counted(
    own: tuple[BuiltRanker, Workspace], client: grpc.InferenceServerClient, server: TritonServer
) -> None:
    before = metric(server, "tritonrank_unknown_items_total", "every_kind_preprocess")
    ids = ["nowhere", *list(own[0].data.products)[:3]]
    assert list(served(client, ids).items())[-1] == ("nowhere", pytest.approx(UNSCORED))
    assert metric(server, "tritonrank_unknown_items_total", "every_kind_preprocess") == before + 1


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"context": texts("[1]")}, "context: a JSON list, wanted an object of raw fields"),
        ({"context": texts("{")}, "context: not JSON"),
        ({"item_fields": texts('{"price": "dear"}', "")}, "item_fields[0]: field 'price': found 'dear', wanted a"),
        ({"item_fields": texts('{"image": [1, 2]}', "")}, "item_fields[0]: field 'image': found shape [2], wanted 4"),
        ({"item_fields": texts("")}, "item_fields: 1 objects, wanted one for each of 2 items"),
        ({"history": texts(b"\xff")}, "history[0]: not UTF-8"),
        ({"history": texts("")}, "history[0]: 0 bytes, wanted 1 to 511"),
        ({"user_id": texts("a" * 512)}, "user_id: 512 bytes, wanted one string of at most 511 bytes"),
    ],
)
def test_a_bad_field_is_an_invalid_argument(
    own: tuple[BuiltRanker, Workspace], client: grpc.InferenceServerClient, further: dict[str, Array], message: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        served(client, list(own[0].data.products)[:2], **further)
    assert message in str(refused.value)
    assert "INVALID_ARGUMENT" in str(refused.value.status())


def test_an_empty_history_is_a_history(own: tuple[BuiltRanker, Workspace], client: grpc.InferenceServerClient) -> None:
    ids = list(own[0].data.products)[:4]
    empty = np.array([], dtype=object), "BYTES"
    assert served(client, ids, history=empty) == served(client, ids)


def test_a_long_history_is_cut_to_what_the_network_reads_checked_whole_and_counted(
    own: tuple[BuiltRanker, Workspace], client: grpc.InferenceServerClient, server: TritonServer
) -> None:
    ids = list(own[0].data.products)[:4]
    latest = [f"item {number}" for number in range(5)]  # as many as the network reads
    counted = ("tritonrank_truncated_histories_total", "every_kind_preprocess")
    before = metric(server, *counted)
    read = served(client, ids, history=texts(*latest))
    assert metric(server, *counted) == before
    assert served(client, ids, history=texts("older", *latest)) == read
    assert metric(server, *counted) == before + 1
    with pytest.raises(InferenceServerException, match=r"history\[0\]: not UTF-8"):
        served(client, ids, history=texts(b"\xff", *latest))


def test_a_store_filled_for_other_weights_is_refused_at_load_with_both_versions(
    own: tuple[BuiltRanker, Workspace], tmp_path: Any
) -> None:
    built, workspace = own
    name, version = "every_kind", built.ranker.preprocess.parameters["item_features_version"]
    from builders.publish.item_store import ItemStore
    from server.errors import ServerError

    with ItemStore(tmp_path / "other") as store:
        store.put(name, "0ther0ther", built.ranker.item_features(list(built.data.products.values())[:2]))
    with pytest.raises(ServerError) as refused:
        TritonServer(
            workspace.repository, load=[ENDPOINT], store=tmp_path / "other", grpc_port=0, http_port=0, metrics_port=0
        ).__enter__()
    assert f"{name}@0ther0ther" in str(refused.value) and f"{name}@{version}" in str(refused.value)


def test_a_build_with_a_changed_catalogue_is_served_with_the_next_request(
    own: tuple[BuiltRanker, Workspace], client: grpc.InferenceServerClient
) -> None:
    built, workspace = own
    ids = list(built.data.products)[:5]
    before = served(client, ids)
    products = dict(built.data.products)
    products[ids[0]] = dataclasses.replace(products[ids[0]], title="camping tent for two", price=400.0)
    del products[ids[1]]
    changed = dataclasses.replace(built, data=dataclasses.replace(built.data, products=products))
    try:
        fill_item_store([changed], lambda _: None, workspace)
        after = served(client, ids)
        known = [item_id for item_id in ids if item_id in products]
        wanted = by_torch(own, [products[item_id] for item_id in known])
        assert {item_id: after[item_id] for item_id in known} == pytest.approx(wanted, abs=1e-4)
        assert abs(after[ids[0]] - before[ids[0]]) > 1e-3
        assert after[ids[1]] == UNSCORED
    finally:
        fill_item_store([built], lambda _: None, workspace)
    assert served(client, ids) == before


# ---------------------------------------------------------------- the fused form
def test_a_recipe_that_asks_for_it_is_published_fused_with_the_same_gate_canary_and_scores(
    own: tuple[BuiltRanker, Workspace], client: grpc.InferenceServerClient, tmp_path: Path
) -> None:
    built, workspace = own
    serving = built.recipe.serving.model_copy(update={"form": "fused"})
    asked = dataclasses.replace(built, recipe=built.recipe.model_copy(update={"serving": serving}))
    fused = dataclasses.replace(workspace, repository=tmp_path / "models")
    said: list[str] = []
    publish_rankers([asked], {"rank": "every_kind_fp32_onnx"}, "made up", said.append, fused)
    assert "rank = every_kind_fp32_onnx" in said[0]
    found, usual = (read_manifest(each.repository) for each in (fused, workspace))
    assert found.served[ENDPOINT].steps == found.served["rank"].steps == {"every_kind_fp32_onnx_fused": 1}
    assert found.served[ENDPOINT].canary == usual.served[ENDPOINT].canary
    assert found.built_from(found.served["rank"]) == usual.built_from(usual.served[ENDPOINT])
    promote(fused.repository, "rank_candidate", ENDPOINT)
    ids = list(built.data.products)[:40]
    further = {"user_id": texts("anna"), "context": texts(json.dumps(CONTEXT)), "history": texts(ids[3])}
    wanted = served(client, ids, **further)
    with TritonServer(fused.repository, None, store=fused.item_store, verify="hash", **ANY_PORTS) as server:
        assert not [*canary.faults(server.http_host, server.http_port, fused.repository, fused.item_store, 60)]
        with grpc.InferenceServerClient(server.grpc_url) as connected:
            for endpoint in (ENDPOINT, "rank", "rank_candidate"):
                assert served(connected, ids, endpoint=endpoint, **further) == wanted
        server.kill()


def test_what_is_published_is_measured_in_both_forms_and_the_next_build_goes_by_it(
    own: tuple[BuiltRanker, Workspace], tmp_path: Path
) -> None:
    built, workspace = own
    write_generated(tmp_path / "data")
    measured = dataclasses.replace(workspace, build=tmp_path / "build")
    said: list[str] = []
    assert form_of(built.recipe, built.variants[0].variant, measured) == ("ensemble", "")
    report, path = run_forms(built.recipe, rounds=1, window_ms=200, data=tmp_path / "data", workspace=measured)
    assert FormsReport.model_validate_json(path.read_text()) == report
    [(model, figures)] = report.variants.items()
    assert (model, report.instances) == ("every_kind_fp32_onnx", built.recipe.serving.instances)
    assert figures.fused_per_s / figures.ensemble_per_s == figures.ratio > 0
    built_anew = dataclasses.replace(measured, repository=tmp_path / "models")
    publish_rankers([built], {}, "made up", said.append, built_anew)
    wanted = "every_kind_fp32_onnx_fused" if figures.ratio > WINS_BY else "every_kind_preprocess"
    assert wanted in read_manifest(built_anew.repository).served[ENDPOINT].steps
    assert f"fused it answers {figures.ratio:.2f} times the ensemble's requests/s" in said[0]


# ---------------------------------------------------------------- readiness
@pytest.fixture
def repository(own: tuple[BuiltRanker, Workspace], tmp_path: Path) -> Path:
    """A folder with the repository's manifest, to change."""
    shutil.copy(own[1].repository / "manifest.json", tmp_path)
    return tmp_path


@pytest.fixture
def asked(
    own: tuple[BuiltRanker, Workspace], server: TritonServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], int]:
    """The containers' health check."""
    monkeypatch.setenv("TRITONRANK_ITEM_STORE", str(own[1].item_store))
    return lambda: ready.main(server.http_port, str(repository))


def change_canary(repository: Path, **changes: Any) -> dict[str, Any]:
    """The canary as it was."""
    path = repository / "manifest.json"
    manifest = json.loads(path.read_text())
    [*_, generation] = manifest["endpoints"][ENDPOINT]
    before, generation["canary"] = generation["canary"], {**generation["canary"], **changes}
    path.write_text(json.dumps(manifest))
    return before


def test_a_server_is_ready_that_scores_the_builds_request_as_the_build_does(
    asked: Callable[[], int], repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked() == 0
    before = change_canary(repository, scores={"nothing": 0.0})
    assert len(before["scores"]) == len(before["stored"]["every_kind@" + version_of(before)]) == 3
    first, *others = before["items"]
    wrong = {**before["scores"], first: before["scores"][first] + 2 * before["tolerance"]}
    change_canary(repository, scores=wrong)
    assert asked() == 1
    assert f"not ready: {ENDPOINT}: scored item '{first}'" in capsys.readouterr().err
    change_canary(repository, scores=before["scores"], items=others)
    assert asked() == 1
    assert "answered 3 items with 3 scores, wanted each of 2 once" in capsys.readouterr().err
    change_canary(repository, items=before["items"], inputs=before["inputs"][1:])
    assert asked() == 1
    assert f"not ready: {ENDPOINT}: answered 400: " in capsys.readouterr().err


def version_of(canary: dict[str, Any]) -> str:
    [table] = canary["stored"]
    return table.rpartition("@")[2]


def test_no_change_of_the_catalogue_makes_a_server_unready(
    own: tuple[BuiltRanker, Workspace], asked: Callable[[], int], repository: Path, client: grpc.InferenceServerClient
) -> None:
    built, workspace = own
    canary = change_canary(repository)
    products = [built.data.products[item_id] for item_id in canary["items"]]
    before = served(client, canary["items"])
    add_items([built.ranker], [dataclasses.replace(products[0], price=9e6)], workspace)
    assert served(client, canary["items"]) != before
    assert asked() == 0
    [table] = canary["stored"]
    with ItemStore(workspace.item_store) as store:
        store.remove(table, canary["items"])
    assert asked() == 0
    add_items([built.ranker], products, workspace)
    assert served(client, canary["items"]) == before
