"""No trainer writes a checkpoint after a loss that is no number; the one of before stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from builders.core.recipe import load_recipe
from builders.core.workspace import REPOSITORY_ROOT
from builders.data.beir import JudgedQueries, Product, write_judged
from builders.training import cross_encoder, recommenders, st_cross_encoder, text
from builders.training.errors import TrainingError
from builders.training.finite import check_loss, check_weights
from tests.support.purchase_lines import generated_folder, small_recipe
from tests.support.tiny_bert import write_tiny_bert

WORDS = ("red", "blue", "green", "shoe", "tent", "mug", "lamp", "acme", "set")
DIVERGING = float("inf")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    products = {word: Product(word, f"{word} set", category=(word,)) for word in WORDS}
    grades = {word: {other: 3 if other == word else 0 for other in WORDS} for word in WORDS}
    write_judged(JudgedQueries({word: word for word in WORDS}, products, grades), folder)
    return folder


def _recommender(out: Path, _data: Path, _backbone: Path) -> Path:
    recipe = small_recipe("ncf", learning_rate=DIVERGING)
    module = str(REPOSITORY_ROOT / "builders/rankers/ncf.py:NCF")
    changed = {"root": out.parent, "module": module, "checkpoint": out}
    return recommenders.train_interactions(recipe.model_copy(update=changed), generated_folder())


def _text(train: Callable[..., Path], ranker: str, **training: object) -> Callable[[Path, Path, Path], Path]:
    def run(out: Path, data: Path, backbone: Path) -> Path:
        recipe = load_recipe(REPOSITORY_ROOT / "recipes" / f"{ranker}.toml")
        changed = {"backbone": backbone, "checkpoint": out, "training": {"threads": 1, **training}}
        return train(recipe.model_copy(update=changed), data)

    return run


def _cross_encoder(out: Path, data: Path, backbone: Path) -> Path:
    settings = {"pseudo_queries": 0, "tune_learning_rate": DIVERGING, "lora_rank": 2, "threads": 1}
    return cross_encoder.train_cross_encoder(data, out, settings, backbone)


TINY = {"width": 16, "vector": 16}
TRAINERS = {
    "recommender": _recommender,
    "text matcher": _text(
        text.train_text_ranker, "text_cnn", network={**TINY, "channels": 8}, distill_epochs=0,
        tune_learning_rate=DIVERGING,
    ),
    "intent": _text(text.train_intent, "intent", network={"width": 16, "hidden": 16}, learning_rate=DIVERGING),
    "cross-encoder": _cross_encoder,
    "sentence-transformers": _text(
        st_cross_encoder.train_from_recipe, "examples/st_cross_encoder", batch=4,
        learning_rate=DIVERGING,
    ),
}  # fmt: skip


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_diverged_training_writes_nothing_and_says_where(
    trainer: str, data: Path, backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "checkpoint"
    out.mkdir()
    (out / "weights").write_bytes(b"of before")
    wanted = r"training diverged, (the loss is (nan|inf) at step \d+ of \d+|after the last step .* are not finite)"
    with pytest.raises(TrainingError, match=f"{wanted}.*nothing was written .* lower the learning rate"):
        TRAINERS[trainer](out, data, backbone)
    assert [(file.name, file.read_bytes()) for file in tmp_path.rglob("*") if file.is_file()] == [
        ("weights", b"of before")
    ]


def test_a_loss_that_is_a_number_passes_and_one_that_is_none_names_step_and_epoch() -> None:
    assert check_loss(torch.tensor(0.5), "x", 1, 9) == 0.5
    with pytest.raises(TrainingError, match=r"x: training diverged, the loss is nan at step 7 of 9 \(epoch 3 of 3\)"):
        check_loss(math.nan, "x", 7, 9, epochs=3)


def test_weights_that_the_checkpoint_cannot_hold_are_refused() -> None:
    network = torch.nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(1e5)
    check_weights(network, "x")
    with pytest.raises(TrainingError, match="after the last step weight are not finite as float16"):
        check_weights(network, "x", torch.float16)
