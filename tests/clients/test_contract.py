"""The client's copy of the contract, and how it is held against a server's."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonrank_client import (
    ContractMismatch,
    DeadlineExceeded,
    InvalidRequest,
    MockTransport,
    ModelSpec,
    RankClient,
    Rules,
    TensorSpec,
    Unavailable,
)
from tritonrank_client._contract import ENDPOINTS, LIMITS, RANK

from builders.core import contract as builders_contract
from builders.core.contract import ITEM_IDS, RANKED_IDS, SCORES

ROOT = Path(__file__).parents[2]


def first_stage_order(request):
    ids = request.inputs[ITEM_IDS.name]
    return {RANKED_IDS.name: ids, SCORES.name: -np.arange(len(ids), dtype=np.float32)}


def test_the_copy_equals_the_builders_contracts():
    copy = ROOT / "clients" / "tritonrank_client" / "contracts.json"

    assert copy.read_text(encoding="utf-8") == builders_contract.client_contracts(), "run 'make repository'"


@pytest.mark.parametrize(
    "wanted", [builders_contract.RANK, builders_contract.RECOMMEND, builders_contract.SIMILAR], ids=lambda one: one.name
)
def test_the_copy_is_read_whole(wanted):
    inputs = {(tensor.name, tensor.dtype, tensor.shape, tensor.optional) for tensor in wanted.inputs}
    outputs = [(tensor.name, tensor.dtype, tensor.shape, tensor.optional) for tensor in wanted.outputs]
    found = {dataclasses.astuple(tensor) for tensor in ENDPOINTS[wanted.name].inputs}

    assert inputs <= found
    assert all(optional for _, _, _, optional in found - inputs)
    assert [dataclasses.astuple(tensor) for tensor in ENDPOINTS[wanted.name].outputs] == outputs


def test_the_limits_are_the_builders():
    names = [name for name in dataclasses.asdict(LIMITS) if name != "unscored"]

    assert [getattr(LIMITS, name) for name in names] == [getattr(builders_contract, name.upper()) for name in names]
    assert LIMITS.unscored == np.finfo(np.float32).min


def served_with(**tensors: TensorSpec | None) -> ModelSpec:
    """The contract's model with some tensors replaced, added, or (None) left out."""

    def changed(old):
        kept = {tensor.name: tensor for tensor in old}
        return {name: tensors.get(name, tensor) for name, tensor in kept.items()}

    inputs, outputs = changed(RANK.inputs), changed(RANK.outputs)
    inputs |= {name: tensor for name, tensor in tensors.items() if name not in inputs | outputs}
    return ModelSpec(tuple(filter(None, inputs.values())), tuple(filter(None, outputs.values())))


DIFFERENT = [
    (
        served_with(top_k=TensorSpec("top_k", "INT64", (1,), True)),
        "input 'top_k': server has INT64 [1] optional, client wants INT32 [1] optional",
    ),
    (
        served_with(top_k=TensorSpec("top_k", "INT32", (1,))),
        "input 'top_k': server has INT32 [1], client wants INT32 [1] optional",
    ),
    (
        served_with(query=TensorSpec("query", "BYTES", (-1, 1))),
        "input 'query': server has BYTES [any, 1], client wants BYTES [1]",
    ),
    (served_with(scores=None), "output 'scores': server has none, client wants FP32 [any]"),
    (
        served_with(user=TensorSpec("user", "FP32", (8,))),
        "input 'user': server demands FP32 [8], client does not know it",
    ),
]


@pytest.mark.parametrize(("served", "difference"), DIFFERENT, ids=[difference for _, difference in DIFFERENT])
def test_a_different_server_is_refused_tensor_by_tensor(served, difference):
    client = RankClient("mock", timeout_s=30, transport=MockTransport(first_stage_order, served))

    with pytest.raises(ContractMismatch) as caught:
        client.rank("shoes", ["a"])

    assert caught.value.differences == (difference,)
    assert str(caught.value) == (
        f"model 'rank' on the server differs from this client's contract:\n  {difference}\n"
        "Upgrade tritonrank-client if the server is newer, or publish the model repository again "
        "('make repository') if the client is."
    )


