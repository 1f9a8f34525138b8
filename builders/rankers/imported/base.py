"""What a ranker made of a library's checkpoint tells besides: what was found, and the [text] that it is served with."""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import nn

from builders.core.recipe import Recipe, Text
from builders.rankers.base import Ranker
from builders.rankers.imported import library


class ImportedRanker(Ranker):
    """Served as the library that saved it computes it."""

    has_library = True
    _folder: Path
    _network: Any

    @abc.abstractmethod
    def __init__(self, name: str, folder: Path, text: Text, *, trust_remote_code: bool = False) -> None:
        """Load.

        Args:
            name: of the ranker.
            folder: as the library writes it.
            text: how query and items become tokens; what it leaves open is the checkpoint's own.
            trust_remote_code: whether Python code in the folder may run.

        Raises:
            CheckpointError: the library cannot load it, or it would be served otherwise than the library computes it.
        """

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> ImportedRanker:
        """With the recipe's [text]."""
        assert recipe.checkpoint is not None  # a recipe with a format has one
        folder = recipe.path(recipe.checkpoint)
        return cls(recipe.ranker, folder, recipe.text, trust_remote_code=recipe.trust_remote_code)

    @property
    def checkpoint_files(self) -> list[Path]:
        """Every file of the folder that a score depends on."""
        return library.files_of(self._folder)

    def with_network(self, network: nn.Module) -> Self:
        """Around another network that takes the same tokens; what is stored of items stays as it was made."""
        other = copy.copy(self)
        other._network = network.eval()
        return other

    @property
    @abc.abstractmethod
    def facts(self) -> Sequence[str]:
        """What was found in the folder and what of it is served, a line each."""

    @property
    @abc.abstractmethod
    def own_text(self) -> Mapping[str, Any]:
        """The checkpoint's own [text], as a recipe spells it; ``init`` writes it into the recipe to be seen."""

    @property
    def head_weights(self) -> tuple[float, ...]:
        """Of a checkpoint with several scores an item; () where there is one."""
        return ()
