"""SASRec: a self-attentive reading of what a user took, once a request, against every candidate's embedding.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (arXiv:1808.09781): item embeddings shared by
input and output, learned positions, causal self-attention with normalization before each part, the last position's
state scores the candidates. The paper has width 50, 2 layers, 1 head and dropout 0.5 on sparse data, 200 positions.
Here: width 64, 2 heads, 100 positions; 1 layer and dropout 0.5 by the validation cut.

Ours besides: the sum of the history's embeddings over the root of their number is added to the last state (FISM:
Kabbur, Ning and Karypis, KDD 2013), an item has a bias, and positions are counted from the latest item back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from builders.data.purchase_log import HISTORY_LIMIT, PurchaseLog
from builders.features import encoder as declare
from builders.features.encoder import ABSENT, Feature
from builders.rankers.checkpoint import network_from_checkpoint
from builders.rankers.layers.item_embeddings import start_from_popularity, start_from_purchases, summed

INPUT_SCALE = 2.4
"""Embedding => input of the encoder, about its place in the paper's initialisation: the table is shared with the
output, where it must be smaller."""


class SASRec(nn.Module):
    """History => a vector; its product with a candidate's embedding is the score.

    Args:
        features: ``history``, then ``item_id``, with one vocabulary.
        width: of the embeddings.
        layers, heads, feedforward, dropout: of the transformer's encoder.
    """

    fallback_field = "popularity"
    later: torch.Tensor
    others: torch.Tensor
    score_meaning = "logit of being in the next basket; higher is better; comparable within one response only"

    def __init__(
        self,
        features: Sequence[Feature],
        *,
        width: int = 64,
        layers: int = 1,
        heads: int = 2,
        feedforward: int = 128,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.config = {
            "width": width,
            "layers": layers,
            "heads": heads,
            "feedforward": feedforward,
            "dropout": dropout,
        }
        history, item = self.features
        self.heads_of_attention = heads
        self.items = nn.Embedding(item.rows(), width)
        self.biases = nn.Embedding(item.rows(), 1)
        self.positions = nn.Parameter(0.02 * torch.randn(history.size, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, feedforward, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)
        later = torch.ones(history.size, history.size, dtype=torch.bool).triu(1)
        self.register_buffer("later", later, persistent=False)
        self.register_buffer("others", ~torch.eye(history.size, dtype=torch.bool), persistent=False)

    @classmethod
    def for_log(cls, log: PurchaseLog, settings: Mapping[str, Any]) -> SASRec:
        """Untrained, with the log's items; embeddings and biases start from who bought what."""
        network = cls(
            (
                declare.history("history", HISTORY_LIMIT, log.known_items),
                declare.sparse("item_id", ("item_id",), vocabularies=(log.known_items,)),
            ),
            **settings,
        )
        start_from_purchases(network.items, log)
        start_from_popularity(network.biases, log)
        return network

    @classmethod
    def from_checkpoint(cls, folder: Path | None) -> SASRec:
        """Raises: builders.rankers.backbone.CheckpointError."""
        return network_from_checkpoint(cls, folder, "sasrec")

    def encode_request(self, history: torch.Tensor) -> torch.Tensor:
        """int32 [rows, events], padded in front, at most the declared size => float32 [rows, width]."""
        embedded = self.items(history)
        states = self.encoder(
            self.dropout(INPUT_SCALE * embedded + self.positions[-history.shape[1] :]),
            mask=self._hidden(history),
        )
        vector: torch.Tensor = self.dropout(states[:, -1] + summed(embedded, history))
        return vector

    def score_candidates(self, request_vector: torch.Tensor, item_id: torch.Tensor) -> torch.Tensor:
        """float32 [rows, width], int32 [candidates, 1] => float32 [candidates, rows]; one row in serving."""
        candidates = self.items(item_id[:, 0])
        scores: torch.Tensor = candidates @ request_vector.T + self.biases(item_id[:, 0])
        return scores

    def _hidden(self, history: torch.Tensor) -> torch.Tensor:
        """bool [rows * heads, events, events]: what an event must not see, later ones and padding.

        Itself it always sees, or an empty history would give NaN.
        """
        rows, events = history.shape
        hidden = (self.later[:events, :events] | (history == ABSENT).unsqueeze(1)) & self.others[:events, :events]
        heads = self.heads_of_attention
        return hidden.unsqueeze(1).expand(rows, heads, events, events).reshape(rows * heads, events, events)
