"""An endpoint in both forms, on real servers: the same answers bit by bit, the same refusals, the same life."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from builders.core import contract
from builders.core.contract import HISTORY, ITEM_IDS, QUERY
from builders.publish.fused import fused_model, publish_both_forms, published_steps
from builders.publish.lifecycle import prune, published_generations, rollback
from builders.publish.manifest import read_manifest
from builders.publish.model_config import endpoint_contract
from builders.publish.prune import tables_read
from builders.publish.repository import Ensemble, publish_models
from server import TritonServer
from server.verify import check_as_published
from tests.support.admin import admin_client
from tests.support.endpoint import Array, integers, metric, send, texts
from tests.support.raw_endpoints import ANY_PORTS, write_raw_endpoints

pytestmark = pytest.mark.server

ENSEMBLE, FUSED = "ensemble", "fused"
INSTANCES = 2
KNOWN = ["i3", "i1", "i10", "i7", "i5"]
ASKED: dict[str, dict[str, Array]] = {
    "recommend": {HISTORY.name: texts("i2", "i4"), ITEM_IDS.name: texts(*KNOWN)},
    "rank": {QUERY.name: texts("red shoe"), ITEM_IDS.name: texts(*KNOWN)},
}
OF_BOTH: dict[str, dict[str, Array]] = {
    "as it is": {},
    "one item": {ITEM_IDS.name: texts("i1")},
    "unknown items": {ITEM_IDS.name: texts("nowhere", "i1", "ü", "a longer one")},
    "unknown items alone": {ITEM_IDS.name: texts("a", "b")},
    "top_k": {contract.TOP_K.name: integers([2])},
    "rules": {
        contract.BOOSTED.name: texts("brand=acme"),
        contract.BOOST_AMOUNTS.name: (integers([1])[0].astype("float32"), "FP32"),
        contract.PINNED_IDS.name: texts("i5"),
        contract.PINNED_POSITIONS.name: integers([1]),
        contract.MAX_PER_BRAND.name: integers([2]),
        contract.TOP_K.name: integers([4]),
    },
    "no items": {ITEM_IDS.name: texts()},
    "too many items": {ITEM_IDS.name: texts(*map(str, range(1025)))},
    "an item twice": {ITEM_IDS.name: texts("i1", "i2", "i1")},
    "an id that is not UTF-8": {ITEM_IDS.name: texts("i1", b"\xc3(")},
    "a negative top_k": {contract.TOP_K.name: integers([-1])},
    "a pin of another item": {
        contract.PINNED_IDS.name: texts("elsewhere"), contract.PINNED_POSITIONS.name: integers([1])
    },
    "a boost without its amount": {contract.BOOSTED.name: texts("brand=acme")},
    "query of another dtype": {ITEM_IDS.name: integers([1, 2])},
}  # fmt: skip
FAMILY = {
    **{f"{endpoint}, {what}": (endpoint, given) for endpoint in ASKED for what, given in OF_BOTH.items()},
    "a stranger": ("recommend", {HISTORY.name: texts()}),
    "a long history": ("recommend", {HISTORY.name: texts(*(f"i{number % 12}" for number in range(500)))}),
    "a history that is not UTF-8": ("recommend", {HISTORY.name: texts("i1", b"\xff")}),
    "context": ("recommend", {contract.CONTEXT.name: texts('{"hour": 7}')}),
    "context that is a list": ("recommend", {contract.CONTEXT.name: texts("[]")}),
    "fields in the request": (
        "recommend",
        {ITEM_IDS.name: texts("i1", "new"), contract.ITEM_FIELDS.name: texts("", '{"title": "red shoe", "price": 7}')},
    ),
    "a field of the wrong type": (
        "recommend",
        {ITEM_IDS.name: texts("new"), contract.ITEM_FIELDS.name: texts('{"price": "dear"}')},
    ),
    "texts in the request": (
        "rank",
        {ITEM_IDS.name: texts("i1", "new"), contract.ITEM_TEXTS.name: texts("", "blue cup " * 40)},
    ),
    "an empty query": ("rank", {QUERY.name: texts(" ")}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``models`` as it is published, and the same endpoints in each form."""
    folder = tmp_path_factory.mktemp("forms")
    write_raw_endpoints(folder)
    for endpoint in ASKED:
        publish_both_forms(folder / "models", endpoint, INSTANCES, folder)
    return folder


def served(folder: Path, form: str) -> TritonServer:
    return TritonServer(folder / form, [*ASKED], store=folder / "store", verify="hash", **ANY_PORTS)


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[dict[str, TritonServer]]:
    with served(folder, ENSEMBLE) as ensemble, served(folder, FUSED) as fused:
        yield {ENSEMBLE: ensemble, FUSED: fused}
        for server in (ensemble, fused):
            server.kill()


@pytest.fixture(scope="module")
def clients(servers: dict[str, TritonServer]) -> dict[str, grpc.InferenceServerClient]:
    return {form: grpc.InferenceServerClient(server.grpc_url) for form, server in servers.items()}


def answer(client: grpc.InferenceServerClient, endpoint: str, given: dict[str, Array]) -> Any:
    """The ranked list, or how it is refused."""
    try:
        return send(client, endpoint, **{**ASKED[endpoint], **given})
    except InferenceServerException as error:
        return error.status(), error.message()


