"""Every recipe of the kit retrained ten nights in a row by its own trainer: what is served stays, and nothing grows.

On generated data, whose networks are worth nothing: each night's is accepted.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.core.recipe import Recipe, load_recipes
from builders.core.workspace import Workspace
from builders.data.beir import CORPUS, judged_folder
from builders.data.synthetic import write_generated
from builders.publish.item_store import ItemStore
from builders.publish.lifecycle import promote
from builders.publish.manifest import read_manifest
from builders.publish.prune import prune_tables
from builders.publish.state import version_numbers
from builders.rankers.load import import_from
from builders.retrain import retrain
from server.verify import check_as_published
from tests.support.tiny_bert import write_tiny_bert

NIGHTS = 10
TRAINED = {name: recipe for name, recipe in load_recipes().items() if recipe.trainer}


def small(recipe: Recipe, checkpoint: Path) -> Recipe:
    """One variant, a single pass over the data, any network accepted; a cross-encoder on a backbone of two layers."""
    gate = recipe.gate.model_copy(update={"max_judged_loss": 1.0, "fidelity_lists": 5})
    fields = type(recipe.training).model_fields
    least = {name: 1 for name in fields if name.endswith("epochs")} | {"examples": 200, "pseudo_queries": 50}
    training = recipe.training.model_copy(update={name: value for name, value in least.items() if name in fields})
    changes = {"checkpoint": checkpoint, "variants": recipe.variants[:1], "gate": gate, "training": training}
    if recipe.ranker == "cross_encoder":
        changes["backbone"] = write_tiny_bert(checkpoint.with_name("backbone"))
    return recipe.model_copy(update=changes)


def rename_a_product(data: Path, night: int) -> None:
    """So that there is something new to train on, and to store."""
    corpus = (judged_folder(data) or data) / CORPUS
    first, *others = [json.loads(line) for line in corpus.read_text().splitlines()]
    first["title"] = f"{first['title'].split(' of night ')[0]} of night {night}"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_ten_nights_leave_what_is_served_and_do_not_grow(name: str, tmp_path: Path) -> None:
    data, recipe = tmp_path / "data", small(TRAINED[name], tmp_path / "checkpoint")
    write_generated(data)
    workspace = Workspace(tmp_path / "build", tmp_path / "models", tmp_path / "store")
    trainer = import_from(recipe, recipe.trainer)
    tables, bytes_kept = [], []
    for night in range(NIGHTS):
        rename_a_product(data, night)
        report = retrain(recipe, trainer, data, lambda _: None, workspace)
        candidate = report.candidate.split(" = ")[0]
        endpoint = candidate.removesuffix("_candidate")
        if night == 0:
            variant = read_manifest(workspace.repository).served[candidate].variant
            promote(workspace.repository, endpoint, f"{endpoint}_{variant}")
            served = read_manifest(workspace.repository).served[endpoint].steps
        assert read_manifest(workspace.repository).served[endpoint].steps == served
        check_as_published(workspace.repository, None)
        prune_tables(workspace.repository, workspace.item_store)
        tables.append(_tables(workspace))
        bytes_kept.append(sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()))
    assert all(len(version_numbers(folder)) <= 5 for folder in workspace.repository.iterdir() if folder.is_dir())
    assert tables[-1] == tables[NIGHTS // 2]
    assert bytes_kept[-1] < 1.1 * bytes_kept[NIGHTS // 2]


def _tables(workspace: Workspace) -> int:
    if not (workspace.item_store / "data.mdb").is_file():
        return 0
    with ItemStore(workspace.item_store) as store:
        return len(store.tables())
