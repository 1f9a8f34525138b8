"""What the two single-file formats share: a module around the file, with the features that the recipe declares."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import nn

from builders.core.recipe import Format, Recipe, RecipeError
from builders.features.encoder import Feature
from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.imported.declared_inputs import Fitted, declared_features
from builders.rankers.imported.folder import look_at

TOKENIZER = "tokenizer.json"


class FileModule(nn.Module):
    """Takes the declared features, in the file's order; per-request ones with one row."""

    broadcasts = True
    tokenizer_file: str | None = None

    def __init__(self, inputs: Sequence[Fitted], heads: int) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.features: tuple[Feature, ...] = tuple(one.feature for one in inputs)
        self.heads = heads


class FileRanker(FeatureRanker):
    """A file of another tool, served as it computes."""

    format: ClassVar[Format]

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> FileRanker:
        """With the recipe's ``[[features]]``.

        Raises:
            CheckpointError: the file is none of the format, or its inputs are not the declared ones.
            ContractError: the network cannot take what the features make.
            RecipeError: the file is of the other format, or a backbone is named that nothing reads.
        """
        assert recipe.checkpoint is not None  # a recipe with a format has one
        path = recipe.path(recipe.checkpoint)
        found = look_at(path)
        if found.format != cls.format:
            raise RecipeError(f"recipe of {recipe.ranker}: {path} is of format '{found.format}', not '{cls.format}'")
        module = cls.module_of(path, recipe, declared_features(recipe))
        if recipe.backbone is not None:
            if all(feature.kind != "tokens" for feature in module.features):
                raise RecipeError(f"recipe of {recipe.ranker}: backbone, but no feature of kind 'tokens'; leave it out")
            module.tokenizer_file = str(recipe.path(recipe.backbone) / TOKENIZER)
        return cls(recipe.ranker, module, cls.files_of(path))

    @classmethod
    @abc.abstractmethod
    def module_of(cls, path: Path, recipe: Recipe, features: Sequence[Feature]) -> FileModule:
        """The file as a module. Raises: CheckpointError, RecipeError."""

    @classmethod
    def files_of(cls, path: Path) -> list[Path]:
        """What scores depend on."""
        return [path]

    @property
    def facts(self) -> Sequence[str]:
        """What is done to each made tensor, a line each."""
        assert isinstance(self.module, FileModule)
        return [
            f"input {one.input}, made as {one.feature.kind}"
            + (f", cast from {one.feature.dtype}" if one.cast else "")
            + (", repeated for each candidate" if one.repeated else "")
            for one in self.module.inputs
        ]
