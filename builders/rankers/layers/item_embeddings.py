"""What the rankers that learn an embedding an item share: where it starts from, and a history as the sum of its items.

Knows nothing of what a network does with them.
"""

from __future__ import annotations

import torch
from torch import nn

from builders.data.purchase_log import PurchaseLog
from builders.features.encoder import ABSENT
from builders.features.vocabularies import purchase_vectors, recent_log_popularity

INITIAL_RMS = 0.13
"""Of an embedding's values at the start; of 64 of them, the scores then spread over about the range of the biases."""


def start_from_purchases(items: nn.Embedding, log: PurchaseLog) -> None:
    """Like vectors for items that the same customers bought; zeros for absent and unseen ones.

    Args:
        items: [rows, width], the last rows those of ``log.known_items`` in their order.
    """
    vectors = torch.from_numpy(purchase_vectors(log, items.embedding_dim))
    unseen = items.num_embeddings - len(vectors)
    with torch.no_grad():
        items.weight[:unseen] = 0
        items.weight[unseen:] = INITIAL_RMS * vectors


def start_from_popularity(biases: nn.Embedding, log: PurchaseLog) -> None:
    """The log of how many customers bought an item lately; the lowest one's for absent and unseen items.

    Args:
        biases: [rows, 1], rows as above.
    """
    popularity = torch.from_numpy(recent_log_popularity(log))
    unseen = biases.num_embeddings - len(popularity)
    with torch.no_grad():
        biases.weight[:unseen] = popularity.min()
        biases.weight[unseen:, 0] = popularity


def summed(embedded: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """float32 [rows, events, width], int32 [rows, events] => float32 [rows, width].

    The sum over what is there, over the root of its number (FISM: Kabbur, Ning and Karypis, KDD 2013); 0 without any.
    """
    present = (ids != ABSENT).to(torch.float32)
    total = (embedded * present.unsqueeze(-1)).sum(dim=1)
    vector: torch.Tensor = total / present.sum(dim=1, keepdim=True).clamp(min=1).sqrt()
    return vector
