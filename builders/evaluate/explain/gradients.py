"""Integrated gradients (Sundararajan et al., 2017, arXiv:1703.01365) by Captum over a network's embeddings and numbers.

The contributions of an item add up to its score minus that of a baseline in which nothing is told: absent ids, numbers
at their mean, filler tokens. The path keeps what a network derives from the ids besides embeddings, such as masks: a
history of three absent items, not an empty one. Knows nothing of rankers.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn
from torch.nn import functional

from builders.evaluate.explain.explanation import ExplainError

STEPS = (32, 64, 128, 256, 512)
"""Of the integral (Gauss-Legendre): the first number that adds up, else the one that comes nearest."""
TOLERANCE = 0.01
"""Of the contributions' absolute sum, that they may miss the score difference by."""
Column = tuple[int, int]
"""(Place of an input, column of it.)"""


@dataclasses.dataclass(frozen=True)
class Attributions:
    """What :meth:`IntegrationPath.integrated` finds.

    Attributes:
        of_inputs: place of an input that is integrated over directly => float32 [1, ...].
        of_lookups: in the order in which the network looks ids up, float32 in the ids' shape.
    """

    score: float
    baseline_score: float
    of_inputs: Mapping[int, Tensor]
    of_lookups: Sequence[Tensor]


class IntegrationPath:
    """From a baseline's embeddings and numbers to the request's, in a straight line.

    Captum's LayerIntegratedGradients takes one output a layer, in rows like the inputs'. Here a table may be shared by
    several inputs and looked up in any shape, so each look-up counts, and one example is all look-ups of one candidate.

    Args:
        score: inputs => float32 [rows].
        layers: ``nn.Embedding`` and ``nn.EmbeddingBag`` to integrate over.
        inputs, baselines: of one candidate, [1, ...] each, the same shapes.
        rows_at_once: points of the path scored in one batch; more than 1 only where rows are independent of each other
            and every look-up has shape [1, ...].
    """

    def __init__(
        self,
        score: Callable[..., Tensor],
        layers: Sequence[nn.Module],
        inputs: tuple[Tensor, ...],
        baselines: tuple[Tensor, ...],
        rows_at_once: int = 1,
    ) -> None:
        self.score = score
        self.layers = layers
        self.inputs = inputs
        self.baselines = baselines
        self.rows_at_once = rows_at_once
        self._numbers = [place for place, tensor in enumerate(inputs) if tensor.is_floating_point()]

    def lookups(self, without: Column | None = None) -> list[Tensor]:
        """The ids of every look-up in order. without: (input, column) to set to the baseline's."""
        inputs = [tensor.clone() for tensor in self.inputs]
        if without is not None:
            place, column = without
            inputs[place][0, column] = self.baselines[place][0, column]
        return [ids for ids, _ in self._recorded(inputs)]

    @property
    def moves(self) -> bool:
        """Whether there is anything to integrate over."""
        return bool(self._numbers or self._recorded(self.inputs))

    def integrated(self) -> Attributions:
        """Contribution of everything that moves: look-ups in the place of ids, and numbers."""
        moving = self._numbers
        start = [self.baselines[place] for place in moving]
        end = [self.inputs[place] for place in moving]
        looked_up = [vectors[None] for _, vectors in self._recorded(self.inputs)]
        at_baseline = [vectors[None] for _, vectors in self._recorded(self.baselines)]
        ends, starts = (*end, *looked_up), (*start, *at_baseline)
        score, baseline_score = (self._score_at(moving, *point).item() for point in (ends, starts))
        found = self._integral(lambda *point: self._score_at(moving, *point), ends, starts, score - baseline_score)
        direct, embedded = found[: len(moving)], found[len(moving) :]
        return Attributions(
            score, baseline_score, dict(zip(moving, direct, strict=True)), [part[0].sum(dim=-1) for part in embedded]
        )

    def _integral(
        self, score: Callable[..., Tensor], ends: tuple[Tensor, ...], starts: tuple[Tensor, ...], difference: float
    ) -> list[Tensor]:
        nearest, least = [torch.zeros_like(end) for end in ends], float("inf")
        for steps in STEPS:
            found = IntegratedGradients(score).attribute(
                ends, starts, n_steps=steps, internal_batch_size=self.rows_at_once
            )
            found = [part.detach() for part in found]
            missed = abs(sum(part.sum().item() for part in found) - difference)
            if missed < least:
                nearest, least = found, missed
            if least <= TOLERANCE * self._size(nearest):
                break
        return nearest

    def _size(self, parts: Sequence[Tensor]) -> float:
        """Absolute sum of the contributions: each number's, and each looked-up vector's as a whole."""
        direct, embedded = parts[: len(self._numbers)], parts[len(self._numbers) :]
        return sum(part.abs().sum().item() for part in (*direct, *(part.sum(dim=-1) for part in embedded)))

    def _score_at(self, moving: Sequence[int], *point: Tensor) -> Tensor:
        """float32 [rows]: point holds the moving inputs, then every look-up's vectors, [rows, ...] each."""
        rows = point[0].shape[0]
        inputs = [tensor.expand(rows, *tensor.shape[1:]) for tensor in self.inputs]
        for place, tensor in zip(moving, point, strict=False):
            inputs[place] = tensor
        vectors = iter(point[len(moving) :])
        with _hooked(self.layers, lambda _layer, _args, _ids: next(vectors).flatten(0, 1)):
            scores = self.score(*inputs)
        untouched = sum(tensor.sum() for tensor in point) * 0.0  # Captum wants a gradient of every tensor
        return scores + untouched

    def _recorded(self, inputs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(ids, their vectors) of each look-up."""
        seen: list[tuple[Tensor, Tensor]] = []

        def record(layer: nn.Module, vectors: Tensor, ids: Tensor) -> Tensor:
            seen.append((ids.clone(), vectors))
            return vectors

        with torch.no_grad(), _hooked(self.layers, record):
            self.score(*inputs)
        return seen


@contextlib.contextmanager
def _hooked(layers: Sequence[nn.Module], vectors_of: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Iterator[None]:
    """While entered, what ``layers`` look up is ``vectors_of(layer, own vectors, ids)``, one vector an id."""

    def hook(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> Tensor:
        ids = args[0] if args else kwargs["input"]
        if isinstance(layer, nn.Embedding):
            return vectors_of(layer, output, ids)
        assert isinstance(layer, nn.EmbeddingBag)
        if len(args) > 1 or kwargs.keys() - {"input"}:
            raise ExplainError("an nn.EmbeddingBag is called with offsets or weights, wanted ids [rows, size] alone")
        return _bagged(layer, vectors_of(layer, functional.embedding(ids, layer.weight), ids), ids)

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bagged(layer: nn.EmbeddingBag, vectors: Tensor, ids: Tensor) -> Tensor:
    """float32 [rows, size, width] => [rows, width], as ``nn.EmbeddingBag`` does: padding counts for nothing."""
    own = torch.ones_like(ids) if layer.padding_idx is None else (ids != layer.padding_idx).to(ids.dtype)
    weights = own[..., None].to(vectors.dtype)
    if layer.mode == "max":
        lowest = torch.finfo(vectors.dtype).min
        bagged = torch.where(weights > 0, vectors, lowest).amax(dim=1)
        return torch.where(weights.amax(dim=1) > 0, bagged, 0.0)
    total = (vectors * weights).sum(dim=1)
    return total / weights.sum(dim=1).clamp(min=1) if layer.mode == "mean" else total
