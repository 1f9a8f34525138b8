"""Contracts of post-processing, the recipe's table for it, and the stored attributes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builders.core.contract import FALLBACK, RULE_INPUTS, SIMILAR, Contract, ContractError
from builders.core.recipe import Postprocess, RecipeError, RuleDefaults, load_recipe
from builders.data.beir import DatasetError, Product
from builders.publish.postprocessing import attribute_records, postprocess_contract, similar_contract

RECIPE = """
ranker = "r"
module = "r.py:R"
[[variants]]
name = "fp32_onnx"
"""


def recipe_with(folder: Path, table: str) -> Any:
    path = folder / "r.toml"
    path.write_text(RECIPE + table)
    return load_recipe(path)


def test_a_single_head_needs_no_weight_and_every_rule_input_is_optional() -> None:
    contract = postprocess_contract()

    assert contract.name == "postprocess"
    assert contract.input("score").dims == ("candidates", 1)
    assert [tensor for tensor in contract.inputs if tensor.optional][1:] == list(RULE_INPUTS)
    assert contract.parameters["head_weights"] == []
    assert FALLBACK not in contract.inputs


def test_heads_weights_rules_and_fallback_are_in_the_contract() -> None:
    rules = RuleDefaults(in_stock_only=True, boosts={"brand=Acme": 0.5}, pins={"a": 1}, max_per_brand=2)
    contract = postprocess_contract("post", heads=2, head_weights=(0.7, 0.3), rules=rules, falls_back=True)

    assert contract.input("score").dims == ("candidates", 2)
    assert contract.parameters["head_weights"] == [0.7, 0.3]
    assert contract.parameters["rules"] == {
        "in_stock_only": True,
        "boosts": {"brand=Acme": 0.5},
        "pins": {"a": 1},
        "max_per_brand": 2,
    }
    assert FALLBACK in contract.inputs
    assert Contract.from_json(contract.to_json()) == contract


@pytest.mark.parametrize(("heads", "weights"), [(2, ()), (2, (1.0,)), (1, (1.0, 2.0))])
def test_a_weight_is_wanted_for_each_head(heads: int, weights: tuple[float, ...]) -> None:
    with pytest.raises(ContractError) as refusal:
        postprocess_contract("post", heads=heads, head_weights=weights)

    assert str(refusal.value) == (
        f"post: {len(weights)} head_weights for a score of {heads} heads, wanted one each: set head_weights = "
        f"{[1.0] * heads} (or as you weigh them) under [postprocess] in the recipe"
    )


def test_similar_names_the_vectors_that_it_was_built_for() -> None:
    contract = similar_contract("two_tower", "abc", 384)

    assert (contract.inputs, contract.outputs) == (SIMILAR.inputs, SIMILAR.outputs)
    assert contract.parameters["item_features"] == "two_tower"
    assert contract.parameters["item_features_version"] == "abc"
    assert contract.parameters["vector_width"] == 384


# ---------------------------------------------------------------- the recipe's table
def test_a_recipe_without_the_table_has_no_rule(tmp_path: Path) -> None:
    assert recipe_with(tmp_path, "").postprocess == Postprocess()
    assert not any(postprocess_contract().parameters["rules"].values())


def test_a_recipe_declares_weights_and_rules(tmp_path: Path) -> None:
    table = """
[postprocess]
head_weights = [1, 0.25]
[postprocess.rules]
in_stock_only = true
max_per_brand = 3
boosts = { "brand=Acme" = 0.2, "color=a=b" = -1 }
pins = { B01 = 1, B02 = 4 }
"""
    settings = recipe_with(tmp_path, table).postprocess

    assert settings.head_weights == (1, 0.25)
    assert settings.rules.boosts == {"brand=Acme": 0.2, "color=a=b": -1}
    assert settings.rules.pins == {"B01": 1, "B02": 4}
    assert (settings.rules.in_stock_only, settings.rules.max_per_brand) == (True, 3)


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ('boosts = { "brand" = 1 }', "String should match pattern"),
        ('boosts = { "=Acme" = 1 }', "String should match pattern"),
        ('boosts = { "brand=Acme" = nan }', "finite number|greater than|less than"),
        ('boosts = { "brand=Acme" = 2e6 }', "less than or equal to 1000000"),
        ("pins = { a = 0 }", "greater than or equal to 1"),
        ("pins = { a = 2, b = 2 }", "wanted a position each"),
        ("max_per_brand = -1", "greater than or equal to 0"),
        ("max_per_colour = 1", r"max_per_colour: unknown field; did you mean 'max_per_brand'\?"),
    ],
)
def test_a_recipes_bad_rule_is_refused(tmp_path: Path, rule: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        recipe_with(tmp_path, f"[postprocess.rules]\n{rule}\n")


# ---------------------------------------------------------------- stored attributes
def record(**fields: Any) -> Any:
    ((item_id, value),) = attribute_records([Product("a", "title", **fields)])
    assert item_id == "a"
    return json.loads(value)


def test_attributes_are_brand_color_widest_category_and_further_fields() -> None:
    found = record(
        brand="Acmé",
        color="red",
        category=("Home", "Kitchen"),
        fields={"in_stock": False, "season": "winter", "age": 3},
    )

    assert found == {
        "brand": "Acmé", "color": "red", "category": "Home", "in_stock": False, "season": "winter", "age": 3
    }  # fmt: skip


def test_what_is_absent_or_no_text_number_or_boolean_is_left_out() -> None:
    fields = {"in_stock": None, "image": [0.1, 0.2], "sizes": {"a": 1}, "note": "", "weight": float("nan")}

    assert record(fields=fields) == {}


@pytest.mark.parametrize("value", [0, "no", "false", []])
def test_in_stock_must_be_a_boolean(value: Any) -> None:
    with pytest.raises(DatasetError, match=r"item 'a': in_stock is .*, wanted true, false or nothing"):
        record(fields={"in_stock": value})