@pytest.mark.parametrize("what", FAMILY)
def test_both_forms_answer_and_refuse_alike(clients: dict[str, grpc.InferenceServerClient], what: str) -> None:
    endpoint, given = FAMILY[what]
    found = {form: answer(client, endpoint, given) for form, client in clients.items()}
    assert found[FUSED] == found[ENSEMBLE]


def test_the_family_holds_lists_and_refusals(clients: dict[str, grpc.InferenceServerClient]) -> None:
    answers = [answer(clients[FUSED], endpoint, given) for endpoint, given in FAMILY.values()]
    refusals = [one[0] for one in answers if isinstance(one[0], str)]
    assert set(refusals) == {"StatusCode.INVALID_ARGUMENT"}
    assert min(len(refusals), len(answers) - len(refusals)) > 10


@pytest.mark.parametrize("form", [ENSEMBLE, FUSED])
def test_what_comes_too_late_is_refused(clients: dict[str, grpc.InferenceServerClient], form: str) -> None:
    def ask(ago_s: float) -> Any:
        inputs = []
        for name, (array, dtype) in ASKED["recommend"].items():
            inputs.append(grpc.InferInput(name, list(array.shape), dtype))
            inputs[-1].set_data_from_numpy(array)
        parameters = {"sent_unix_us": int((time.time() - ago_s) * 1e6), "client": form}
        return clients[form].infer("recommend", inputs, timeout=int(60e6), parameters=parameters)

    for _ in range(INSTANCES * 4):  # each instance learns the client's shortest delay
        ask(0)
    with pytest.raises(InferenceServerException, match=r"UNAVAILABLE.*Request timeout expired.* of 60\.000 s"):
        for _ in range(INSTANCES * 4):
            ask(61)


@pytest.mark.parametrize(
    ("form", "model"), [(ENSEMBLE, "raw_preprocess"), (FUSED, "raw_fp32_onnx_fused")], ids=[ENSEMBLE, FUSED]
)
def test_the_kits_metrics_are_counted_under_the_model_that_counts_requests(
    servers: dict[str, TritonServer], clients: dict[str, grpc.InferenceServerClient], form: str, model: str
) -> None:
    before = metric(servers[form], "tritonrank_unknown_items_total", model)
    for _ in range(6):
        answer(clients[form], "recommend", {ITEM_IDS.name: texts("nowhere", "i1")})
    assert metric(servers[form], "tritonrank_unknown_items_total", model) == before + 6
    assert metric(servers[form], "nv_inference_request_success", model) > 0
    assert metric(servers[form], "tritonrank_store_bytes", model) > 0


def test_both_forms_have_one_contract_and_the_fused_one_a_process_an_instance(folder: Path) -> None:
    for endpoint in ASKED:
        contracts = [(folder / form / endpoint / "contract.json").read_text() for form in (ENSEMBLE, FUSED)]
        assert contracts[0] == contracts[1]
    steps = {form: read_manifest(folder / form).served["recommend"].steps for form in (ENSEMBLE, FUSED)}
    assert steps[ENSEMBLE] == {"raw_preprocess": 1, "raw_fp32_onnx": 1, "raw_postprocess": 1}
    assert steps[FUSED] == {"raw_fp32_onnx_fused": 1}
    assert tables_read(folder / FUSED) == tables_read(folder / ENSEMBLE)


def test_a_running_server_goes_from_one_form_to_the_other_and_back(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    shutil.copytree(folder / ENSEMBLE, repository)
    steps = published_steps(repository, "recommend")
    agreed = endpoint_contract("recommend", contract.RECOMMEND, [step.contract for step in steps])
    fused = fused_model(steps, contract.RECOMMEND, INSTANCES)
    with TritonServer(repository, ["recommend"], store=folder / "store", **ANY_PORTS) as server:
        client = admin_client(server)
        wanted = answer(client, "recommend", {})

        def loaded() -> dict[str, int]:
            client.load_model("recommend")
            assert answer(client, "recommend", {}) == wanted
            config = client.get_model_config("recommend", as_json=True)["config"]
            return {step["model_name"]: int(step["model_version"]) for step in config["ensemble_scheduling"]["step"]}

        publish_models(repository, [fused], [Ensemble("recommend", [fused.name], agreed)], {}, lambda _: None)
        assert loaded() == {"raw_fp32_onnx_fused": 1}
        [now, before] = [each for each in published_generations(repository) if each.endpoint == "recommend"]
        assert (now.generation.name, before.generation.name) == ("raw_fp32_onnx@2", "raw_fp32_onnx@1")
        rollback(repository, "recommend")
        assert [*loaded()] == ["raw_preprocess", "raw_fp32_onnx", "raw_postprocess"]
        rollback(repository, "recommend", "raw_fp32_onnx@2")
        assert loaded() == {"raw_fp32_onnx_fused": 1}
        server.kill()
    with TritonServer(repository, None, store=folder / "store", verify="hash", **ANY_PORTS) as server:
        client = grpc.InferenceServerClient(server.grpc_url)
        assert client.is_model_ready("raw_fp32_onnx_fused") and not client.is_model_ready("raw_fp32_onnx")
        prune(repository, keep=1)
        assert not [*repository.glob("raw_preprocess/[0-9]*"), *repository.glob("raw_fp32_onnx/[0-9]*")]
        assert answer(client, "recommend", {}) == wanted
        server.kill()
    check_as_published(repository, None)
