"""Library checkpoints from ``init`` to a repository, as a user takes them: one workspace, recipe after recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from builders.build import build_ranker
from builders.core.recipe import Recipe, load_recipe
from builders.core.workspace import Workspace
from builders.data.beir import JudgedQueries
from builders.init_recipe import init_recipe
from builders.publish.catalogue import fill_item_store
from builders.publish.endpoints import publish_rankers

Write = Callable[[Path], Path]
REFERENCE_LISTS = 2
"""That the build itself compares with the library: one of them is of the longest texts."""


def recipe_of(folder: Path, name: str, item: str, place: Path) -> Recipe:
    """What ``init`` writes for the folder, with the template that its training used."""
    path = init_recipe(folder, name, place / f"{name}.toml", False, lambda _: None)
    path.write_text(path.read_text(encoding="utf-8").replace('"{title}"', f'"{item}"', 1), encoding="utf-8")
    recipe = load_recipe(path)
    return recipe.model_copy(update={"reference": recipe.reference.model_copy(update={"lists": REFERENCE_LISTS})})


def published(checkpoints: Mapping[str, Write], judged: JudgedQueries, item: str, place: Path) -> Workspace:
    """Each built and published apart, in this order. checkpoints: ranker => what writes its folder below a place."""
    workspace = Workspace(place / "build", place / "models", place / "store")
    for name, write in checkpoints.items():
        folder = write(place / "checkpoints" / name)
        built = build_ranker(recipe_of(folder, name, item, place), judged, lambda _: None, workspace)
        fill_item_store([built], lambda _: None, workspace)
        publish_rankers([built], {}, "made up", lambda _: None, workspace)
    return workspace
