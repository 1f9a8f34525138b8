"""Declared fields => one vector a request and one a candidate: the first layer that networks of many fields share.

Dense and vector features go in as they are. Each sparse field has an embedding table, and so has each bag, whose
embedding is the mean over its ids. What the request has keeps its one row: :class:`JoinedLinear` multiplies it once,
whatever the number of candidates.

Knows nothing of what a network does with them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from builders.core.contract import ContractError
from builders.features.encoder import ABSENT, Feature

_NUMBERS, _IDS = ("dense", "vector"), ("sparse", "multi_hot")
_INITIAL_STD = 0.05


class Side(NamedTuple):
    """The fields of the request, or of the candidates.

    Attributes:
        numbers: float32 [rows, dense fields]; None without any.
        embedded: float32 [rows, fields, width].
    """

    numbers: torch.Tensor | None
    embedded: torch.Tensor

    @property
    def flat(self) -> torch.Tensor:
        """float32 [rows, dense fields + fields * width]."""
        flat = self.embedded.flatten(1)
        return flat if self.numbers is None else torch.cat([self.numbers, flat], dim=1)


class FieldEmbeddings(nn.Module):
    """Tensors of declared features => the two sides.

    Args:
        features: in the order of the network's inputs; at least one sparse field or bag of an item, and one of the
            request.
        width: of every embedding.

    Raises:
        ContractError: a side has no sparse field or bag, or a feature is of tokens.
    """

    def __init__(self, features: Sequence[Feature], width: int) -> None:
        super().__init__()
        _check(features)
        self.features = tuple(features)
        self.width = width
        self.tables = nn.ModuleDict(
            {feature.name: _Table(feature, width) for feature in features if feature.kind in _IDS}
        )

    def forward(self, *tensors: torch.Tensor) -> tuple[Side, Side]:
        """One tensor a feature, in declared order => request [1 or candidates rows], candidates."""
        given = list(zip(self.features, tensors, strict=True))
        request, item = (
            self._side([pair for pair in given if pair[0].per_candidate == candidates]) for candidates in (False, True)
        )
        return request, item

    def _side(self, given: Sequence[tuple[Feature, torch.Tensor]]) -> Side:
        numbers = [tensor for feature, tensor in given if feature.kind in _NUMBERS]
        embedded = [self.tables[feature.name](tensor) for feature, tensor in given if feature.kind in _IDS]
        return Side(torch.cat(numbers, dim=1) if numbers else None, torch.cat(embedded, dim=1))

    def matches(self, request: Side, item: Side) -> torch.Tensor | None:
        """float32 [candidates, pairs * width], for networks that multiply nothing themselves; None without a pair.

        The products, element by element, of a request's bag and an item's field that have one vocabulary: the
        candidate's id beside those of the history.
        """
        products = [request.embedded[:, bag] * item.embedded[:, field] for bag, field in self.matching]
        return torch.cat(products, dim=1) if products else None

    @functools.cached_property
    def matching(self) -> tuple[tuple[int, int], ...]:
        """Columns of ``Side.embedded`` whose ids are of one kind: request's bag, item's field."""
        request, item = (self._columns(per_candidate=side) for side in (False, True))
        return tuple(
            (bag, field)
            for bag, (kind, values) in enumerate(request)
            for field, (_, found) in enumerate(item)
            if kind == "multi_hot" and values and values == found
        )

    def _columns(self, *, per_candidate: bool) -> list[tuple[str, tuple[str, ...]]]:
        """Kind and vocabulary of each column of ``Side.embedded``."""
        return [
            (feature.kind, feature.vocabularies[place] if feature.vocabularies else ())
            for feature in self._of(_IDS, per_candidate)
            for place in range(len(feature.fields))
        ]

    def start_from(self, name: str, vectors: np.ndarray) -> None:
        """Put ``vectors``, float32 [values, width], into the rows of a feature's first vocabulary."""
        feature = next(feature for feature in self.features if feature.name == name)
        table, first = self.tables[name], 1 + feature.oov_buckets
        assert isinstance(table, _Table)
        with torch.no_grad():
            table.embedding.weight[first : first + len(vectors)] = torch.from_numpy(vectors)

    def numbers(self, *, per_candidate: bool | None = None) -> int:
        """Dense values of a side, or of both."""
        return sum(_columns(each) for each in self._of(_NUMBERS, per_candidate))

    def fields(self, *, per_candidate: bool | None = None) -> int:
        """Embeddings of a side, or of both; a bag counts as one."""
        return sum(len(each.fields) for each in self._of(_IDS, per_candidate))

    @property
    def flat_widths(self) -> tuple[int, int]:
        """Of ``Side.flat``: request, candidates."""
        request, item = (
            self.numbers(per_candidate=side) + self.fields(per_candidate=side) * self.width for side in (False, True)
        )
        return request, item

    def _of(self, kinds: Sequence[str], per_candidate: bool | None) -> list[Feature]:
        return [
            feature
            for feature in self.features
            if feature.kind in kinds and per_candidate in (None, feature.per_candidate)
        ]


