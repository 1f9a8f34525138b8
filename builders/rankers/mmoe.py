"""MMoE: experts shared by two tasks, each of which weighs them by a gate of its own.

Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018
(doi:10.1145/3219819.3220007): 8 experts of one layer, a softmax gate a task over the same inputs, a small tower a task.

Heads: 0 = a purchase, 1 = that it is one in bulk, ``BULK_QUANTITY`` units of an item or more on an invoice, which is
what wholesale customers make. What is served is their sum by the weights of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from builders.data.purchase_fields import BULK_QUANTITY
from builders.data.purchase_log import PurchaseLog
from builders.features.encoder import Feature
from builders.rankers.checkpoint import network_from_checkpoint
from builders.rankers.layers.field_embeddings import FieldEmbeddings, JoinedLinear
from builders.rankers.layers.shop_fields import shop_fields, start_from_purchases
from builders.rankers.losses import softmax_loss

HEADS = ("purchase", "bulk")
MATCH_SCALE = 30.0
"""Products of embeddings are small beside the other inputs."""
BULK_SHARE = 0.3
"""Weight of the second task's loss."""


class MMoE(nn.Module):
    """Dense and sparse fields of item, user and context, and the history as a bag => a score a task.

    Args:
        features: any number of dense, sparse, bag and vector features.
        embedding: width of every embedding.
        experts: how many.
        expert: width of each.
        tower: hidden width of each task's tower.
        dropout: after the experts, in training.
    """

    broadcasts = True
    fallback_field = "popularity"
    heads = len(HEADS)
    score_meaning = "logits of a purchase and of a purchase in bulk; higher is better; comparable within one response"

    def __init__(
        self,
        features: Sequence[Feature],
        *,
        embedding: int = 16,
        experts: int = 8,
        expert: int = 64,
        tower: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.config = {"embedding": embedding, "experts": experts, "expert": expert, "tower": tower, "dropout": dropout}
        self.experts = experts
        self.embeddings = FieldEmbeddings(features, embedding)
        request, item = self.embeddings.flat_widths
        widths = request, item + embedding * len(self.embeddings.matching)
        self.expert_layers = JoinedLinear(widths, experts * expert)
        self.gates = nn.ModuleList(JoinedLinear(widths, experts) for _ in HEADS)
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(expert, tower), nn.ReLU(), nn.Linear(tower, 1)) for _ in HEADS
        )
        self.dropout = nn.Dropout(dropout)

    @classmethod
    def for_log(cls, log: PurchaseLog, settings: Mapping[str, Any]) -> MMoE:
        """Untrained, with the log's fields; the embeddings of items start from who bought what."""
        network = cls(shop_fields(log), **settings)
        start_from_purchases(network.embeddings, log)
        return network

    @classmethod
    def from_checkpoint(cls, folder: Path | None) -> MMoE:
        """Raises: builders.rankers.backbone.CheckpointError."""
        return network_from_checkpoint(cls, folder, "mmoe")

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """One tensor a feature, [1, ...] of the request and [rows, ...] of the candidates => float32 [rows, heads]."""
        request, item = self._inputs(*tensors)
        experts = self.dropout(self.expert_layers(request, item).relu()).unflatten(1, (self.experts, -1))
        scores = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = gate(request, item).softmax(dim=1).unsqueeze(1)
            scores.append(tower((weights @ experts).squeeze(1)))
        return torch.cat(scores, dim=1)

    def _inputs(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [1 or rows, width] of the request, [rows, width] of the candidates with what they match."""
        request, item = self.embeddings(*tensors)
        matches = self.embeddings.matches(request, item)
        of_item = item.flat if matches is None else torch.cat([item.flat, MATCH_SCALE * matches], dim=1)
        return request.flat, of_item

    def training_loss(self, scores: torch.Tensor, bought: torch.Tensor, quantities: torch.Tensor) -> torch.Tensor:
        """Scalar: softmax of the purchases among all candidates; of them alone, logistic whether in bulk.

        Args:
            scores: float32 [candidates, heads].
            bought: bool [candidates], at least one.
            quantities: float32 [candidates], units bought.
        """
        in_bulk = (quantities[bought] >= BULK_QUANTITY).float()
        bulk = nn.functional.binary_cross_entropy_with_logits(scores[bought, 1], in_bulk)
        return softmax_loss(scores[:, 0], bought) + BULK_SHARE * bulk