def test_a_server_without_an_optional_input_is_taken_until_it_is_used():
    served = served_with(top_k=None, user_id=None, pinned_ids=None, item_fields=None)
    client = RankClient("mock", timeout_s=30, transport=MockTransport(first_stage_order, served))

    assert client.rank("shoes", ["a", "b"]).ids == ("a", "b")
    for argument, message in {
        "top_k": "top_k: model 'rank' on the server has no input 'top_k'",
        "user_id": "user_id: model 'rank' on the server has no input 'user_id'",
        "item_fields": "item_fields: model 'rank' on the server has no input 'item_fields'",
        "rules": "rules.pins: model 'rank' on the server has no input 'pinned_ids'",
    }.items():
        value = {"top_k": 1, "user_id": "u", "item_fields": {"a": {}}, "rules": Rules(pins={"a": 1})}[argument]
        with pytest.raises(InvalidRequest) as caught:
            client.rank("shoes", ["a", "b"], **{argument: value})
        assert str(caught.value) == f"{message}; leave it out, or publish a model that reads it"
        assert caught.value.argument == argument


def test_a_model_that_is_published_later_and_reads_the_input_is_asked():
    transport = CountingTransport()
    transport._served = served_with(user_id=None)
    client = RankClient("mock", timeout_s=30, transport=transport)
    with pytest.raises(InvalidRequest):
        client.rank("shoes", ["a"], user_id="u")
    transport._served = RANK

    assert client.rank("shoes", ["a"], user_id="u").ids == ("a",)


def test_a_server_that_merely_offers_more_is_taken():
    served = served_with(user=TensorSpec("user", "FP32", (8,), optional=True))
    served = ModelSpec(served.inputs, (*served.outputs, TensorSpec("reasons", "BYTES", (-1,))))

    assert RankClient("mock", timeout_s=30, transport=MockTransport(first_stage_order, served)).rank(
        "shoes", ["a"]
    ).ids == ("a",)


class CountingTransport(MockTransport):
    """Counts how often the interface is fetched, and waits before each answer until `answers` is set."""

    def __init__(self, handler=first_stage_order):
        super().__init__(handler)
        self.fetched = 0
        self.asked, self.answers = threading.Event(), threading.Event()
        self.answers.set()

    def served_model(self, model, timeout_s):
        self.fetched += 1
        self.asked.set()
        assert self.answers.wait(30)
        return super().served_model(model, timeout_s)


def test_the_contract_is_fetched_once_by_many_threads():
    transport = CountingTransport()
    transport.answers.clear()
    client = RankClient("mock", timeout_s=30, transport=transport)
    with ThreadPoolExecutor(16) as pool:
        ranked = [pool.submit(client.rank, "shoes", ["a"]) for _ in range(16)]
        assert transport.asked.wait(30)
        transport.answers.set()

    assert [future.result().ids for future in ranked] == [("a",)] * 16
    assert transport.fetched == 1


def test_a_request_does_not_wait_beyond_its_budget_for_another_threads_check():
    transport = CountingTransport()
    transport.answers.clear()
    client = RankClient("mock", timeout_s=30, transport=transport)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.rank, "shoes", ["a"])
        assert transport.asked.wait(30)
        with pytest.raises(DeadlineExceeded):
            client.rank("shoes", ["a"], timeout_s=0.01)
        transport.answers.set()

    assert first.result().ids == ("a",)


@pytest.mark.parametrize("error", [Unavailable("gone"), InvalidRequest("refused")])
def test_the_contract_is_checked_anew_after_the_server_was_lost_or_refused(error):
    answers = [error, None]

    def handler(request):
        if (answer := answers.pop()) is not None:
            raise answer
        return first_stage_order(request)

    transport = CountingTransport(handler)
    client = RankClient("mock", timeout_s=30, transport=transport)
    client.rank("shoes", ["a"])
    assert transport.fetched == 1
    with pytest.raises(type(error)):
        client.rank("shoes", ["a"])
    assert transport.fetched == 1
    answers.append(None)
    client.rank("shoes", ["a"])
    assert transport.fetched == 2


def test_check_contract_asks_each_time():
    transport = CountingTransport()
    client = RankClient("mock", timeout_s=30, transport=transport)
    client.check_contract()
    client.check_contract()
    client.rank("shoes", ["a"])

    assert transport.fetched == 2


def test_a_mismatch_survives_pickling_with_its_differences():
    error = pickle.loads(pickle.dumps(ContractMismatch("differs", ("input 'x'",))))

    assert error.differences == ("input 'x'",) and str(error) == "differs"
