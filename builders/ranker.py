"""What every ranker gives the kit, so that export, parity, repository and store need to know none of them by name.

A ranker is one file in ``builders/rankers/`` that derives from :class:`Ranker`, and one recipe in ``recipes/``.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from builders.contract import Contract
from builders.datasets import Product

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
        lengths: padded lengths of dimension 1 to warm up; empty where there is none.
        precise: kept in FP32 whatever the variant (a cosine of two vectors has nothing to quantize).
    """

    name: str
    module: nn.Module
    contract: Contract
    batches: bool
    max_batch_size: int = 0
    lengths: Sequence[int] = ()
    precise: bool = False


class Ranker(abc.ABC):
    """A trained ranker with everything around its networks."""

    name: str

    @property
    @abc.abstractmethod
    def graphs(self) -> list[Graph]:
        """The networks, in the order in which a request passes them; the last gives ``score``."""

    @property
    @abc.abstractmethod
    def preprocess(self) -> Contract:
        """Contract of ``<name>_preprocess``: query and item ids in, the graphs' inputs and ``known`` out."""

    @property
    @abc.abstractmethod
    def tokenizer_file(self) -> Path:
        """``tokenizer.json`` of the backbone, copied beside the pre-processing model."""

    @property
    @abc.abstractmethod
    def checkpoint_files(self) -> list[Path]:
        """What it was loaded from, for fingerprints and the manifest."""

    @abc.abstractmethod
    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """(item id, stored bytes) of each product, in the form that the pre-processing model reads."""

    @abc.abstractmethod
    def sample(self, query: str, products: Sequence[Product]) -> dict[str, Sample]:
        """Graph name => its inputs for one request, made offline, without the served pre-processing."""

    @abc.abstractmethod
    def score(self, query: str, products: Sequence[Product]) -> np.ndarray:
        """FP32 [candidates]: the torch reference, padded as served."""
