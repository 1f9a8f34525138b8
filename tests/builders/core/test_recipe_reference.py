"""The committed page of a recipe's fields is what the models that parse one say, and each field says what it means."""

from __future__ import annotations

import pydantic
import pytest

from builders.core import recipe_reference
from builders.core.recipe_reference import PAGE, STEPS, meanings, models, papers, reference, told_fields
from builders.core.steps import Settings


def test_the_committed_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run 'python -m builders recipe-reference'"


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_every_field_has_a_meaning(model: type[pydantic.BaseModel]) -> None:
    assert sorted(meanings(model)) == sorted(told_fields(model))
    assert all(len(meaning.split()) > 1 for meaning in meanings(model).values())


def test_a_field_without_a_meaning_would_be_seen() -> None:
    class Table(Settings):
        """A table.

        Attributes:
            told: with a meaning that
                goes on.
        """

        told: int = 1
        untold: int = 1

    assert told_fields(Table) == ["told", "untold"]
    assert meanings(Table) == {"told": "with a meaning that goes on."}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_every_step_names_its_paper_and_stands_on_the_page(step: type[pydantic.BaseModel]) -> None:
    assert papers(step)
    assert f"\n### `{recipe_reference.tag_of(step)}`\n" in reference()


def test_every_model_that_a_recipe_is_parsed_with_stands_on_the_page() -> None:
    def within(model: type[pydantic.BaseModel]) -> set[type[pydantic.BaseModel]]:
        inner = {each for field in model.model_fields.values() for each in recipe_reference.models_in(field.annotation)}
        return inner.union(*map(within, inner))

    parsed = within(recipe_reference.recipe.Recipe) - {recipe_reference.recipe.TrainerSettings}
    assert parsed <= set(models())
