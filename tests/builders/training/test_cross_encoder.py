"""Training on a tiny backbone: it learns, is repeatable, reads no test query, and explains what it refuses."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
import torch

from builders.core.recipe import RecipeError, load_recipe
from builders.core.training_settings import CrossEncoderSettings
from builders.core.workspace import REPOSITORY_ROOT
from builders.data.beir import JudgedQueries, Product, is_test_query, write_judged
from builders.features.text import load_tokenizer
from builders.rankers.cross_encoder import ADAPTER_CONFIG, ADAPTER_FILE, HEAD_FILE, CrossEncoder
from builders.rankers.two_tower import TwoTower
from builders.training.cross_encoder import (
    TrainingError,
    cross_validate,
    listnet,
    pairwise,
    train_cross_encoder,
    train_from_recipe,
)
from builders.training.pseudo_queries import pseudo_queries
from tests.support.tiny_bert import write_tiny_bert

QUICK = {"pseudo_queries": 6, "distill_batch": 3, "tune_epochs": 1, "candidates": 4, "lora_rank": 2, "folds": 2}
COLORS, THINGS = ("red", "blue", "green"), ("shoe", "tent", "mug", "lamp")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def judged() -> JudgedQueries:
    """Every color and thing; Exact is both, Substitute the thing alone."""
    pairs = list(itertools.product(COLORS, THINGS))
    products = {
        f"p{n}": Product(f"p{n}", f"acme {color} {thing} set", brand="acme") for n, (color, thing) in enumerate(pairs)
    }
    queries = {f"q{n}": f"{color} {thing}" for n, (color, thing) in enumerate(pairs)}
    grades = {
        f"q{n}": {f"p{m}": 3 if pair == other else 2 if pair[1] == other[1] else 0 for m, other in enumerate(pairs)}
        for n, pair in enumerate(pairs)
    }
    return JudgedQueries(queries, products, grades)


@pytest.fixture(scope="module")
def data(judged: JudgedQueries, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_judged(judged, folder)
    return folder


def test_the_same_seed_gives_the_same_files(data: Path, backbone: Path, tmp_path: Path) -> None:
    runs = [train_cross_encoder(data, tmp_path / name, QUICK, backbone) for name in ("first", "second")]
    for file in (ADAPTER_CONFIG, ADAPTER_FILE, HEAD_FILE):
        assert len({hashlib.sha256((run / file).read_bytes()).hexdigest() for run in runs}) == 1, file


def test_what_is_written_loads(data: Path, backbone: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("model card")
    train_cross_encoder(data, tmp_path, QUICK, backbone)
    assert (tmp_path / "README.md").read_text() == "model card"
    trained, untrained = (CrossEncoder.from_checkpoint(folder, backbone) for folder in (tmp_path, None))
    assert any(
        (a != b).any() for a, b in zip(trained.state_dict().values(), untrained.state_dict().values(), strict=True)
    )


def test_test_queries_are_never_read(data: Path, backbone: Path, judged: JudgedQueries) -> None:
    found = cross_validate(data, QUICK, backbone)
    assert set(found) == {query_id for query_id, text in judged.queries.items() if not is_test_query(text)}
    assert all(0 <= ndcg <= 1 for ndcg in found.values())


def test_data_without_training_queries_is_refused(judged: JudgedQueries, backbone: Path, tmp_path: Path) -> None:
    write_judged(judged.subset("test"), tmp_path)
    with pytest.raises(TrainingError, match="no training query"):
        train_cross_encoder(tmp_path, tmp_path / "out", QUICK, backbone)


def test_unknown_field_of_the_recipe_is_named() -> None:
    with pytest.raises(
        RecipeError, match=r"^training\.learning_speed: unknown field; did you mean '\w*learning_rate'\?$"
    ):
        CrossEncoderSettings.of({"learning_speed": 1})


def test_a_recipe_without_a_checkpoint_folder_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(REPOSITORY_ROOT / "recipes" / "cross_encoder.toml").model_copy(update={"checkpoint": None})
    with pytest.raises(TrainingError, match="cross_encoder: no checkpoint in the recipe; add checkpoint"):
        train_from_recipe(recipe, tmp_path)


def test_listnet_is_zero_where_scores_equal_the_targets_up_to_a_constant() -> None:
    targets = torch.tensor([3.0, 1.0, -2.0])
    assert listnet(targets + 5, targets).item() == pytest.approx(0, abs=1e-6)
    assert listnet(-targets, targets).item() > 1


def test_pairwise_falls_when_the_better_one_rises() -> None:
    gains = torch.tensor([1.0, 0.1, 0.0])
    assert pairwise(torch.tensor([2.0, 0.0, -2.0]), gains) < pairwise(torch.tensor([-2.0, 0.0, 2.0]), gains)


def test_pseudo_queries_are_seeded_and_hold_their_own_product_first(judged: JudgedQueries, backbone: Path) -> None:
    products = list(judged.products.values())
    teacher, tokenizer = TwoTower.from_checkpoint(backbone), load_tokenizer(backbone)
    first, again = (pseudo_queries(products, teacher, tokenizer, 5, seed=1) for _ in range(2))
    assert first == again and len(first) == 5
    for made in first:
        assert set(made.text.split()) <= set(products[made.candidates[0]].title.split())
        assert len(made.candidates) == len(made.cosines) == len(set(made.candidates))
