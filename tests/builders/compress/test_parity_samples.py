"""Parity is measured where it can fail: on requests that hold what the ranker reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from builders.compress.context import parity_samples
from builders.data.beir import JudgedQueries, Request
from builders.features import dense, history, sparse
from builders.rankers.feature_ranker import FeatureRanker
from tests.support.small_rankers import catalogue

NAMES = ("taken", "lives_in", "hour")


class Reader(nn.Module):
    """Reads a history, a user and a context."""

    features = (
        history("taken", 4, [], oov_buckets=9),
        sparse("lives_in", ["country"], "user", oov_buckets=9),
        sparse("hour", ["hour"], "context", oov_buckets=24),
        dense("price", ["price"], log1p=True),
    )

    def forward(self, taken: Tensor, lives_in: Tensor, hour: Tensor, price: Tensor) -> Tensor:
        return torch.stack([part.float().sum(1) for part in (taken, lives_in, hour, price)]).sum(0)[:, None]


def samples_of(data: JudgedQueries) -> tuple[list[dict[str, np.ndarray]], list[str]]:
    said: list[str] = []
    return [sample["reader"] for sample in parity_samples(FeatureRanker("reader", Reader()), data, said.append)], said


def asking(**requests: Any) -> JudgedQueries:
    """The small catalogue, its queries asked with these."""
    return dataclasses.replace(catalogue(), requests=requests, users={"anna": {"country": "se"}})


def test_each_part_is_taken_from_whichever_request_has_it() -> None:
    data = asking(
        q1=Request("red", history=("i1",)),
        q2=Request("red", history=("i1", "i2", "i3")),
        q4=Request("red", user_id="anna"),
        q5=Request("red", context={"hour": 9}),
    )
    (first, usual, largest), said = samples_of(data)
    assert not any(first[name].any() for name in NAMES)
    assert all(sample[name].any() for sample in (usual, largest) for name in NAMES)
    assert np.count_nonzero(usual["taken"]) == 3
    assert said == []


def test_a_requests_own_parts_stay() -> None:
    data = asking(q0=Request("red", history=("i9",)), q2=Request("red", history=("i1", "i2", "i3")))
    (first, usual, _), _ = samples_of(data)
    assert first["taken"].tolist() == usual["taken"].tolist()
    assert np.count_nonzero(usual["taken"]) == 1


def test_what_the_data_has_nowhere_is_said_and_a_history_is_made_of_its_items() -> None:
    (_, usual, largest), said = samples_of(dataclasses.replace(catalogue(), users={}))
    assert np.count_nonzero(usual["taken"]) == np.count_nonzero(largest["taken"]) == 4
    assert said == [
        "reader: no request of the data has a history; in its parity samples the first 40 items stand in for one",
        "reader: no request of the data has a user; its parity samples have none either",
        "reader: no request of the data has a context; its parity samples have none either",
    ]


def test_nothing_is_said_of_what_the_ranker_does_not_read() -> None:
    class Plain(nn.Module):
        features = (dense("price", ["price"]),)

        def forward(self, price: Tensor) -> Tensor:
            return price

    said: list[str] = []
    parity_samples(FeatureRanker("plain", Plain()), catalogue(), said.append)
    assert said == []
