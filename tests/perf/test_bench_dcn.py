"""The benchmark of many fields measures what it says: 26 sparse and 13 dense fields, 512 candidates a request."""

from __future__ import annotations

import json

from builders.core.contract import CONTEXT, HISTORY, ITEM_IDS, USER_ID
from builders.rankers.dcn_v2 import DCNv2
from builders.rankers.feature_ranker import FeatureRanker
from perf.bench_dcn import CANDIDATES, features, made_up_data, perf_analyzer_requests


def test_the_network_has_26_sparse_and_13_dense_fields() -> None:
    embeddings = DCNv2(features()).embeddings
    assert embeddings.fields() == 26 and embeddings.numbers() == 13
    assert embeddings.width == 16


def test_made_up_values_are_all_known_to_the_vocabularies() -> None:
    data = made_up_data()
    ranker = FeatureRanker("dcn", DCNv2(features()))
    request_id, grades = next(iter(data.judgements.items()))
    tensors = ranker.tensors(data.request(request_id), [data.products[item_id] for item_id in grades])
    ids = {feature.name: feature for feature in ranker.features if feature.dtype == "INT32"}
    assert len(tensors["item_values"]) == CANDIDATES
    assert all(feature.knows(int(tensors[name].min())) for name, feature in ids.items())


def test_requests_carry_what_the_ranker_reads() -> None:
    data = made_up_data()
    [first, *_] = perf_analyzer_requests(data)["data"]
    request = data.request(next(iter(data.queries)))
    assert first[USER_ID.name]["content"] == [request.user_id]
    assert json.loads(first[CONTEXT.name]["content"][0]) == request.context
    assert first[HISTORY.name]["content"] == list(request.history)
    assert first[ITEM_IDS.name]["shape"] == [CANDIDATES]
