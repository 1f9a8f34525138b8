"""Two rankers small enough to compress in a test, and the data that they are compressed on; all seeded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from builders.data.beir import JudgedQueries, Product, Request
from builders.features.encoder import dense, history, sparse
from builders.rankers.cross_encoder import CrossEncoderRanker
from builders.rankers.feature_ranker import FeatureRanker
from tests.support.tiny_bert import WORDS, write_tiny_bert

ITEMS = 40
IDS = 300
"""Rows of the feature ranker's long table, minus the two of absent values and of unseen ones."""
HIDDEN = 16


class Priced(nn.Module):
    """Item id and three numbers => a score through two hidden layers."""

    features = (
        sparse("item", ["item_id"], vocabularies=[tuple(f"i{number}" for number in range(IDS))]),
        dense("numbers", ["price", "rating", "rating_count"], std=(10.0, 2.0, 50.0)),
    )
    broadcasts = True

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(IDS + 2, 5)
        self.mix = nn.Sequential(
            nn.Sequential(nn.Linear(8, HIDDEN), nn.ReLU()), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )

    def forward(self, item: Tensor, numbers: Tensor) -> Tensor:
        """int32 [rows, 1], float32 [rows, 3] => float32 [rows, 1]."""
        scores: Tensor = self.mix(torch.cat([self.items(item[:, 0]), numbers], dim=1))
        return scores


class Taken(nn.Module):
    """What a user took => a vector, once a request: a graph of its own, and the only one with a long table."""

    features = (
        history("taken", size=4, vocabulary=[f"i{number}" for number in range(IDS)]),
        dense("numbers", ["price", "rating", "rating_count"], std=(10.0, 2.0, 50.0)),
    )

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(IDS + 2, 5)
        self.mix = nn.Linear(3, 5)

    def encode_request(self, taken: Tensor) -> Tensor:
        """int32 [rows, events] => float32 [rows, 5]."""
        vector: Tensor = self.items(taken).mean(1)
        return vector

    def score_candidates(self, request_vector: Tensor, numbers: Tensor) -> Tensor:
        """float32 [rows, 5], float32 [candidates, 3] => float32 [candidates, rows]."""
        scores: Tensor = self.mix(numbers) @ request_vector.T
        return scores


def priced_ranker(seed: int = 0) -> FeatureRanker:
    """Random weights; other seeds rank otherwise."""
    torch.manual_seed(seed)
    return FeatureRanker("priced", Priced())


def cross_encoder(folder: Path) -> CrossEncoderRanker:
    """Two layers, 4 heads of 8, 64 feed-forward units; weights large enough that scores differ."""
    ranker = CrossEncoderRanker(backbone=write_tiny_bert(folder))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in ranker.network.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return ranker


def backbone_of(ranker: CrossEncoderRanker) -> nn.Module:
    """The tiny BERT's encoder: ``layer`` lies in it."""
    return ranker.network.get_submodule("backbone.encoder")


def catalogue() -> JudgedQueries:
    """40 products of the tiny tokenizer's words and 6 queries with 10 judged candidates each."""
    products = {f"i{number}": _product(number) for number in range(ITEMS)}
    queries = {f"q{number}": f"{WORDS[number % 3]} {WORDS[3 + number % 4]} {WORDS[number]}" for number in range(6)}
    judgements = {
        query_id: {f"i{(7 * place + number) % ITEMS}": place % 4 for place in range(10)}
        for number, query_id in enumerate(queries)
    }
    return JudgedQueries(queries, products, judgements)


def _product(number: int) -> Product:
    return Product(
        f"i{number}",
        f"acme {WORDS[number % 3]} {WORDS[3 + number % 4]} {WORDS[number % 9]}",
        text=f"{WORDS[number % 7]} {WORDS[number % 5]}. set",
        brand="acme",
        category=(WORDS[3 + number % 4],),
        price=float(1 + number * 13 % 37),
        rating=1 + number * 7 % 40 / 10,
        rating_count=number * 29 % 101,
    )


def some_products(count: int = 12) -> list[Product]:
    """The catalogue's first."""
    return list(catalogue().products.values())[:count]


REQUEST = Request("red shoe")
