"""The look-up service that encodes and orders: what it answers is the network's own order of what a caller knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builders.features.encoder import FeatureEncoder, dense, history, sparse
from perf.peers.items import EncodingScorer, ItemScorer

PRICES = {"a": 1.0, "b": 3.0, "c": 2.0}
ENCODER = FeatureEncoder(
    (
        dense("prices", ["price"]),
        sparse("countries", ["country"], "user", vocabularies=(("fr", "de"),)),
        sparse("hours", ["hour"], "context", vocabularies=(("3", "4"),)),
        history("bought", 2, list(PRICES)),
    )
)
USERS = {"u1": {"country": "de"}}
RAW = {"user_id": "u1", "history": ["c"], "context": {"hour": "4"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A graph that adds up all that it is given: score = price + every id of the request."""
    records = [ENCODER.item_record({"price": price}) for price in PRICES.values()]
    np.savez(tmp_path / "items.npz", item_ids=np.array(list(PRICES)), **ENCODER.candidate_tensors(records))
    (tmp_path / "features.json").write_text(ENCODER.to_json())
    (tmp_path / "users.json").write_text(json.dumps(USERS))
    whole = {"prices": TensorProto.FLOAT, **dict.fromkeys(("countries", "hours", "bought"), TensorProto.INT32)}
    inputs = [helper.make_tensor_value_info(name, kind, [None, None]) for name, kind in whole.items()]
    nodes = [helper.make_node("Sum", ["prices", "country_sum", "hour_sum", "bought_sum"], ["scores"])]
    for name in ("country", "hour", "bought"):
        of = {"country": "countries", "hour": "hours", "bought": "bought"}[name]
        nodes.insert(0, helper.make_node("ReduceSum", [f"{name}_float"], [f"{name}_sum"], keepdims=1))
        nodes.insert(0, helper.make_node("Cast", [of], [f"{name}_float"], to=TensorProto.FLOAT))
    output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, None])
    graph = helper.make_graph(nodes, "adds", inputs, [output])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "model.onnx"
    )
    return tmp_path


def test_raw_values_score_as_encoded_ones_do_and_come_back_in_order(folder: Path) -> None:
    item_ids = list(PRICES)
    found = EncodingScorer(folder).ranked(item_ids, RAW)
    encoded = ENCODER.request_tensors(history=["c"], user=ENCODER.user_record(USERS["u1"]), context={"hour": "4"})
    wanted = dict(zip(item_ids, ItemScorer(folder).scores(item_ids, encoded).tolist(), strict=True))
    assert found["ranked_ids"] == ["b", "c", "a"]
    assert dict(zip(found["ranked_ids"], found["scores"], strict=True)) == wanted
    assert wanted["b"] - wanted["a"] == 2.0


def test_a_customer_that_is_not_known_is_encoded_as_absent(folder: Path) -> None:
    scorer = EncodingScorer(folder)
    known, stranger = (scorer.ranked(["a"], {**RAW, "user_id": user_id})["scores"] for user_id in ("u1", "u2"))
    assert known != stranger
