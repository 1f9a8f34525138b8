"""Endpoints whose scorer remembers scores, in both forms, and one with Triton's response cache: right all the same."""

from __future__ import annotations

import dataclasses
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import tritonclient.grpc as grpc
from onnx import numpy_helper
from tritonclient.grpc import model_config_pb2 as triton

from builders.core.contract import ITEM_IDS, QUERY, RANK
from builders.publish.caches import publish_caching
from builders.publish.fused import fused_model, published_steps
from builders.publish.item_store import ItemStore
from builders.publish.manifest import RepositoryError
from builders.publish.model_config import add_score_cache, endpoint_contract
from builders.publish.repository import Ensemble, ServedModel, publish_models
from server import TritonServer
from server.canary import FRESH
from tests.support.admin import admin_client
from tests.support.endpoint import metric, rank
from tests.support.raw_endpoints import ANY_PORTS, write_raw_endpoints
from tests.support.small_rankers import cross_encoder, some_products

pytestmark = pytest.mark.server

PLAIN, ANSWERS = "rank_plain", "rank_answers"
REMEMBERING = {"rank_remembering": "remembering", "rank_fused": "fusing_fused"}
"""Endpoint => the model that counts."""
IDS = ["i3", "i1", "i10", "i7", "i5"]
TOLERANCE = 1e-5


def publish(folder: Path, change: Callable[[onnx.ModelProto], None] = lambda model: None) -> None:
    """The same steps under an endpoint a form, in ``folder/served``; the network changed."""
    pre, scorer, post = published_steps(folder / "models", "rank")
    network = onnx.load(scorer.files["model.onnx"])
    change(network)
    onnx.save(network, folder / "network.onnx")

    def named(name: str, set_up: Callable[[triton.ModelConfig], None]) -> ServedModel:
        config = triton.ModelConfig()
        config.CopyFrom(scorer.config)
        config.name = name
        set_up(config)
        contract = dataclasses.replace(scorer.contract, name=name)
        return ServedModel(config, contract, {"model.onnx": folder / "network.onnx"})

    def remembers(config: triton.ModelConfig) -> None:
        add_score_cache(config, 4)

    def keeps_answers(config: triton.ModelConfig) -> None:
        config.response_cache.enable = True

    forms = {
        PLAIN: [pre, named("plain", lambda config: None), post],
        ANSWERS: [pre, named("answers", keeps_answers), post],
        "rank_remembering": [pre, named("remembering", remembers), post],
        "rank_fused": [fused_model([pre, named("fusing", remembers), post], RANK, 1)],
    }
    models = {step.name: step for steps in forms.values() for step in steps}
    contract = endpoint_contract("rank", RANK, [step.contract for step in (pre, scorer, post)])
    ensembles = [
        Ensemble(name, [step.name for step in steps], dataclasses.replace(contract, name=name))
        for name, steps in forms.items()
    ]
    publish_models(folder / "served", [*models.values()], ensembles, {}, lambda _: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches")
    write_raw_endpoints(folder)
    publish(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[TritonServer]:
    options = {"store": folder / "store", "response_cache_mb": 4, "ready_timeout_s": 300, **ANY_PORTS}
    with TritonServer(folder / "served", [PLAIN, ANSWERS, *REMEMBERING], **options) as server:
        yield server
        server.kill()


@pytest.fixture(scope="module")
def client(server: TritonServer) -> grpc.InferenceServerClient:
    return admin_client(server)


def scores(client: grpc.InferenceServerClient, endpoint: str, query: str) -> dict[str, float]:
    return dict(zip(*rank(client, endpoint, query, IDS), strict=True))


def counted(server: TritonServer, model: str) -> tuple[float, float]:
    """Rows that were known, and that were run."""
    hits, misses = (metric(server, f"tritonrank_score_cache_{name}_total", model) for name in ("hits", "misses"))
    return hits, misses


def change_an_item(folder: Path, item_id: str, title: str) -> None:
    """As a refresh does."""
    ranker = cross_encoder(folder / "text")
    products = [dataclasses.replace(one, title=title) for one in some_products(12) if one.item_id == item_id]
    parameters = ranker.preprocess.parameters
    with ItemStore(folder / "store") as store:
        table = parameters["item_features"], parameters["item_features_version"]
        store.put(*table, ranker.item_features(products))


@pytest.mark.parametrize("endpoint", REMEMBERING)
def test_remembered_scores_are_those_of_the_network_after_an_items_update_too(
    server: TritonServer, client: grpc.InferenceServerClient, folder: Path, endpoint: str
) -> None:
    query, model = f"red {endpoint}", REMEMBERING[endpoint]
    hits, misses = counted(server, model)
    wanted = scores(client, PLAIN, query)
    first = scores(client, endpoint, query)
    assert first == pytest.approx(wanted, abs=TOLERANCE)
    assert scores(client, endpoint, query) == first
    assert counted(server, model) == (hits + 5, misses + 5)
    change_an_item(folder, "i7", "blue cup" + " shoe" * [*REMEMBERING].index(endpoint))
    changed = scores(client, endpoint, query)
    assert {item for item in IDS if changed[item] != first[item]} == {"i7"}
    assert changed == pytest.approx(scores(client, PLAIN, query), abs=TOLERANCE)
    assert counted(server, model) == (hits + 9, misses + 6)


@pytest.mark.parametrize("endpoint", REMEMBERING)
def test_a_canary_is_computed(server: TritonServer, client: grpc.InferenceServerClient, endpoint: str) -> None:
    wanted, before = scores(client, endpoint, "canary"), counted(server, REMEMBERING[endpoint])
    tensors = {QUERY.name: ["canary"], ITEM_IDS.name: IDS}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [len(texts)], "data": texts} for name, texts in tensors.items()
    ]
    body = json.dumps({"inputs": inputs, "parameters": FRESH}).encode()
    with urllib.request.urlopen(f"http://{server.http_url}/v2/models/{endpoint}/infer", body) as response:
        found = {output["name"]: output["data"] for output in json.load(response)["outputs"]}
    assert dict(zip(found["ranked_ids"], found["scores"], strict=True)) == pytest.approx(wanted, abs=TOLERANCE)
    assert counted(server, REMEMBERING[endpoint]) == before


