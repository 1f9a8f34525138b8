"""A nightly retraining: accepted, refused, stopped and gone on with; ten times in a row."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.core.recipe import Recipe, load_recipe
from builders.core.workspace import Workspace
from builders.data.beir import CORPUS, JudgedQueries, judged_folder, load_judged
from builders.data.synthetic import write_generated
from builders.feedback.beside import Feedback
from builders.publish.item_store import ItemStore
from builders.publish.lifecycle import promote
from builders.publish.manifest import read_manifest
from builders.publish.prune import tables_read
from builders.publish.state import version_numbers
from builders.rankers.load import import_from
from builders.retrain import Report, RetrainedWorse, RetrainingError, retrain
from server.verify import check_as_published
from tests.support.feedback import click, shown

MODULE = '''
import json
import torch
from torch import nn
from builders.features import dense


class ByPrice(nn.Module):
    """The price times a weight that "training" reads from a file of the data."""

    features = (dense("price", ["price"]),)

    def __init__(self, weight):
        super().__init__()
        self.mix = nn.Linear(1, 1)
        nn.init.constant_(self.mix.weight, weight)
        nn.init.zeros_(self.mix.bias)

    @classmethod
    def from_checkpoint(cls, folder):
        return cls(json.loads((folder / "weight.json").read_text()))

    def forward(self, price):
        return self.mix(price)


def train(recipe, folder):
    recipe.path(recipe.checkpoint).mkdir(parents=True)
    weight = (folder / "weight.txt").read_text()
    (recipe.path(recipe.checkpoint) / "weight.json").write_text(weight)
'''
RECIPE = """
ranker = "by_price"
module = "by_price.py:ByPrice"
trainer = "by_price.py:train"
checkpoint = "checkpoint"

