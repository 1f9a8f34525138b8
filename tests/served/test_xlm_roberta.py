"""Chinese queries and titles through an XLM-R-like backbone, from export to the served order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpc

from builders.data.beir import Request
from server import TritonServer
from tests.support import tiny_xlm_roberta
from tests.support.endpoint import rank
from tests.support.tiny_xlm_roberta import Built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_xlm_roberta.built(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def client(built: Built) -> Iterator[grpc.InferenceServerClient]:
    endpoints = ["rank", "rank_cross_encoder_int8_onnx"]
    with (
        TritonServer(
            built.workspace.repository,
            endpoints,
            store=built.workspace.item_store,
            grpc_port=0,
            http_port=0,
            metrics_port=0,
        ) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        yield client


def test_the_backbone_is_unlike_bert(built: Built) -> None:
    template = built.ranker.preprocess.parameters["template"]
    lengths = {place: len(template[place]) for place in ("before", "between", "after")}
    assert lengths == {"before": 1, "between": 2, "after": 1}
    assert built.ranker.preprocess.parameters["pad_token_id"] == 1


def test_no_token_types_are_exported_or_made(built: Built) -> None:
    model = onnx.load(built.variants[0].models["cross_encoder"][1])
    assert [one.name for one in model.graph.input] == ["input_ids", "attention_mask"]
    outputs = [tensor.name for tensor in built.ranker.preprocess.outputs]
    assert outputs == ["input_ids", "attention_mask", "known"]


@pytest.mark.server
@pytest.mark.parametrize("query", [*tiny_xlm_roberta.QUERIES, "户外 防水 " * 40, "🍵 没见过的字"])
def test_served_scores_and_order_are_torchs(client: grpc.InferenceServerClient, built: Built, query: str) -> None:
    products = list(built.judged.products.values())
    wanted = built.ranker.score(Request(query), products)
    assert wanted.std() > 0.01  # else any order would do
    item_ids = [product.item_id for product in products]
    ids, scores = rank(client, "rank", query, item_ids)
    served = dict(zip(ids, scores, strict=True))
    assert served == pytest.approx(dict(zip(item_ids, map(float, wanted), strict=True)), abs=1e-4)
    in_torchs_order = wanted[[item_ids.index(item_id) for item_id in ids]]
    assert np.all(np.diff(in_torchs_order) <= 2e-4)  # scores nearer than the tolerance may change places


@pytest.mark.server
def test_the_int8_variant_ranks_the_same_items(client: grpc.InferenceServerClient, built: Built) -> None:
    item_ids = list(built.judged.products)[:20]
    ids, scores = rank(client, "rank_cross_encoder_int8_onnx", "红色咖啡杯", item_ids)
    assert sorted(ids) == sorted(item_ids)
    assert scores == sorted(scores, reverse=True)
    assert scores != rank(client, "rank", "红色咖啡杯", item_ids)[1]
