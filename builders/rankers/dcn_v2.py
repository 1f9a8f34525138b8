"""DCN-V2: explicit crosses of fields to a bounded degree, beside an MLP.

Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems",
WWW 2021 (arXiv:2008.13535): the low-rank cross layer (equation 2), the parallel structure, 2 to 3 cross layers, ranks
of about a quarter of the width or less.
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
from builders.rankers.layers.field_embeddings import FieldEmbeddings, JoinedLinear, JoinedMLP, joined
from builders.rankers.layers.shop_fields import shop_fields, start_from_purchases


class DCNv2(nn.Module):
    """Dense and sparse fields of item, user and context, and the history as a bag => a score.

    Args:
        features: any number of dense, sparse, bag and vector features.
        embedding: width of every embedding.
        cross_layers: crosses of up to one degree more.
        rank: of each cross layer's matrix.
        hidden: widths of the MLP beside the crosses.
        dropout: after each of its layers, in training.
    """

    broadcasts = True
    fallback_field = "popularity"
    score_meaning = "logit of a purchase; higher is better; comparable within one response only"

    def __init__(
        self,
        features: Sequence[Feature],
        *,
        embedding: int = 16,
        cross_layers: int = 3,
        rank: int = 64,
        hidden: Sequence[int] = (256, 256, 256),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.config = {
            "embedding": embedding,
            "cross_layers": cross_layers,
            "rank": rank,
            "hidden": list(hidden),
            "dropout": dropout,
        }
        self.embeddings = FieldEmbeddings(features, embedding)
        widths = self.embeddings.flat_widths
        self.first_projection = JoinedLinear(widths, rank, bias=False)
        self.projections = nn.ModuleList(nn.Linear(sum(widths), rank, bias=False) for _ in range(cross_layers - 1))
        self.expansions = nn.ModuleList(nn.Linear(rank, sum(widths)) for _ in range(cross_layers))
        self.deep = JoinedMLP(widths, hidden, dropout)
        self.output = JoinedLinear((sum(widths), hidden[-1]), 1)

    @classmethod
    def for_log(cls, log: PurchaseLog, settings: Mapping[str, Any]) -> DCNv2:
        """Untrained, with the log's fields; the embeddings of items start from who bought what."""
        network = cls(shop_fields(log), **settings)
        start_from_purchases(network.embeddings, log)
        return network

    @classmethod
    def from_checkpoint(cls, folder: Path | None) -> DCNv2:
        """Raises: builders.rankers.backbone.CheckpointError."""
        return network_from_checkpoint(cls, folder, "dcn_v2")

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """One tensor a feature, [1, ...] of the request and [rows, ...] of the candidates => float32 [rows, 1]."""
        request, item = (side.flat for side in self.embeddings(*tensors))
        score: torch.Tensor = self.output(self._crosses(request, item), self.deep(request, item))
        return score

    def _crosses(self, request: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """x' = x0 * (U (V x) + b) + x, layer by layer => float32 [rows, width]; V x0 is multiplied side by side."""
        first = crossed = joined(request, item)
        projected = self.first_projection(request, item)
        for layer, expand in enumerate(self.expansions):
            if layer:
                projected = self.projections[layer - 1](crossed)
            crossed = first * expand(projected) + crossed
        return crossed