[[variants]]
name = "fp32_onnx"
"""


@dataclasses.dataclass
class Night:
    """What a nightly job has: a recipe, data, a workspace."""

    recipe: Recipe
    data: Path
    workspace: Workspace
    said: list[str] = dataclasses.field(default_factory=list)

    def train_to(self, weight: float) -> Report:
        (self.data / "weight.txt").write_text(json.dumps(weight))
        trainer = import_from(self.recipe, self.recipe.trainer)
        return retrain(self.recipe, trainer, self.data, self.said.append, self.workspace)

    def served(self, endpoint: str) -> dict[str, int]:
        return read_manifest(self.workspace.repository).served[endpoint].steps

    @property
    def weight(self) -> float:
        return float(json.loads((self.recipe.path(Path("checkpoint")) / "weight.json").read_text()))


@pytest.fixture
def night(tmp_path: Path) -> Night:
    (tmp_path / "by_price.py").write_text(MODULE)
    (tmp_path / "by_price.toml").write_text(RECIPE)
    write_generated(tmp_path / "data")
    workspace = Workspace(tmp_path / "build", tmp_path / "models", tmp_path / "store")
    return Night(load_recipe(tmp_path / "by_price.toml"), tmp_path / "data", workspace)


@pytest.fixture
def better(night: Night) -> tuple[float, float]:
    """Two weights of opposite order: the one with the higher NDCG first."""
    found = {weight: night.train_to(weight).after for weight in (1.0,)}
    other = dataclasses.replace(night)
    try:
        found[-1.0] = other.train_to(-1.0).after
    except RetrainedWorse:
        return 1.0, -1.0
    return -1.0, 1.0


def test_the_first_one_is_published_as_a_candidate(night: Night) -> None:
    report = night.train_to(1.0)
    assert (report.before, report.difference) == (None, None)
    assert report.candidate == "rank_candidate = by_price_fp32_onnx@1"
    assert night.weight == 1.0
    check_as_published(night.workspace.repository, ["rank_candidate"])
    assert json.loads((night.workspace.build / "retrain/by_price/report.json").read_text())["after"] == report.after


def test_a_worse_one_is_refused_and_everything_stays(night: Night, better: tuple[float, float]) -> None:
    good, bad = better
    if night.weight != good:
        night.train_to(good)
    before = read_manifest(night.workspace.repository)
    with pytest.raises(RetrainedWorse, match=r"lower end is -.*% of what was there, allowed .*stay as they are"):
        night.train_to(bad)
    assert night.weight == good
    assert read_manifest(night.workspace.repository) == before


def test_rank_stays_and_only_the_candidate_moves(night: Night) -> None:
    night.train_to(1.0)
    promote(night.workspace.repository, "rank", "rank_by_price_fp32_onnx")
    before = night.served("rank")
    report = night.train_to(2.0)  # the same order
    assert report.changed == ("files",)
    assert report.difference is not None and report.difference.mean_difference == 0
    assert night.served("rank") == before
    assert night.served("rank_candidate")["by_price_fp32_onnx"] == 2


def test_what_was_trained_is_not_trained_again(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    night.train_to(1.0)
    monkeypatch.setattr("builders.retrain._Retraining._check", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # stopped between training and its acceptance
        night.train_to(3.0)
    assert night.weight == 1.0
    monkeypatch.undo()
    night.train_to(3.0)
    assert night.weight == 3.0
    assert "by_price: trained already on this data; going on" in night.said
    night.train_to(3.0)
    assert night.said[-1].startswith("published") or "nothing changed" in "".join(night.said)


@pytest.mark.parametrize("times", [4, pytest.param(10, marks=pytest.mark.slow)])
def test_retrainings_leave_bounded_folders_and_the_last_good_version_serving(night: Night, times: int) -> None:
    night.train_to(1.0)
    promote(night.workspace.repository, "rank", "rank_by_price_fp32_onnx")
    for weight in range(2, times + 2):
        night.train_to(float(weight))
    assert len(version_numbers(night.workspace.repository / "by_price_fp32_onnx")) <= 4
    assert night.served("rank")["by_price_fp32_onnx"] == 1
    check_as_published(night.workspace.repository, None)
    assert [path.name for path in night.recipe.path(Path("checkpoint")).parent.glob("checkpoint*")] == ["checkpoint"]


def test_clicks_are_trained_on_and_judge_nothing(night: Night, tmp_path: Path) -> None:
    before = night.train_to(1.0)
    item = next(iter(load_judged(night.data).products))
    lists = [shown(f"r{number}", [item], query="never judged") for number in range(20)]
    events = [*lists, *(click(f"r{number}", item) for number in range(20))]
    (tmp_path / "log.jsonl").write_text("".join(event.model_dump_json() + "\n" for event in events))
    (night.data / "weight.txt").write_text("2.0")
    read: list[JudgedQueries] = []

    def trainer(recipe: Recipe, folder: Path) -> None:
        read.append(load_judged(folder))
        import_from(night.recipe, night.recipe.trainer)(recipe, folder)

    report = retrain(night.recipe, trainer, night.data, night.said.append, night.workspace,
                     feedback=Feedback((tmp_path / "log.jsonl",)))  # fmt: skip
    assert "never judged" in read[0].subset("train").queries.values()
    assert report.queries == before.queries
    assert report.changed == ("feedback", "files")
    assert any(line.startswith("beside ") for line in report.feedback)
    assert any("feedback: beside" in line for line in night.said)


def test_what_is_published_sees_the_new_catalogue_though_the_new_network_is_refused(
    night: Night, better: tuple[float, float]
) -> None:
    good, bad = better
    night.train_to(good)
    promote(night.workspace.repository, "rank", "rank_by_price_fp32_onnx")
    corpus = (judged_folder(night.data) or night.data) / CORPUS
    first, *others = [json.loads(line) for line in corpus.read_text().splitlines()]
    first["metadata"]["price"] = 12_345.0
    corpus.write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))
    del night.said[:]
    with pytest.raises(RetrainedWorse):
        night.train_to(bad)
    assert any("1 changed" in line for line in night.said if line.startswith("item store"))


def change_a_price(data: Path, price: float) -> str:
    """The item's id."""
    corpus = (judged_folder(data) or data) / CORPUS
    first, *others = [json.loads(line) for line in corpus.read_text().splitlines()]
    first["metadata"]["price"] = price
    corpus.write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))
    return str(first["_id"])


def test_what_is_served_sees_each_new_catalogue_though_others_were_trained_since(night: Night) -> None:
    """`rank` stays with the first network, whose checkpoint has been replaced, and its items change all the same."""
    night.train_to(1.0)
    promote(night.workspace.repository, "rank", "rank_by_price_fp32_onnx")
    for weight in (2.0, 3.0):
        item = change_a_price(night.data, 100 * weight)
        night.train_to(weight)
    with ItemStore(night.workspace.item_store) as store:
        tables = [table for table in store.versions("by_price") if table in tables_read(night.workspace.repository)]
        contents = {table: store.marks(table, [item])[0] for table in tables}
    assert len(tables) == 3
    assert len({mark.content for mark in contents.values() if mark}) == 1


def test_a_recipe_without_a_checkpoint_has_nothing_to_retrain(night: Night) -> None:
    recipe = night.recipe.model_copy(update={"checkpoint": None})
    trainer: Callable[..., object] = lambda *_: None  # noqa: E731
    with pytest.raises(RetrainingError, match="no checkpoint"):
        retrain(recipe, trainer, night.data, workspace=night.workspace)
