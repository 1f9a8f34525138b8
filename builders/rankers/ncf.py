"""NeuMF: a product of user and item embeddings beside an MLP over both, joined in the last layer.

He et al., "Neural Collaborative Filtering", WWW 2017 (arXiv:1708.05031): separate embeddings for the two parts, a tower
that halves from layer to layer, predictive factors of 8 to 64. Here: 40 factors, a tower of 32, 16 and 8; dropout 0.5
by the validation cut.

Ours besides: a user is an embedding of the user's id plus the sum of the embeddings of up to 100 items taken, over the
root of their number, so that a user who was not there in training is served by the history alone; an item has a bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from builders.data.purchase_log import HISTORY_LIMIT, PurchaseLog
from builders.features import encoder as declare
from builders.features.encoder import Feature
from builders.rankers.checkpoint import network_from_checkpoint
from builders.rankers.layers.item_embeddings import start_from_popularity, start_from_purchases, summed


class NCF(nn.Module):
    """History, user and candidate => a score.

    Args:
        features: ``history``, ``user_id``, ``item_id``; the first and the last with one vocabulary.
        factors: width of the product's embeddings.
        tower: the MLP's widths; the first is that of user and item embedding together.
        dropout: of the embeddings and after each layer of the tower, in training.
    """

    broadcasts = True
    fallback_field = "popularity"
    score_meaning = "logit of being in the next basket; higher is better; comparable within one response only"

    def __init__(
        self,
        features: Sequence[Feature],
        *,
        factors: int = 40,
        tower: Sequence[int] = (32, 16, 8),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.config = {"factors": factors, "tower": list(tower), "dropout": dropout}
        _, user, item = self.features
        width = tower[0] // 2
        self.product_items, self.product_users = nn.Embedding(item.rows(), factors), _zeros(user.rows(), factors)
        self.tower_items, self.tower_users = nn.Embedding(item.rows(), width), _zeros(user.rows(), width)
        self.biases = nn.Embedding(item.rows(), 1)
        self.product_weights = nn.Parameter(torch.ones(factors))
        self.from_user = nn.Linear(width, tower[1])
        self.from_item = nn.Linear(width, tower[1], bias=False)
        self.tower = nn.Sequential(
            *(
                nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(inputs, outputs))
                for inputs, outputs in zip(tower[1:], [*tower[2:], 1], strict=True)
            )
        )
        self.dropout = nn.Dropout(dropout)

    @classmethod
    def for_log(cls, log: PurchaseLog, settings: Mapping[str, Any]) -> NCF:
        """Untrained, with the log's items and customers; item embeddings and biases start from who bought what."""
        network = cls(
            (
                declare.history("history", HISTORY_LIMIT, log.known_items),
                declare.sparse("user_id", ("user_id",), "user", vocabularies=(tuple(sorted(log.users)),)),
                declare.sparse("item_id", ("item_id",), vocabularies=(log.known_items,)),
            ),
            **settings,
        )
        start_from_purchases(network.product_items, log)
        start_from_purchases(network.tower_items, log)
        start_from_popularity(network.biases, log)
        return network

    @classmethod
    def from_checkpoint(cls, folder: Path | None) -> NCF:
        """Raises: builders.rankers.backbone.CheckpointError."""
        return network_from_checkpoint(cls, folder, "ncf")

    def forward(self, history: torch.Tensor, user_id: torch.Tensor, item_id: torch.Tensor) -> torch.Tensor:
        """int32 [1, events], [1, 1], [rows, 1] => float32 [rows, 1]."""
        user, item = user_id[:, 0], item_id[:, 0]
        taker = self.product_users(user) + summed(self.product_items(history), history)
        product = self.dropout(taker * self.product_weights) * self.product_items(item)
        reader = self.tower_users(user) + summed(self.tower_items(history), history)
        deep: torch.Tensor = self.tower(
            self.from_user(self.dropout(reader)) + self.from_item(self.dropout(self.tower_items(item)))
        )
        return product.sum(dim=1, keepdim=True) + deep + self.biases(item)


def _zeros(rows: int, width: int) -> nn.Embedding:
    """So that a user who was never drawn in training is as an unknown one."""
    return nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)
