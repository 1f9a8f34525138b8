"""A recipe => its ranker: the class that it names, with the checkpoint that it names."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from torch import nn

from builders.core.contract import ContractError
from builders.core.errors import BuilderError
from builders.core.files import fingerprint
from builders.core.recipe import Recipe, RecipeError, load_recipe
from builders.core.workspace import REPOSITORY_ROOT
from builders.features.checks import feature_faults_as
from builders.features.encoder import FeatureError
from builders.rankers.base import Ranker, folders_of
from builders.rankers.feature_ranker import FeatureRanker

FORMATS = {
    "cross_encoder": "builders.rankers.imported.cross_encoder:ImportedCrossEncoder",
    "bi_encoder": "builders.rankers.imported.bi_encoder:ImportedBiEncoder",
    "onnx": "builders.rankers.imported.onnx_file:OnnxFile",
    "torch_export": "builders.rankers.imported.exported_program:ExportedProgramFile",
    "late_interaction": "builders.rankers.imported.late_interaction:ImportedLateInteraction",
    "causal_reranker": "builders.rankers.imported.causal_reranker:ImportedCausalReranker",
}
"""Format of a library's checkpoint => the class that serves it; imported when it is asked for."""


def load_ranker(recipe: Recipe) -> Ranker:
    """Import what the recipe names and load its checkpoint.

    Raises:
        RecipeError: the file or the class is not there, the class is neither a Ranker nor a torch.nn.Module, or it does
            not read the recipe's [text].
        ContractError: a module whose declared features cannot be, or no network could take.
        CheckpointError: a library's checkpoint that cannot be served as the library computes it.
    """
    loaded = _class_of(recipe)
    is_class = isinstance(loaded, type)
    reads = loaded.reads_text if is_class and issubclass(loaded, Ranker) else ()
    if unread := sorted(recipe.text.model_fields_set.difference(reads)):
        raise RecipeError(
            f"recipe of {recipe.ranker}: [text] sets {', '.join(unread)}, which {getattr(loaded, '__name__', loaded)} "
            f"does not read; it reads {', '.join(reads) or 'none of that table'}"
        )
    with feature_faults_as(ContractError, f"recipe of {recipe.ranker}"):
        if is_class and issubclass(loaded, Ranker):
            return loaded.from_recipe(recipe)
        if is_class and issubclass(loaded, nn.Module):
            return FeatureRanker.load(recipe.ranker, loaded, **folders_of(recipe))
    raise RecipeError(
        f"recipe of {recipe.ranker}: '{recipe.module}' is no class derived from torch.nn.Module or "
        "builders.rankers.base.Ranker"
    )


def _class_of(recipe: Recipe) -> Any:
    if recipe.format is None:
        assert recipe.module is not None  # the recipe has one of the two
        return import_from(recipe, recipe.module)
    module, name = FORMATS[recipe.format].split(":")
    return getattr(importlib.import_module(module), name)


def import_from(recipe: Recipe, reference: str | None) -> Any:
    """What ``<file>:<name>`` of a recipe refers to.

    Raises:
        RecipeError: no such file or name, or Python cannot import it.
        ContractError: it declares a feature that cannot be.
    """
    if reference is None:
        raise RecipeError(f"recipe of {recipe.ranker}: no 'module', wanted <file>.py:<name> of what is to be trained")
    file_name, name = reference.rsplit(":", 1)
    path = recipe.path(file_name)
    if not path.is_file():
        raise RecipeError(f"recipe of {recipe.ranker}: module '{path}' is not there; wanted <file>.py:<name>")
    with feature_faults_as(ContractError, f"recipe of {recipe.ranker}: '{path}'"):
        found = getattr(_imported(recipe, path), name, None)
    if found is None:
        raise RecipeError(f"recipe of {recipe.ranker}: '{path}' has no '{name}'")
    return found


@functools.cache
def load_teacher(name: str) -> Ranker:
    """The ranker of a recipe, by its name or path. Raises: RecipeError."""
    path = Path(name) if name.endswith(".toml") else REPOSITORY_ROOT / "recipes" / f"{name}.toml"
    return load_ranker(load_recipe(path))


def _imported(recipe: Recipe, path: Path) -> Any:
    try:
        return _import_file(path)
    except (BuilderError, FeatureError):
        raise
    except Exception as error:  # whatever the user's own code raises
        [*_, last] = traceback.extract_tb(error.__traceback__)
        raise RecipeError(
            f"recipe of {recipe.ranker}: '{path}' cannot be imported ({type(error).__name__}: {error}; "
            f"{last.filename}:{last.lineno}); 'python {path}' shows where"
        ) from error


def _import_file(path: Path) -> Any:
    """The module of a file of this project under its dotted name, of any other file under its own."""
    if path.is_relative_to(REPOSITORY_ROOT):  # so that pickles, patches and isinstance meet one module
        return importlib.import_module(".".join(path.relative_to(REPOSITORY_ROOT).with_suffix("").parts))
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{fingerprint([str(path)])}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # inspect and torch's exporter look classes up there
    spec.loader.exec_module(module)
    return module
