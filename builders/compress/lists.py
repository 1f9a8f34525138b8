"""A ranker's networks on lists, differentiably: what pruning measures and distillation trains through.

Knows nothing of losses or of what a list is made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from builders.data.unlabeled import UnlabeledList
from builders.rankers.base import Ranker, Sample


def tensors_of(ranker: Ranker, lists: Iterable[UnlabeledList]) -> list[dict[str, Sample]]:
    """One sample a list, as :meth:`Ranker.sample` makes it."""
    return [ranker.sample(one.request, one.products) for one in lists]


def scores_of(ranker: Ranker, sample: Mapping[str, Sample]) -> Tensor:
    """float32 [candidates] of one list, through all graphs in order, with gradients; several heads are added up."""
    outputs: dict[str, Tensor] = {}
    for graph in ranker.graphs:
        given = {name: torch.from_numpy(np.array(array)) for name, array in sample[graph.name].items()}
        result = graph.module(*({**given, **outputs}[tensor.name] for tensor in graph.contract.inputs))
        found = result if isinstance(result, tuple) else (result,)
        outputs = {tensor.name: output for tensor, output in zip(graph.contract.outputs, found, strict=True)}
    [scores] = outputs.values()
    return scores.sum(dim=1)


class OnLists(nn.Module):
    """A ranker's network as a module over lists, for libraries that call the module that they change."""

    def __init__(self, ranker: Ranker, samples: Sequence[Mapping[str, Sample]]) -> None:
        super().__init__()
        self.network = ranker.network
        self.score = lambda place: scores_of(ranker, samples[place])

    def forward(self, place: int) -> Tensor:
        """Which of the samples => float32 [candidates]."""
        return self.score(place)


def standardised(scores: Tensor) -> Tensor:
    """float32 [candidates]: mean 0 and deviation 1 within the list; zeros for scores that are all alike."""
    spread = scores.std(correction=0)
    return (scores - scores.mean()) / spread.clamp(min=1e-6)


def blended(of_teachers: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """float32 [candidates]: the teachers' standardised scores, averaged by weight."""
    total = sum(weights)
    return torch.stack(
        [standardised(scores) * weight / total for scores, weight in zip(of_teachers, weights, strict=True)]
    ).sum(dim=0)
