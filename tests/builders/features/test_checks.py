"""A module and its declared features disagree: the message names the tensor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from builders.core.contract import ContractError
from builders.data.beir import DatasetError, Product, Request
from builders.features.encoder import dense, multi_hot, sparse, tokens
from builders.rankers.feature_ranker import FeatureRanker


class Good(nn.Module):
    features = (dense("numbers", ["price", "rating"]), sparse("made_by", ["brand"], oov_buckets=5))

    def __init__(self) -> None:
        super().__init__()
        self.brand, self.mix = nn.Embedding(6, 3), nn.Linear(5, 1)

    def forward(self, numbers: Any, made_by: Any) -> Any:
        return self.mix(torch.cat([numbers, self.brand(made_by[:, 0])], dim=1))


class TooFewRows(Good):
    features = (Good.features[0], sparse("made_by", ["brand"], oov_buckets=6))


class AnotherWidth(Good):
    features = (dense("numbers", ["price"]), Good.features[1])


class AnotherName(Good):
    features = (dense("prices", ["price", "rating"]), Good.features[1])


class AnotherOrder(Good):
    features = (Good.features[1], Good.features[0])


class Flat(Good):
    def forward(self, numbers: Any, made_by: Any) -> Any:
        return super().forward(numbers, made_by)[:, 0]


class NothingOfItems(Good):
    features = (dense("numbers", ["age"], "user"),)


class NothingDeclared(nn.Module):
    pass


class HalfSplit(Good):
    def encode_request(self) -> Any:
        return torch.zeros(1, 2)


class NoTokenizer(Good):
    features = (*Good.features, tokens("words", "item", 8, field="title"))


def test_a_module_that_agrees_is_taken() -> None:
    assert FeatureRanker("good", Good()).graphs[0].contract.input("made_by").dims == ("candidates", 1)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (TooFewRows, r"cannot take 'made_by' at its highest ids \[6\] \(IndexError.*feature.rows\(\) rows"),
        (AnotherWidth, r"cannot take zeros everywhere \(RuntimeError.*numbers \[3, 1\] float32, made_by \[3, 1\]"),
        (
            AnotherName,
            r"forward takes \(numbers, made_by\), features declare \(prices, made_by\): 'numbers' is not declared, "
            r"'prices' is no argument",
        ),
        (AnotherOrder, r"features declare \(made_by, numbers\): another order"),
        (Flat, r"for 3 candidates the module gives float32 \[3\], wanted float32 \[3, 1\]"),
        (NothingOfItems, "declares 1 features, none of an item"),
        (NothingDeclared, "declares 0 features"),
        (HalfSplit, "no score_candidates"),
        (NoTokenizer, "tokens, but there is no tokenizer"),
    ],
)
def test_the_message_names_what_disagrees(module: type[nn.Module], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        FeatureRanker("mine", module())


class LibraryFeature:
    """As a library declares what its model reads."""


class OfALibrary(nn.Module):
    """Keeps its own features under the name that the kit reads, as torch-rechub's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.features = [LibraryFeature()]

    def forward(self, numbers: Any, made_by: Any) -> Any:
        assert isinstance(self.features[0], LibraryFeature)  # what the library put there is still there
        return numbers.sum(1, keepdim=True) + made_by


class Derived(OfALibrary):
    features = Good.features


def test_a_class_declares_features_where_the_instance_keeps_a_librarys() -> None:
    assert FeatureRanker("mine", Derived()).features == Good.features


def test_a_librarys_features_alone_are_refused_by_name() -> None:
    with pytest.raises(ContractError, match=r"OfALibrary\.features holds LibraryFeature, wanted features of builders"):
        FeatureRanker("mine", OfALibrary())


def test_a_bag_beyond_its_table_is_named() -> None:
    class Bagged(nn.Module):
        features = (multi_hot("path", "category", "item", 3, oov_buckets=9),)

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(9, 1)

        def forward(self, path: Any) -> Any:
            return self.table(path)

    with pytest.raises(ContractError, match="'path' at its highest ids \\[9, 9, 9\\]"):
        FeatureRanker("mine", Bagged())


UNPRICED = Product("p1", "mug", price=math.nan)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda ranker: [*ranker.item_features([UNPRICED])], "mine: item 'p1': field 'price'"),
        (lambda ranker: ranker.score(Request("mug"), [UNPRICED]), "mine: item 'p1': field 'price'"),
    ],
)
def test_a_raw_field_that_no_feature_takes_names_ranker_and_item(make: Any, complaint: str) -> None:
    with pytest.raises(DatasetError, match=complaint):
        make(FeatureRanker("mine", Good()))


def test_a_users_raw_field_that_no_feature_takes_names_ranker_and_user() -> None:
    class OfUsers(Good):
        features = (*Good.features, dense("age", ["age"], "user"))

        def forward(self, numbers: Any, made_by: Any, age: Any) -> Any:
            return super().forward(numbers, made_by) + age

    ranker = FeatureRanker("mine", OfUsers())
    with pytest.raises(DatasetError, match="mine: user 'u1': field 'age': found 'old', wanted a finite number"):
        [*ranker.user_features({"u1": {"age": "old"}})]
    with pytest.raises(DatasetError, match="mine: a request's user or context: field 'age'"):
        ranker.score(Request("mug", user={"age": "old"}), [Product("p1", "mug")])
