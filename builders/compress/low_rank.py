"""Network => network whose embedding tables or layers take less room. Every function changes what it is given: hand it
a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from builders.compress.prune import PruningError, embeddings, encoder_layers, replace_module, set_layers


class LowRankEmbedding(nn.Module):
    """A table as the product of [ids, rank] and [rank, width] (ALBERT, arXiv:1909.11942)."""

    def __init__(self, table: Tensor, rank: int) -> None:
        """table: float32 [ids, width], approximated best in squares (Eckart and Young, 1936)."""
        super().__init__()
        left, values, right = torch.linalg.svd(table, full_matrices=False)
        self.rows = nn.Embedding.from_pretrained((left[:, :rank] * values[:rank]).contiguous(), freeze=False)
        self.widen = nn.Linear(rank, table.shape[1], bias=False)
        self.widen.weight = nn.Parameter(right[:rank].T.contiguous())

    def forward(self, ids: Tensor) -> Tensor:
        """int [...] => float32 [..., width]."""
        embedded: Tensor = self.widen(self.rows(ids))
        return embedded


class QuotientRemainderEmbedding(nn.Module):
    """A table as the sum of two short ones, by quotient and remainder of the id (Shi et al., arXiv:1909.02107)."""

    def __init__(self, table: Tensor, rows: int) -> None:
        """table: float32 [ids, width]; rows: of the remainders. Fitted by least squares: means over each class."""
        super().__init__()
        self.divisor = rows
        ids = torch.arange(len(table))
        quotients = ids // rows
        of_quotient = _means(table, quotients)
        of_remainder = _means(table - of_quotient[quotients], ids % rows)
        self.quotients = nn.Embedding.from_pretrained(of_quotient, freeze=False)
        self.remainders = nn.Embedding.from_pretrained(of_remainder, freeze=False)

    def forward(self, ids: Tensor) -> Tensor:
        """int [...] => float32 [..., width]."""
        quotient = torch.div(ids, self.divisor, rounding_mode="floor")
        embedded: Tensor = self.quotients(quotient) + self.remainders(ids - quotient * self.divisor)
        return embedded


def factorize(network: nn.Module, rank: int, min_rows: int) -> nn.Module:
    """Every long table of low rank. Raises: PruningError: no long table, or none wider than ``rank``."""
    tables = {name: table for name, table in embeddings(network, min_rows).items() if table.embedding_dim > rank}
    if not tables:
        raise PruningError(f"no table of {min_rows} rows or more is wider than rank {rank}; lower the rank")
    for name, table in tables.items():
        replace_module(network, name, LowRankEmbedding(table.weight.detach(), rank))
    return network


def hash_rows(network: nn.Module, rows: int, min_rows: int) -> nn.Module:
    """Every long table by quotient and remainder. Raises: PruningError: no long table."""
    for name, table in embeddings(network, max(min_rows, rows + 1)).items():
        replace_module(network, name, QuotientRemainderEmbedding(table.weight.detach(), rows))
    return network


def share_layers(network: nn.Module, groups: int) -> nn.Module:
    """Each group of neighbouring layers has the weights of its first (ALBERT, arXiv:1909.11942).

    Raises:
        PruningError: no encoder, or its layers do not part into so many groups.
    """
    _, layers = encoder_layers(network)
    if len(layers) % groups:
        raise PruningError(f"{len(layers)} layers do not part into {groups} equal groups; choose a divisor")
    size = len(layers) // groups
    set_layers(network, [layers[place - place % size] for place in range(len(layers))])
    return network


def _means(rows: Tensor, classes: Tensor) -> Tensor:
    """float32 [classes, width]."""
    count = int(classes.max()) + 1
    sums = torch.zeros(count, rows.shape[1]).index_add_(0, classes, rows)
    return sums / torch.bincount(classes, minlength=count).unsqueeze(1)
