"""A checkpoint's folder => the recipe that serves it: ``python -m builders init FOLDER``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from builders.compress.context import Say
from builders.core.files import write_atomically
from builders.core.recipe import FILE_FORMATS, Recipe, RecipeError, load_recipe
from builders.core.workspace import REPOSITORY_ROOT
from builders.rankers.base import Ranker
from builders.rankers.imported.base import ImportedRanker
from builders.rankers.imported.folder import Found, look_at
from builders.rankers.load import load_ranker

TEMPLATES = Path(__file__).parent
TEMPLATE = "init_recipe.toml.j2"
DEFAULT_ITEM = "{title}"


def init_recipe(
    path: Path,
    name: str | None,
    out: Path | None,
    trust_remote_code: bool,
    say: Say = print,
    *,
    trained_on_judgements: bool = False,
) -> Path:
    """Look at the folder, load what is there, say what was found, and write the recipe.

    Args:
        path: the folder or file.
        name: of the ranker; None = made of the folder's.
        out: the recipe's file; None = ``recipes/<name>.toml``.
        trust_remote_code: whether Python code in the folder may run.
        trained_on_judgements: whether it was trained on the data's training queries; then only the others judge it.

    Raises:
        CheckpointError: it cannot be served as its library computes it; nothing is written.
        RecipeError: the recipe is there already, or the name is none.
    """
    found = look_at(path.resolve())
    for fact in found.facts:
        say(f"found {fact}")
    name = name or re.sub(r"[^a-z0-9]+", "_", found.path.stem.lower()).strip("_")
    target = out or REPOSITORY_ROOT / "recipes" / f"{name}.toml"
    if target.exists():
        raise RecipeError(f"{target}: is there already; remove it, or name another with --name or --out")
    _check_name(name)
    if found.format in FILE_FORMATS:
        from builders.init_file_recipe import write_file_recipe

        return write_file_recipe(found, name, target, _environment(), say)
    recipe = _bare(found, name, trust_remote_code, trained_on_judgements)
    ranker = load_ranker(recipe)
    for fact in ranker.facts if isinstance(ranker, ImportedRanker) else ():
        say(fact)
    write_atomically(target, _rendered(recipe, ranker, found))
    load_recipe(target)  # as the next command will
    say(f"written: {target}. Now: python -m builders build {target}")
    return target


def _bare(found: Found, name: str, trust_remote_code: bool, trained_on_judgements: bool) -> Recipe:
    content: dict[str, Any] = {
        "ranker": name, "format": found.format, "checkpoint": found.path, "text": {"item": DEFAULT_ITEM},
        "trust_remote_code": trust_remote_code, "trained_on_judgements": trained_on_judgements,
        "variants": [{"name": "fp32_onnx"}],
    }  # fmt: skip
    return Recipe.model_validate(content)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise RecipeError(f"name '{name}', wanted a letter, then letters, digits and _, all lower case: give --name")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["toml"] = _toml
    return environment


def _rendered(recipe: Recipe, ranker: Ranker, found: Found) -> str:
    text: Mapping[str, Any] = {"item": DEFAULT_ITEM}
    head_weights: Sequence[float] = ()
    facts: Sequence[str] = ()
    if isinstance(ranker, ImportedRanker):
        text, head_weights, facts = {**text, **ranker.own_text}, ranker.head_weights, ranker.facts
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(recipe=recipe, text=text, head_weights=list(head_weights), facts=[*found.facts, *facts])
    )


def _toml(value: Any) -> str:
    """TOML's basic strings, numbers, booleans and arrays are JSON's."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
