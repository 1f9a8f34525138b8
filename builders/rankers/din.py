"""DIN: what a user took, weighed anew for each candidate.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018 (arXiv:1706.06978): an attention unit
of 36 hidden units over an event, the candidate and their product, whose weights are not normalized by a softmax; PReLU;
an MLP of 80 and 40 over the pooled history, the candidate and their product, and a bias an item, as in the authors'
code. Here: width 32; dropout 0.3 by the validation cut.

Ours besides: the pooled history is divided by the root of its length, and its product with the candidate is added to
the score as it is. The unit's first layer is multiplied out, so that event and candidate alone are computed once each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from builders.data.purchase_log import HISTORY_LIMIT, PurchaseLog
from builders.features import encoder as declare
from builders.features.encoder import ABSENT, Feature
from builders.rankers.checkpoint import network_from_checkpoint
from builders.rankers.layers.item_embeddings import start_from_popularity, start_from_purchases


class DIN(nn.Module):
    """History and candidate => a score.

    Args:
        features: ``history``, then ``item_id``, with one vocabulary.
        width: of the embeddings.
        attention: hidden units of the attention unit.
        hidden: widths of the MLP.
        dropout: of the embeddings and after each layer of the MLP, in training.
    """

    broadcasts = True
    fallback_field = "popularity"
    score_meaning = "logit of being in the next basket; higher is better; comparable within one response only"

    def __init__(
        self,
        features: Sequence[Feature],
        *,
        width: int = 32,
        attention: int = 36,
        hidden: Sequence[int] = (80, 40),
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.config = {"width": width, "attention": attention, "hidden": list(hidden), "dropout": dropout}
        _, item = self.features
        self.items = nn.Embedding(item.rows(), width)
        self.biases = nn.Embedding(item.rows(), 1)
        self.attention = AttentionUnit(width, attention)
        self.deep = nn.Sequential(*_layers([3 * width, *hidden], dropout), nn.Linear(hidden[-1], 1))
        self.dropout = nn.Dropout(dropout)

    @classmethod
    def for_log(cls, log: PurchaseLog, settings: Mapping[str, Any]) -> DIN:
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
    def from_checkpoint(cls, folder: Path | None) -> DIN:
        """Raises: builders.rankers.backbone.CheckpointError."""
        return network_from_checkpoint(cls, folder, "din")

    def forward(self, history: torch.Tensor, item_id: torch.Tensor) -> torch.Tensor:
        """int32 [1, events], [rows, 1] => float32 [rows, 1]."""
        present = (history != ABSENT).to(torch.float32)
        events = self.dropout(self.items(history))
        candidates = self.dropout(self.items(item_id[:, 0]))
        weights = self.attention(events[0], candidates) * present
        pooled = weights @ events[0] / present.sum().clamp(min=1).sqrt()
        product = pooled * candidates
        deep: torch.Tensor = self.deep(torch.cat([pooled, candidates, product], dim=1))
        return product.sum(dim=1, keepdim=True) + deep + self.biases(item_id[:, 0])


class AttentionUnit(nn.Module):
    """Weight of each event for each candidate: an MLP of one hidden layer over event, candidate and their product.

    The paper's difference of the two is a sum of what the layer has of each already.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.of_event = nn.Linear(width, hidden)
        self.of_candidate = nn.Linear(width, hidden, bias=False)
        self.of_product = nn.Linear(width, hidden, bias=False)
        self.activation = nn.PReLU()
        self.output = nn.Linear(hidden, 1)
        nn.init.ones_(self.output.bias)  # so that training starts from every event weighing about as much

    def forward(self, events: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """float32 [events, width], [rows, width] => float32 [rows, events]."""
        scaled = candidates.unsqueeze(2) * self.of_product.weight.T  # [rows, width, hidden]
        hidden = events @ scaled + self.of_event(events) + self.of_candidate(candidates).unsqueeze(1)
        weights: torch.Tensor = self.output(self.activation(hidden))
        return weights.squeeze(2)


def _layers(widths: Sequence[int], dropout: float) -> list[nn.Module]:
    return [
        nn.Sequential(nn.Linear(inputs, outputs), nn.PReLU(), nn.Dropout(dropout))
        for inputs, outputs in itertools.pairwise(widths)
    ]
