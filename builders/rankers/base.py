"""What every ranker gives the kit, so that export, parity, repository and store need to know none of them by name.

A ranker is one file with a ``torch.nn.Module`` and one recipe. The kit makes the rest of a module that declares its
features (:mod:`builders.rankers.feature_ranker`); one with a pre-processing of its own derives from :class:`Ranker`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from backends.common.batching import RunLimits, parts_of
from builders.core.contract import MAX_ROWS_PER_RUN, MAX_TOKENS_PER_RUN, RANK, Contract
from builders.core.recipe import Recipe
from builders.data.beir import Product, Request

Sample = dict[str, np.ndarray]
"""Tensor name => array, in the contract's dtypes: what one request gives one graph."""


@dataclasses.dataclass(frozen=True)
class Graph:
    """One network that becomes one ONNX file and one served model.

    Attributes:
        name: model name without the variant, such as ``two_tower_query``.
        module: in eval mode; ``forward`` takes the contract's inputs by name, in order.
        contract: its tensors.
        batches: whether rows of several requests may be joined (dimension 0 of every tensor is then ``rows``).
        max_batch_size: rows that one request may bring; only where it batches.
        lengths: padded lengths of dimension 1 to warm up, shortest first; empty where there is none.
        write_onnx: writes the graph's ONNX file, of a network that is ONNX already; None = torch exports ``module``.
        keep_fp32: kept in FP32 whatever the variant (a cosine of two vectors has nothing to quantize).
        splits: whether a request may be run in parts although it is not joined with others: its rows do not look at
            each other, and what is not of rows (a prefix's keys and values) is whole in every part. What batches
            splits in any case.
        padding_mask: input whose zeros behind a row's last token are padding that may be cut off; "" where there is
            none, or where padding shows in an output.
    """

    name: str
    module: nn.Module
    contract: Contract
    batches: bool
    max_batch_size: int = 0
    lengths: Sequence[int] = ()
    keep_fp32: bool = False
    write_onnx: Callable[[Path], None] | None = None
    splits: bool = False
    padding_mask: str = ""

    @property
    def row_inputs(self) -> tuple[str, ...]:
        """Names of the inputs whose first dimension is the rows."""
        return tuple(one.name for one in self.contract.inputs if one.dims and one.dims[0] in ("rows", "candidates"))

    @property
    def limits(self) -> RunLimits:
        """What one run of it takes, where its rows may be run apart; of the served model and in this process."""
        return RunLimits(
            MAX_ROWS_PER_RUN,
            MAX_TOKENS_PER_RUN if self.lengths else None,
            frozenset(self.row_inputs),
            self.padding_mask,
            tuple(self.lengths) if self.padding_mask else (),
        )

    def parts(self, sample: Sample) -> Iterator[Sample]:
        """The sample as the server runs it: in the parts that the limits ask for, whole where rows may look at each
        other."""
        if self.batches or self.splits:
            yield from (part for _, part in parts_of(sample, self.limits))
        else:
            yield sample


class Ranker(abc.ABC):
    """A trained ranker with everything around its networks."""

    name: str
    """The recipe's: the prefix of its models, tables and endpoints."""
    reads_text: tuple[str, ...] = ()
    """Fields of the recipe's [text] that it is made with; others are refused."""
    has_library: bool = False
    """Whether :meth:`library_scores` gives any; then the library is the reference, and torch's own are spot checks."""
    endpoint: Contract = RANK
    """What a search service calls: one of ``builders.core.contract.ENDPOINTS``."""
    preprocess_code: str = ""
    """Folder of ``served/`` with its ``model.py``; empty = ``<name>_preprocess``."""

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Ranker:
        """As the recipe says, under its name: ``cls(checkpoint=..., backbone=...)`` where a class says no other."""
        ranker = cls(**folders_of(recipe))
        ranker.name = recipe.ranker
        return ranker

    @property
    def settings(self) -> Mapping[str, object]:
        """What its scores depend on besides checkpoint and code, such as how it reads text."""
        return {}

    @property
    @abc.abstractmethod
    def network(self) -> nn.Module:
        """All that was trained, in eval mode; the graphs' modules compute with it."""

    @abc.abstractmethod
    def with_network(self, network: nn.Module) -> Ranker:
        """The same ranker around another network, whose inputs and outputs are the same."""

    @property
    @abc.abstractmethod
    def graphs(self) -> list[Graph]:
        """The networks, in the order in which a request passes them; the last gives ``score``."""

    @property
    @abc.abstractmethod
    def preprocess(self) -> Contract:
        """Contract of ``<name>_preprocess``: the endpoint's inputs in, the graphs' inputs and ``known`` out."""

    @property
    @abc.abstractmethod
    def preprocess_files(self) -> Mapping[str, Path | str]:
        """What lies beside the pre-processing ``model.py``: name => file to copy, or text to write."""

    @property
    @abc.abstractmethod
    def checkpoint_files(self) -> list[Path]:
        """What it was loaded from, for fingerprints and the manifest."""

    @abc.abstractmethod
    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """(item id, stored bytes) of each product, in the form that the pre-processing model reads."""

    def user_features(self, users: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, bytes]]:
        """(user id, stored bytes) of each user's raw fields; nothing for a ranker that reads no user."""
        yield from ()

    @abc.abstractmethod
    def sample(self, request: Request, products: Sequence[Product]) -> dict[str, Sample]:
        """Graph name => its inputs for one request, made offline, without the served pre-processing."""

    def fallback(self, request: Request, products: Sequence[Product]) -> np.ndarray | None:
        """FP32 [candidates] that takes the score's place where it is not NaN; None for a ranker without one."""
        return None

    @abc.abstractmethod
    def score(self, request: Request, products: Sequence[Product]) -> np.ndarray:
        """FP32 [candidates] (or [candidates, heads]): the torch reference, padded as served."""

    def library_scores(self, request: Request, products: Sequence[Product]) -> np.ndarray | None:
        """FP32 [candidates] (or [candidates, heads]) by the library that made the checkpoint, its own tokens and
        batches included; None where there is no such library."""
        return None

    def tokens(self, sample: Mapping[str, Sample]) -> list[str]:
        """What the first row of a sample reads, as tokens; nothing for a ranker that reads none."""
        return []

    @property
    def unrounded(self) -> Ranker | None:
        """The same ranker with items' vectors stored in FP32; None where they are."""
        return None

    def truncated(self, request: Request, products: Sequence[Product]) -> int:
        """How many candidates' texts are not read to their end, or the query's with all of them."""
        return 0


def folders_of(recipe: Recipe) -> dict[str, Path | None]:
    """What a recipe names that a ranker is loaded from, as arguments: ``checkpoint`` and ``backbone``."""
    return {name: recipe.path(path) if (path := getattr(recipe, name)) else None for name in ("checkpoint", "backbone")}
