"""Recipes: the kit's own load, and every fault of a broken one is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from builders.core.recipe import Gate, Recipe, RecipeError, Serving, Variant, load_recipe, load_recipes
from builders.core.workspace import REPOSITORY_ROOT
from builders.rankers.load import load_ranker

GOOD = """
ranker = "cross_encoder"
module = "builders/rankers/cross_encoder.py:CrossEncoderRanker"
[[variants]]
name = "fp32_onnx"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_kits_recipes_load_under_their_rankers_names() -> None:
    recipes = load_recipes()
    assert {"cross_encoder", "two_tower"} <= set(recipes)
    assert all(recipe.ranker == name for name, recipe in recipes.items())
    assert all((REPOSITORY_ROOT / recipe.module.split(":")[0]).is_file() for recipe in recipes.values())


def test_a_short_recipe_is_filled_with_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD))
    assert recipe.backbone is None
    assert recipe.serving == Serving()
    assert recipe.gate == Gate()
    assert [recipe.model_name(variant) for variant in recipe.variants] == ["cross_encoder_fp32_onnx"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('ranker = "cross_encoder"', 'ranker = "Cross-Encoder"', "ranker: String should match pattern"),
        ('ranker = "cross_encoder"', "", "ranker: Field required"),
        ("cross_encoder.py:CrossEncoderRanker", "cross_encoder", "module: String should match pattern"),
        ('name = "fp32_onnx"', 'name = "fp32"', "variants.0.name: String should match pattern"),
        (
            'name = "fp32_onnx"',
            'name = "a_onnx"\nsteps = [{step = "int8", method = "guess"}]',
            "steps.0.int8.method: Input should be",
        ),
        ('name = "fp32_onnx"', 'name = "a_onnx"\nsteps = [{step = "int4"}]', "steps.0: Input tag 'int4' found"),
        ('name = "fp32_onnx"', 'name = "a_onnx"\nfp4 = true', "variants.0.fp4: Extra inputs are not permitted"),
        ('[[variants]]\nname = "fp32_onnx"', "variants = []", "variants: Tuple should have at least 1 item"),
        ("[[variants]]", "[gate]\nmin_fidelity_ndcg = 1.5\n[[variants]]", "gate.min_fidelity_ndcg: Input should be"),
        ("[[variants]]", "[serving]\nthreads = 0\n[[variants]]", "serving.threads: Input should be greater"),
    ],
)
def test_a_field_that_is_missing_unknown_or_out_of_range_is_refused_by_name(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError) as refusal:
        load_recipe(written(tmp_path, GOOD.replace(old, new)))
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (
            '[{step = "fp16"}, {step = "prune_heads", amount = 0.5}]',
            "wanted those of the network before those of the graph",
        ),
        ('[{step = "bf16"}]', "bf16 with the runtime onnx, wanted a variant ..._openvino"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(tmp_path: Path, variant: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(complaint)):
        load_recipe(written(tmp_path, f'{GOOD}\n[[variants]]\nname = "b_onnx"\nsteps = {variant}\n'))


@pytest.mark.parametrize(
    ("variants", "complaint"),
    [
        ('[[variants]]\nname = "a_onnx"\nsteps = [{step = "int8"}]', "it is the reference of the others"),
        ('[[variants]]\nname = "a_openvino"', "it is the reference of the others"),
        ('[[variants]]\nname = "a_onnx"\n[[variants]]\nname = "a_onnx"', "variants a_onnx stand there twice"),
    ],
)
def test_the_first_variant_is_the_exact_one_and_names_are_unique(tmp_path: Path, variants: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(written(tmp_path, GOOD.replace('[[variants]]\nname = "fp32_onnx"', variants)))


def test_nncf_knows_no_entropy(tmp_path: Path) -> None:
    variant = '[[variants]]\nname = "b_openvino"\nsteps = [{step = "int8", method = "entropy"}]\n'
    with pytest.raises(RecipeError, match="int8 by entropy with the runtime openvino, wanted minmax"):
        load_recipe(written(tmp_path, f"{GOOD}\n{variant}"))


def test_a_variants_own_limits_stand_in_place_of_the_recipes(tmp_path: Path) -> None:
    variant = '[[variants]]\nname = "b_onnx"\nsteps = [{step = "fp16"}]\ngate = { min_fidelity_ndcg = 0.9 }\n'
    recipe = load_recipe(written(tmp_path, f"{GOOD}\n{variant}\n[gate]\nmax_judged_loss = 0.05\n"))
    first, own = recipe.variants
    assert recipe.gate_of(first) == recipe.gate
    assert recipe.gate_of(own) == Gate(max_judged_loss=0.05, min_fidelity_ndcg=0.9)


def test_a_name_says_the_runtime_and_steps_part_into_network_and_graph() -> None:
    steps = [{"step": "prune_heads", "amount": 0.5}, {"step": "int8"}, {"step": "bf16"}]
    variant = Variant.model_validate({"name": "small_openvino", "steps": steps})
    assert variant.runtime.name == "openvino"
    assert [step.step for step in variant.network_steps] == ["prune_heads"]
    assert [step.step for step in variant.graph_steps] == ["int8", "bf16"]
    assert not variant.exact
    assert Variant(name="fp32_openvino").exact


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    broken = GOOD.replace('name = "fp32_onnx"', 'name = "fp32"').replace('ranker = "cross_encoder"', "colour = 1")
    with pytest.raises(RecipeError, match=r"recipe\.toml: .*ranker.*; .*variants\.0\.name.*; colour"):
        load_recipe(written(tmp_path, broken))


def test_a_file_that_is_not_there_or_not_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe at '.*absent\.toml'; 'ls recipes'"):
        load_recipe(tmp_path / "absent.toml")
    with pytest.raises(RecipeError, match=r"recipe\.toml: not TOML: Invalid value"):
        load_recipe(written(tmp_path, "ranker = "))


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        ("builders/rankers/absent.py:Ranker", r"module '.*absent\.py' is not there; wanted <file>\.py:<name>"),
        ("builders/features/text.py:Absent", r"text\.py' has no 'Absent'"),
        (
            "builders/features/text.py:load_tokenizer",
            r"is no class derived from torch\.nn\.Module or builders\.rankers\.base\.Ranker",
        ),
    ],
)
def test_a_module_that_gives_no_ranker_is_refused(tmp_path: Path, module: str, complaint: str) -> None:
    changes = {"module": module, "root": REPOSITORY_ROOT}
    recipe: Recipe = load_recipe(written(tmp_path, GOOD)).model_copy(update=changes)
    with pytest.raises(RecipeError, match=complaint):
        load_ranker(recipe)
