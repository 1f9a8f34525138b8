"""Training the small text networks on a tiny backbone: they learn, are repeatable, and read no test query."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.core.recipe import Recipe, RecipeError, Variant, load_recipe
from builders.core.training_settings import IntentSettings, MatcherSettings
from builders.core.workspace import REPOSITORY_ROOT
from builders.data.beir import JudgedQueries, Product, Request, is_test_query, write_judged
from builders.rankers.checkpoint import CONFIG, FEATURES, WEIGHTS
from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.intent import Intent
from builders.rankers.text_cnn import TextCnn
from builders.training.errors import TrainingError
from builders.training.text import train_intent, train_text_ranker
from tests.support.tiny_bert import write_tiny_bert

COLORS, THINGS = ("red", "blue", "green"), ("shoe", "tent", "mug", "lamp")
TINY = {"width": 16, "vector": 16}
QUICK: dict[str, dict[str, Any]] = {
    "bilstm": {"network": {**TINY, "hidden": 8}, "pseudo_query_sets": 1, "distill_epochs": 1, "threads": 1},
    "text_cnn": {"network": {**TINY, "channels": 8}, "pseudo_query_sets": 1, "distill_epochs": 1, "threads": 1},
    "intent": {"network": {"width": 16, "hidden": 16}, "epochs": 1, "threads": 1},
}
TRAINERS = {"bilstm": train_text_ranker, "text_cnn": train_text_ranker, "intent": train_intent}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def shop() -> JudgedQueries:
    """Every color and thing; Exact is both, Substitute the thing alone; a category a thing."""
    pairs = list(itertools.product(COLORS, THINGS))
    products = {
        f"p{n}": Product(f"p{n}", f"acme {color} {thing} set", brand="acme", category=(thing,))
        for n, (color, thing) in enumerate(pairs)
    }
    queries = {f"q{n}": f"{color} {thing}" for n, (color, thing) in enumerate(pairs)}
    grades = {
        f"q{n}": {f"p{m}": 3 if pair == other else 2 if pair[1] == other[1] else 0 for m, other in enumerate(pairs)}
        for n, pair in enumerate(pairs)
    }
    return JudgedQueries(queries, products, grades)


@pytest.fixture(scope="module")
def data(shop: JudgedQueries, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_judged(shop, folder)
    return folder


def recipe_of(ranker: str, backbone: Path, out: Path, **training: Any) -> Recipe:
    """The committed recipe, made small."""
    committed = load_recipe(REPOSITORY_ROOT / "recipes" / f"{ranker}.toml")
    fields = {"backbone": backbone, "checkpoint": out, "training": {**QUICK[ranker], **training}}
    return committed.model_copy(update=fields)


@pytest.mark.parametrize("ranker", TRAINERS)
def test_the_same_seed_gives_the_same_files(ranker: str, data: Path, backbone: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        written = TRAINERS[ranker](recipe_of(ranker, backbone, tmp_path / name), data)
        assert written == tmp_path / name
    for file in (CONFIG, FEATURES, WEIGHTS):
        digests = {hashlib.sha256((tmp_path / name / file).read_bytes()).hexdigest() for name in ("first", "second")}
        assert len(digests) == 1, file


@pytest.mark.parametrize("ranker", TRAINERS)
def test_answers_to_test_queries_change_nothing(
    ranker: str, shop: JudgedQueries, data: Path, backbone: Path, tmp_path: Path
) -> None:
    turned = {
        query_id: {item_id: 3 - grade for item_id, grade in grades.items()}
        if is_test_query(shop.queries[query_id])
        else grades
        for query_id, grades in shop.judgements.items()
    }
    assert turned != shop.judgements
    other = tmp_path / "data"
    other.mkdir()
    write_judged(JudgedQueries(shop.queries, shop.products, turned), other)
    for folder, name in ((data, "as judged"), (other, "turned")):
        TRAINERS[ranker](recipe_of(ranker, backbone, tmp_path / name), folder)
    assert (tmp_path / "as judged" / WEIGHTS).read_bytes() == (tmp_path / "turned" / WEIGHTS).read_bytes()


def test_a_ranker_learns_its_training_queries(shop: JudgedQueries, data: Path, backbone: Path, tmp_path: Path) -> None:
    train_text_ranker(
        recipe_of("text_cnn", backbone, tmp_path, distill_epochs=0, tune_epochs=40, tune_learning_rate=1e-2), data
    )
    ranker = FeatureRanker("text_cnn", TextCnn.from_checkpoint(tmp_path, backbone))
    for query_id, query in shop.subset("train").queries.items():
        items = list(shop.judgements[query_id])
        scores = ranker.score(Request(query), [shop.products[item_id] for item_id in items])
        assert shop.judgements[query_id][items[int(scores.argmax())]] == 3, query


def test_intent_learns_the_titles(shop: JudgedQueries, data: Path, backbone: Path, tmp_path: Path) -> None:
    train_intent(recipe_of("intent", backbone, tmp_path, epochs=60, batch=8, learning_rate=1e-2), data)
    ranker = FeatureRanker("intent", Intent.from_checkpoint(tmp_path, backbone))
    categories = [Product(thing, thing) for thing in THINGS]
    found = {thing: THINGS[int(ranker.score(Request(f"acme red {thing}"), categories).argmax())] for thing in THINGS}
    assert found == {thing: thing for thing in THINGS}


def test_distilling_moves_the_ranker_towards_the_two_tower(data: Path, backbone: Path, tmp_path: Path) -> None:
    for epochs in (0, 1):
        train_text_ranker(
            recipe_of("text_cnn", backbone, tmp_path / str(epochs), distill_epochs=epochs, tune_epochs=0), data
        )
    undistilled, distilled = (TextCnn.from_checkpoint(tmp_path / str(epochs), backbone) for epochs in (0, 1))
    assert not torch.equal(undistilled.dense.weight, distilled.dense.weight)


@pytest.mark.parametrize("ranker", TRAINERS)
def test_data_without_training_queries_is_refused(
    ranker: str, shop: JudgedQueries, backbone: Path, tmp_path: Path
) -> None:
    write_judged(shop.subset("test"), tmp_path)
    with pytest.raises(TrainingError, match="no training query"):
        TRAINERS[ranker](recipe_of(ranker, backbone, tmp_path / "out"), tmp_path)


@pytest.mark.parametrize("settings", [MatcherSettings, IntentSettings])
def test_unknown_field_of_the_recipe_is_named(settings: type[MatcherSettings | IntentSettings]) -> None:
    with pytest.raises(
        RecipeError, match=r"^training\.learning_speed: unknown field; did you mean '\w*learning_rate'\?$"
    ):
        settings.of({"learning_speed": 1})


def test_a_recipe_of_another_kind_of_network_is_refused(data: Path, backbone: Path, tmp_path: Path) -> None:
    wrong = Recipe(
        ranker="intent",
        module="builders/rankers/intent.py:Intent",
        checkpoint=tmp_path,
        variants=(Variant(name="fp32_onnx"),),
        backbone=backbone,
    )
    with pytest.raises(TrainingError, match="is no TextMatcher"):
        train_text_ranker(wrong, data)
