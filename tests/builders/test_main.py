"""Verbs that take a variant find it in the kit's recipes, or in one of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.table import Table
from typer.testing import CliRunner

import builders.compress.sensitivity
from builders.__main__ import app
from builders.core.recipe import Recipe, RecipeError, Variant

OWN = """
ranker = "mine"
module = "mine.py:Mine"
[[variants]]
name = "fp32_onnx"
[[variants]]
name = "int8_onnx"
steps = [{ step = "int8" }]
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(OWN, encoding="utf-8")
    return path


def test_a_variant_of_the_users_own_recipe_is_found(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, str]] = []

    def table(recipe: Recipe, variant: Variant, *_: object) -> Table:
        found.append((recipe.ranker, variant.name))
        return Table()

    monkeypatch.setattr(builders.compress.sensitivity, "sensitivity_table", table)
    result = CliRunner().invoke(app, ["sensitivity", "mine_int8_onnx", "--recipe", str(own)], catch_exceptions=False)
    assert (result.exit_code, found) == (0, [("mine", "int8_onnx")])


@pytest.mark.parametrize("verb", ["gate", "sensitivity", "bisect", "publish"])
def test_a_variant_that_is_not_there_is_refused_with_those_that_are(verb: str, own: Path) -> None:
    with pytest.raises(RecipeError, match=r"no variant 'mine_int9_onnx' in .*mine\.toml; wanted one of mine_fp32_onnx"):
        CliRunner().invoke(app, [verb, "mine_int9_onnx", "--recipe", str(own)], catch_exceptions=False)
    with pytest.raises(RecipeError, match=r"no variant 'mine_int8_onnx' in recipes/; .*--recipe with the path"):
        CliRunner().invoke(app, [verb, "mine_int8_onnx"], catch_exceptions=False)