class _Table(nn.Module):
    """Tables of one feature, one below the other, so that all its fields are one look-up."""

    offsets: torch.Tensor

    def __init__(self, feature: Feature, width: int) -> None:
        super().__init__()
        self.is_bag = feature.kind == "multi_hot"
        self.embedding = nn.Embedding(sum(feature.table_rows), width)
        nn.init.normal_(self.embedding.weight, std=_INITIAL_STD)
        offsets = [0, *itertools.accumulate(feature.table_rows[:-1])]
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int32), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int32 [rows, fields] => float32 [rows, fields, width]; int32 [rows, size] of a bag => [rows, 1, width]."""
        if not self.is_bag:
            embedded: torch.Tensor = self.embedding(ids + self.offsets)
            return embedded
        present = (ids != ABSENT).to(torch.float32).unsqueeze(-1)
        return (self.embedding(ids) * present).sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True).clamp(min=1)


class JoinedLinear(nn.Module):
    """A linear layer of [request, candidate]; the request's part is multiplied once and added to every candidate."""

    def __init__(self, widths: tuple[int, int], outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        self.of_request = nn.Linear(widths[0], outputs, bias)
        self.of_item = nn.Linear(widths[1], outputs, bias=False)

    def forward(self, request: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """float32 [1 or rows, width], [rows, width] => float32 [rows, outputs]."""
        outputs: torch.Tensor = self.of_request(request) + self.of_item(item)
        return outputs


class JoinedMLP(nn.Module):
    """Linear layers of [request, candidate], each with ReLU and dropout; the first one is a :class:`JoinedLinear`."""

    def __init__(self, widths: tuple[int, int], hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.first = JoinedLinear(widths, hidden[0])
        self.rest = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), mlp(hidden, dropout))

    def forward(self, request: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """float32 [1 or rows, width], [rows, width] => float32 [rows, hidden[-1]]."""
        hidden: torch.Tensor = self.rest(self.first(request, item))
        return hidden


def mlp(widths: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers from ``widths[0]`` to ``widths[-1]``, each with ReLU and dropout; none for a single width."""
    layers = [
        nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout))
        for inputs, outputs in itertools.pairwise(widths)
    ]
    return nn.Sequential(*layers)


def joined(request: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    """[1 or rows, ...], [rows, ...] => [rows, ...] side by side along dimension 1."""
    return torch.cat([request.expand(item.shape[0], *request.shape[1:]), item], dim=1)


def _columns(feature: Feature) -> int:
    return feature.size or len(feature.fields)


def _check(features: Sequence[Feature]) -> None:
    strangers = [feature.name for feature in features if feature.kind not in _NUMBERS + _IDS]
    sides = {
        feature.per_candidate for feature in features if feature.kind in _IDS
    }  # an empty side would be a tensor without columns, which ONNX Runtime's kernels do not all take
    faults = [f"{', '.join(strangers)} of tokens, wanted dense, sparse, bag or vector"] if strangers else []
    faults += ["no sparse field or bag of an item"] if True not in sides else []
    faults += ["no sparse field or bag of the request (a history, say)"] if False not in sides else []
    if faults:
        raise ContractError(f"features of a network of fields: {'; '.join(faults)}; declare others")
