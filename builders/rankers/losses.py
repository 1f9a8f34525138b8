"""Losses of one list: float32 [candidates] scores and targets => scalar."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def listnet(scores: Tensor, targets: Tensor) -> Tensor:
    """ListNet's top-one loss (Cao et al., ICML 2007) as a divergence: 0 where scores equal the target logits up to a
    constant."""
    found, wanted = torch.log_softmax(scores, dim=0), torch.log_softmax(targets, dim=0)
    return functional.kl_div(found, wanted, log_target=True, reduction="sum")


def pairwise(scores: Tensor, targets: Tensor) -> Tensor:
    """RankNet's logistic loss (Burges et al., ICML 2005) of each pair of candidates in the wrong order, weighed by how
    much better the one is."""
    better_by = (targets[:, None] - targets[None, :]).clamp(min=0)  # [candidates, candidates]
    margins = scores[:, None] - scores[None, :]
    return (better_by * functional.softplus(-margins)).sum() / better_by.sum()


def softmax_loss(scores: Tensor, bought: Tensor) -> Tensor:
    """float32 [candidates], bool [candidates] => cross-entropy summed over positives, over the root of their number.

    So a basket of 100 new items counts ten times one of a single item: neither as 100 nor as 1.
    """
    return -torch.log_softmax(scores, dim=0)[bought].sum() / bought.sum().sqrt()