def test_tritons_response_cache_answers_for_the_scorer_and_not_for_the_store(
    server: TritonServer, client: grpc.InferenceServerClient, folder: Path
) -> None:
    def hits() -> float:
        return metric(server, "nv_cache_num_hits_per_model", "answers")

    query, before = "answered twice", hits()
    first = scores(client, ANSWERS, query)
    assert hits() == before
    assert scores(client, ANSWERS, query) == first
    assert hits() == before + 1
    change_an_item(folder, "i1", "blue blue blue")
    changed = scores(client, ANSWERS, query)
    assert changed["i1"] != first["i1"]
    assert changed == pytest.approx(scores(client, PLAIN, query), abs=TOLERANCE)


def test_what_is_published_anew_has_its_own_scores(
    client: grpc.InferenceServerClient, folder: Path, server: TritonServer
) -> None:
    def halve(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:  # weights
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 2, tensor.name))

    endpoints = [PLAIN, ANSWERS, *REMEMBERING]
    before = {endpoint: scores(client, endpoint, "published") for endpoint in endpoints}
    publish(folder, halve)
    for endpoint in endpoints:
        client.load_model(endpoint)
    wanted = scores(client, PLAIN, "published")
    for endpoint in endpoints:
        assert scores(client, endpoint, "published") == pytest.approx(wanted, abs=TOLERANCE)
        assert max(abs(wanted[item] - before[endpoint][item]) for item in IDS) > 100 * TOLERANCE


def test_an_endpoint_is_published_once_more_with_caches_to_be_measured(folder: Path, tmp_path: Path) -> None:
    publish_caching(folder / "models", "rank", tmp_path, size_mb=3)
    steps = published_steps(tmp_path, "rank")
    configs = [step.config for step in steps]
    asked = [(one.parameters["score_cache_mb"].string_value, one.response_cache.enable) for one in configs]
    assert asked == [("", False), ("3", True), ("", False)]
    with pytest.raises(RepositoryError, match="recommend: no network of it runs the rows of a request apart"):
        publish_caching(folder / "models", "recommend", tmp_path / "other", size_mb=3)
