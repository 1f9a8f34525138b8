"""Recipes: the kit's own load, and every fault of a broken one is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from builders.core.contract import ContractError
from builders.core.recipe import Gate, Recipe, RecipeError, Serving, Variant, load_each, load_recipe, load_recipes
from builders.core.training_settings import MatcherSettings, RecommenderSettings
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
    modules = [recipe.module.split(":")[0] for recipe in recipes.values() if recipe.module]
    assert modules and all((REPOSITORY_ROOT / module).is_file() for module in modules)


def test_recipes_that_are_built_by_their_path_load_from_the_project() -> None:
    recipes = load_recipes(REPOSITORY_ROOT / "recipes" / "examples")
    assert {*recipes} == {"split_cross_encoder", "st_cross_encoder"}
    assert {recipe.root for recipe in recipes.values()} == {REPOSITORY_ROOT}


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
        (
            'name = "fp32_onnx"',
            'name = "a_onnx"\nfp4 = true',
            "variants.0.fp4: unknown field; wanted one of name, steps, experimental, gate",
        ),
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
    with pytest.raises(RecipeError, match=r"recipe\.toml: .*ranker.*; .*variants\.0\.name.*; colour: unknown field"):
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


# ---------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("added", "complaint"),
    [
        (
            '[[variants]]\nname = "b_onnx"\nexperimantal = true',
            "variants.1.experimantal: unknown field; did you mean 'experimental'?",
        ),
        (
            '[[variants]]\nname = "b_onnx"\nruntime = "onnx"',
            "variants.1.runtime: derived, not set (What serves it: the end of its name); leave it out",
        ),
        (
            '[[variants]]\nname = "b_onnx"\nsteps = [{step = "distil_l"}]',
            "variants.1.steps.0: Input tag 'distil_l' found",
        ),
        ('[[variants]]\nname = "b_onnx"\nsteps = [{step = "distil_l"}]', "unknown step; did you mean 'distill'?"),
        (
            '[[variants]]\nname = "b_onnx"\nsteps = [{step = "distill", learning_rat = 1}]',
            "variants.1.steps.0.distill.learning_rat: unknown field; did you mean 'learning_rate'?",
        ),
        (
            '[[variants]]\nname = "b_onnx"\nsteps = [{step = "distill", teachers = [{wieght = 1}]}]',
            "variants.1.steps.0.distill.teachers.0.wieght: unknown field; did you mean 'weight'?",
        ),
        ("[servin]\nthreads = 1", "servin: unknown field; did you mean 'serving'?"),
        (
            "[postprocess.rules]\nin_stok_only = true",
            "postprocess.rules.in_stok_only: unknown field; did you mean 'in_stock_only'?",
        ),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_known_one(tmp_path: Path, added: str, complaint: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        load_recipe(written(tmp_path, f"{GOOD}\n{added}\n"))
    assert complaint in str(refusal.value)


def test_a_derived_field_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"recipe\.toml: root: derived, not set: it is where the recipe lies: .*; leave"
    ):
        load_recipe(written(tmp_path, f'root = "/elsewhere"\n{GOOD}'))


OLD = f"""
ranker = "ncf"
module = "builders/rankers/ncf.py:NCF"
trainer = "{REPOSITORY_ROOT}/builders/training/recommenders.py:train_interactions"
[[variants]]
name = "fp32_onnx"
[[variants]]
name = "b_onnx"
trial = true
steps = [{{ step = "factorise", rank = 12 }}, {{ step = "distil", rate = 1e-3 }}]
[training]
passes = 3
rate = 1e-2
"""


def test_names_until_0_1_are_read_each_with_a_warning_that_names_file_and_name_of_now(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning) as warned:
        recipe = load_recipe(written(tmp_path, OLD))
    assert recipe.variants[1].experimental
    assert [step.model_dump(include={"step", "learning_rate"}) for step in recipe.variants[1].steps] == [
        {"step": "low_rank"},
        {"step": "distill", "learning_rate": 1e-3},
    ]
    assert recipe.training == RecommenderSettings(epochs=3, learning_rate=1e-2)
    assert {str(each.message).removeprefix(f"{tmp_path}/recipe.toml: ") for each in warned} == {
        f"{told}; the old name goes with 0.3"
        for told in (
            "variants.1.trial is now called 'experimental'",
            "variants.1.steps.0: step 'factorise' is now called 'low_rank'",
            "variants.1.steps.1: step 'distil' is now called 'distill'",
            "variants.1.steps.1.rate is now called 'learning_rate'",
            "training.passes is now called 'epochs'",
            "training.rate is now called 'learning_rate'",
        )
    }


def test_the_matchers_training_is_read_under_its_names_until_0_1(tmp_path: Path) -> None:
    table = "distil_epochs = 1\ndistil_batch = 2\ndistil_rate = 0.5\ntune_rate = 0.25"
    trainer = f'trainer = "{REPOSITORY_ROOT}/builders/training/text.py:train_text_ranker"'
    with pytest.warns(FutureWarning, match="distil_batch is now called 'distill_batch'"):
        recipe = load_recipe(written(tmp_path, f"{trainer}\n{GOOD}\n[training]\n{table}"))
    wanted = MatcherSettings(distill_epochs=1, distill_batch=2, distill_learning_rate=0.5, tune_learning_rate=0.25)
    assert recipe.training == wanted


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("old", "both", "complaint"),
    [
        (
            "trial = true",
            "trial = true\nexperimental = false",
            "variants.1.trial: is the name of 'experimental' until 0.1",
        ),
        ("passes = 3", "passes = 3\nepochs = 3", "training.passes: is the name of 'epochs' until 0.1, and both stand"),
        ("rate = 1e-3", "rate = 1e-3, learning_rate = 1e-3", "variants.1.steps.1.rate: is the name of 'learning_rate'"),
    ],
)
def test_both_spellings_at_once_are_refused(tmp_path: Path, old: str, both: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(complaint)):
        load_recipe(written(tmp_path, OLD.replace(old, both)))


@pytest.mark.filterwarnings("error")
def test_the_kits_recipes_use_the_names_of_now() -> None:
    assert load_recipes()


# ---------------------------------------------------------------- training
def test_faults_of_the_training_table_are_told_with_all_the_others(tmp_path: Path) -> None:
    text = GOOD.replace('name = "fp32_onnx"', 'name = "fp32"')
    trainer = f'trainer = "{REPOSITORY_ROOT}/builders/training/cross_encoder.py:train_from_recipe"'
    with pytest.raises(RecipeError) as refusal:
        load_recipe(written(tmp_path, f"{trainer}\n{text}\n[training]\nlora_rnk = 1\ntune_epochs = -1\n"))
    for complaint in (
        "variants.0.name: String should match pattern",
        "training.lora_rnk: unknown field; did you mean 'lora_rank'?",
        "training.tune_epochs: Input should be greater than or equal to 0",
    ):
        assert complaint in str(refusal.value)


def test_a_trainer_of_the_users_own_has_a_free_table(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, f'trainer = "mine.py:train"\n{GOOD}\n[training]\nrate = 2\nanything = 1\n'))
    assert recipe.training == {"rate": 2, "anything": 1}


def test_a_training_table_that_no_trainer_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="training: nothing reads it, there is no 'trainer'"):
        load_recipe(written(tmp_path, f"{GOOD}\n[training]\nepochs = 2\n"))


# ---------------------------------------------------------------- several recipes
def test_two_recipes_of_one_ranker_are_refused_with_both_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(GOOD, encoding="utf-8")
    found = r"b\.toml: ranker 'cross_encoder' is also that of .*a\.toml; .* give one of the two another"
    with pytest.raises(RecipeError, match=found):
        load_recipes(tmp_path)
    with pytest.raises(RecipeError, match=found):
        load_each([tmp_path / "a.toml", tmp_path / "b.toml"])


def test_a_folder_named_as_a_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot be read .*wanted a recipe's TOML file"):
        load_recipe(tmp_path)


# ---------------------------------------------------------------- a module whose features cannot be
MODULE = """
import torch
from builders.features import dense, sparse
FEATURE = {feature}
class Mine(torch.nn.Module):
    features = [FEATURE]
    {extra}
    def forward(self, price):
        return price
