"""DLRM: dense features through an MLP, sparse ones through embeddings, and the dot product of every pair.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", 2019
(arXiv:1906.00091): embeddings of 16, bottom MLP 512-256-64-16, top MLP 512-256-1 on the Criteo data; dots of distinct
pairs only. The settings here are smaller and stand in ``checkpoints/dlrm/config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from builders.core.contract import ContractError
from builders.data.purchase_log import PurchaseLog
from builders.features.encoder import Feature
from builders.rankers.checkpoint import network_from_checkpoint
from builders.rankers.layers.field_embeddings import FieldEmbeddings, joined, mlp
from builders.rankers.layers.shop_fields import shop_fields, start_from_purchases


class DLRM(nn.Module):
    """Dense and sparse fields of item, user and context, and the history as a bag => a score.

    Args:
        features: any number of dense, sparse, bag and vector features, at least one of them dense or a vector.
        embedding: width of every embedding, and of what the bottom MLP gives.
        bottom: hidden widths of the bottom MLP.
        top: hidden widths of the top MLP.
        dropout: after each hidden layer, in training.

    Raises:
        ContractError: nothing for the bottom MLP.
    """

    pairs: torch.Tensor
    broadcasts = True
    fallback_field = "popularity"
    score_meaning = "logit of a purchase; higher is better; comparable within one response only"

    def __init__(
        self,
        features: Sequence[Feature],
        *,
        embedding: int = 16,
        bottom: Sequence[int] = (64,),
        top: Sequence[int] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.config = {"embedding": embedding, "bottom": list(bottom), "top": list(top), "dropout": dropout}
        self.embeddings = FieldEmbeddings(features, embedding)
        numbers = self.embeddings.numbers()
        if not numbers:
            raise ContractError("dlrm: no dense feature, wanted at least one for the bottom MLP")
        self.bottom = mlp((numbers, *bottom, embedding), dropout)
        vectors = 1 + self.embeddings.fields()
        pairs = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("pairs", pairs[0] * vectors + pairs[1], persistent=False)
        self.top = nn.Sequential(mlp((embedding + pairs.shape[1], *top), dropout), nn.Linear(top[-1], 1))

    @classmethod
    def for_log(cls, log: PurchaseLog, settings: Mapping[str, Any]) -> DLRM:
        """Untrained, with the log's fields; the embeddings of items start from who bought what."""
        network = cls(shop_fields(log), **settings)
        start_from_purchases(network.embeddings, log)
        return network

    @classmethod
    def from_checkpoint(cls, folder: Path | None) -> DLRM:
        """Raises: builders.rankers.backbone.CheckpointError."""
        return network_from_checkpoint(cls, folder, "dlrm")

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """One tensor a feature, [1, ...] of the request and [rows, ...] of the candidates => float32 [rows, 1]."""
        request, item = self.embeddings(*tensors)
        rows = item.embedded.shape[0]
        numbers = [side.numbers.expand(rows, -1) for side in (request, item) if side.numbers is not None]
        dense = self.bottom(torch.cat(numbers, dim=1))
        vectors = torch.cat([dense.unsqueeze(1), joined(request.embedded, item.embedded)], dim=1)
        dots = (vectors @ vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        score: torch.Tensor = self.top(torch.cat([dense, dots], dim=1))
        return score
