"""Wide & Deep: a linear model over one-hot fields, and beside it an MLP over their embeddings.

Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016 (arXiv:1606.07792): embeddings of 32, hidden
layers of 1024, 512 and 256. Those are for 500 billion examples; the settings here are smaller by as much as a shop's
log asks for and stand in ``checkpoints/wide_mlp/config.json``.

The paper's wide part also has cross-products, such as of an installed app and the one shown. A table of all pairs of
items would be larger than a shop's log, so those of history and candidate are factorized: the weighted product of their
embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from builders.data.purchase_log import PurchaseLog
from builders.features.encoder import Feature
from builders.rankers.checkpoint import network_from_checkpoint
from builders.rankers.layers.field_embeddings import FieldEmbeddings, JoinedMLP
from builders.rankers.layers.shop_fields import shop_fields, start_from_purchases

CROSS_START = 10.0
"""Weight of a product of two small embeddings at first."""


class WideMLP(nn.Module):
    """One-hot user, item and context fields, and the history as a bag => a score.

    Args:
        features: any number of dense, sparse, bag and vector features.
        embedding: width of the deep part's embeddings.
        hidden: widths of its layers.
        dropout: after each of them, in training.
    """

    broadcasts = True
    fallback_field = "popularity"
    score_meaning = "logit of a purchase; higher is better; comparable within one response only"

    def __init__(
        self,
        features: Sequence[Feature],
        *,
        embedding: int = 32,
        hidden: Sequence[int] = (256, 128),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.config = {"embedding": embedding, "hidden": list(hidden), "dropout": dropout}
        self.one_hot = FieldEmbeddings(features, 1)
        self.embeddings = FieldEmbeddings(features, embedding)
        self.deep = JoinedMLP(self.embeddings.flat_widths, hidden, dropout)
        self.output = nn.Linear(hidden[-1], 1)
        self.crosses = _cross_products(embedding * len(self.embeddings.matching))

    @classmethod
    def for_log(cls, log: PurchaseLog, settings: Mapping[str, Any]) -> WideMLP:
        """Untrained, with the log's fields; the embeddings of items start from who bought what."""
        network = cls(shop_fields(log), **settings)
        start_from_purchases(network.embeddings, log)
        return network

    @classmethod
    def from_checkpoint(cls, folder: Path | None) -> WideMLP:
        """Raises: builders.rankers.backbone.CheckpointError."""
        return network_from_checkpoint(cls, folder, "wide_mlp")

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """One tensor a feature, [1, ...] of the request and [rows, ...] of the candidates => float32 [rows, 1]."""
        request, item = self.embeddings(*tensors)
        score: torch.Tensor = self.output(self.deep(request.flat, item.flat)) + self._wide(*tensors)
        matches = self.embeddings.matches(request, item)
        return score if matches is None or self.crosses is None else score + self.crosses(matches)

    def _wide(self, *tensors: torch.Tensor) -> torch.Tensor:
        """float32 [rows, 1]: a weight an id, summed; of the history their mean."""
        request, item = self.one_hot(*tensors)
        return item.embedded.sum(dim=1) + request.embedded.sum(dim=1)


def _cross_products(width: int) -> nn.Linear | None:
    if not width:
        return None
    weights = nn.Linear(width, 1, bias=False)
    nn.init.constant_(weights.weight, CROSS_START)
    return weights