"""


@pytest.mark.parametrize(
    ("feature", "extra", "complaint"),
    [
        ('dense("price", [])', "", r"recipe of mine: '.*mine\.py': feature 'price': fields \[\], wanted at least one"),
        (
            'dense("price", ["price"])',
            'def __init__(self):\n        super().__init__()\n        self.features = [dense("price", ["a"], std=[0])]',
            "recipe of mine: feature 'price': std .* wanted all above 0",
        ),
    ],
)
def test_a_declaration_that_cannot_be_names_the_recipe(
    tmp_path: Path, feature: str, extra: str, complaint: str
) -> None:
    (tmp_path / "mine.py").write_text(MODULE.format(feature=feature, extra=extra), encoding="utf-8")
    text = 'ranker = "mine"\nmodule = "mine.py:Mine"\n[[variants]]\nname = "fp32_onnx"\n'
    with pytest.raises(ContractError, match=complaint):
        load_ranker(load_recipe(written(tmp_path, text)))


def test_a_module_that_python_cannot_import_is_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import os\nimport not_installed_anywhere\n", encoding="utf-8")
    text = 'ranker = "mine"\nmodule = "mine.py:Mine"\n[[variants]]\nname = "fp32_onnx"\n'
    found = r"recipe of mine: '.*mine\.py' cannot be imported \(ModuleNotFoundError: No module .*mine\.py:2\)"
    with pytest.raises(RecipeError, match=found):
        load_ranker(load_recipe(written(tmp_path, text)))
