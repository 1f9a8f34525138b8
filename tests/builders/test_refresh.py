"""``python -m builders refresh`` and ``add-items``: from a file or standard input to the store of what is published."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from builders import commands, retrain
from builders.__main__ import app
from builders.core.recipe import RecipeError
from builders.core.workspace import Workspace
from builders.data.beir import DatasetError
from builders.publish import model_config, pbtxt
from builders.publish.catalogue import CatalogueError, items_table
from builders.publish.item_store import ItemStore, ItemStoreError
from builders.publish.manifest import Generation, Manifest, PublishedVersion, now, write_manifest
from builders.publish.repository import RepositoryError
from tests.support.catalogues import Watched, line, mug


@pytest.fixture
def ranker() -> Watched:
    return Watched("two_tower")


def publish(workspace: Workspace, ranker: Watched, *recipes: str) -> None:
    """What publishing leaves, as far as refreshing reads it."""
    models = {
        f"{name}_preprocess": {1: PublishedVersion(built_from={"recipe": f"recipes/{name}.toml"}, since=now())}
        for name in recipes
    }
    served = Generation(number=1, variant="two_tower", steps={"two_tower_preprocess": 1}, since=now())
    folder = workspace.repository / "two_tower_preprocess" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "contract.json").write_text(ranker.preprocess.to_json())
    (folder / "config.pbtxt").write_text(
        pbtxt.render(model_config.python_config(dataclasses.replace(ranker.preprocess, name="two_tower_preprocess")))
    )
    write_manifest(workspace.repository, Manifest(models=models, endpoints={"two_tower_preprocess": [served]}))


@pytest.fixture
def workspace(tmp_path: Path, ranker: Watched, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    workspace = Workspace(tmp_path / "build", tmp_path / "models", tmp_path / "store")
    publish(workspace, ranker, "two_tower", "sasrec")
    monkeypatch.setattr(commands, "PROJECT", workspace)
    monkeypatch.setattr(commands, "load_ranker", lambda recipe: ranker)
    return workspace


@pytest.fixture
def run(workspace: Workspace) -> Callable[..., Result]:
    def run(*arguments: str, given: str = "") -> Result:
        return CliRunner().invoke(app, arguments, input=given.encode(), catch_exceptions=False)

    return run


def ids(workspace: Workspace, ranker: Watched) -> list[str]:
    with ItemStore(workspace.item_store) as store:
        return [item_id for item_id, _ in store.known(items_table(ranker))]


def test_a_stream_of_products_is_the_catalogue_of_the_published_rankers(
    run: Callable, workspace: Workspace, ranker: Watched
) -> None:
    told = run("refresh", "-", given=line(mug("a")) + line(mug("b")) + line(mug("c"))).output
    assert "left as they are, since their catalogue is no corpus.jsonl: sasrec" in told
    assert "products: 3 added, 0 changed, 0 removed, 0 unchanged" in told
    told = run("refresh", "-", given=line(mug("a")) + line(mug("b", 7.0))).output
    assert "two_tower: 0 added, 1 changed, 1 removed, 1 unchanged" in told
    assert ids(workspace, ranker) == ["a", "b"]


def test_some_products_are_added_from_a_file(run: Callable, workspace: Workspace, ranker: Watched) -> None:
    corpus = workspace.build.with_name("corpus.jsonl")
    for number, verb in enumerate((["add-items"], ["refresh", "--partial"])):
        corpus.write_text(line(mug(f"new {number}")))
        assert "products: 1 added, 0 changed, 0 removed, 0 unchanged" in run(*verb, str(corpus)).output
    corpus.write_text(line(mug("new 0", 3.0)))
    assert "1 changed" in run("add-items", str(corpus), "--attributes-only").output
    assert ids(workspace, ranker) == ["new 0", "new 1"]


def test_a_malformed_line_of_standard_input_is_told_by_its_number(run: Callable, workspace: Workspace) -> None:
    with pytest.raises(DatasetError, match=r"^standard input:2: '_id' is 7, wanted a string"):
        run("refresh", "-", given=line(mug("a")) + '{"_id": 7, "title": "x"}\n')
    assert not workspace.item_store.exists()


def test_a_truncated_export_is_refused(run: Callable, workspace: Workspace, ranker: Watched) -> None:
    run("refresh", "-", given="".join(line(mug(item_id)) for item_id in "abc"))
    with pytest.raises(CatalogueError, match="would remove 2 of the 3 items of two_tower"):
        run("refresh", "-", given=line(mug("a")))
    assert ids(workspace, ranker) == ["a", "b", "c"]
    assert "2 removed" in run("refresh", "-", "--allow-shrink", given=line(mug("a"))).output


def test_products_of_a_generated_folder_are_generated(run: Callable, workspace: Workspace, tmp_path: Path) -> None:
    run("refresh", "-", given=line(mug("a")))
    made_up = tmp_path / "generated"
    made_up.mkdir()
    (made_up / "GENERATED").touch()
    (made_up / "corpus.jsonl").write_text(line(mug("a")))
    with pytest.raises(ItemStoreError, match="holds real data, and this data is generated"):
        run("add-items", str(made_up / "corpus.jsonl"))


def test_a_published_ranker_without_a_recipe_here_is_told(run: Callable, workspace: Workspace, ranker: Watched) -> None:
    publish(workspace, ranker, "two_tower", "mine")
    with pytest.raises(RecipeError, match=r"without a recipe in recipes/: mine; name the recipes of all"):
        run("refresh", "-", given=line(mug("a")))
    assert "1 added" in run("refresh", "-", "recipes/two_tower.toml", given=line(mug("a"))).output


def test_where_nothing_is_published_that_is_told(run: Callable, workspace: Workspace) -> None:
    (workspace.repository / "manifest.json").unlink()
    with pytest.raises((RecipeError, RepositoryError), match="run 'make repository' first, or name recipes"):
        run("refresh", "-", given=line(mug("a")))


def test_pruning_tells_what_was_dropped(run: Callable, workspace: Workspace, ranker: Watched) -> None:
    run("refresh", "-", given=line(mug("a")))
    with ItemStore(workspace.item_store) as store:
        store.put("two_tower", "before", [("a", b"x")])
    told = " ".join(run("prune").output.split())
    assert "dropped 1 tables that no version of a published model reads (two_tower@before); " in told
    assert "every table is read by a version of a published model" in run("prune").output


def test_users_reach_the_networks_of_before_that_are_still_read(
    run: Callable, workspace: Workspace, ranker: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retraining has left one; which ones there are is asked of the real module, its checkpoints are given here."""
    before = Watched("two_tower", version="before")
    monkeypatch.setattr(retrain, "_kept_checkpoints", lambda recipe, workspace: [tmp_path / "before"])
    monkeypatch.setattr(retrain, "_is_read", lambda checkpoint, workspace: checkpoint.name == "before")
    monkeypatch.setattr(retrain, "load_ranker", lambda recipe: before)
    users = tmp_path / "users.jsonl"
    users.write_text('{"_id": "eve", "country": "no"}\n')
    recipe = Path(__file__).parents[2] / "recipes" / "two_tower.toml"
    assert "1 users are known from the next request on" in run("add-users", str(users), str(recipe)).output
    with ItemStore(workspace.item_store) as store:
        for each in (ranker, before):
            table = items_table(each).replace("@", "_users@")
            assert [user for user, _ in store.known(table)] == ["eve"], table
