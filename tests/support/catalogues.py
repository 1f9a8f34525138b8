"""Small catalogues that change, and a real ranker that tells which items' features it computed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from builders.data.beir import JudgedQueries, Product
from builders.features.encoder import dense, sparse
from builders.rankers.feature_ranker import FeatureRanker


class Priced(nn.Module):
    """Prices, and a user's country."""

    features = (
        dense("price", ["price"]),
        sparse("lives_in", ["country"], "user", vocabularies=[("se", "no")]),
    )
    broadcasts = True

    def forward(self, price: Tensor, lives_in: Tensor) -> Tensor:
        """float32 [candidates, 1], int32 [1, 1] => float32 [candidates, 1]."""
        return price + lives_in


class Watched(FeatureRanker):
    """Tells which items' features it computed."""

    def __init__(self, name: str = "priced", killed_at: int = 10**9, version: str = "") -> None:
        super().__init__(name, Priced())
        self.version = version
        self.computed: list[str] = []
        self.killed_at = killed_at

    @property
    def features_version(self) -> str:
        """Its own, or the one given."""
        return self.version or super().features_version

    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """As they are asked for."""
        for item_id, value in super().item_features(products):
            self.computed.append(item_id)
            if len(self.computed) == self.killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item_id, value


def shop(*products: Product, **further: Any) -> JudgedQueries:
    """A catalogue of these, with no query."""
    return JudgedQueries({}, {product.item_id: product for product in products}, {}, **further)


def mug(item_id: str, price: float = 1.0, **fields: Any) -> Product:
    """A product of one brand."""
    return Product(item_id, f"mug {item_id}", brand="acme", price=price, **fields)


def line(product: Product) -> str:
    """Of a corpus.jsonl."""
    metadata = {"brand": product.brand, "price": product.price, **product.fields}
    return json.dumps({"_id": product.item_id, "title": product.title, "metadata": metadata}) + "\n"
