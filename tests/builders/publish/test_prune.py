"""Which tables of the item store are dropped: those that no version folder of a published model names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from builders.publish.item_store import ItemStore, ItemStoreError
from builders.publish.prune import prune_tables

ALWAYS = {"attributes@1": 1, "tents@1": 1}


def version_folder(repository: Path, model: str, number: str, **parameters: object) -> Path:
    folder = repository / model / number
    folder.mkdir(parents=True)
    (folder / "contract.json").write_text(json.dumps({"parameters": parameters}))
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two versions of one ranker with users, and post-processing."""
    folder = tmp_path / "models"
    for number, version in (("1", "old"), ("2", "new")):
        version_folder(
            folder, "mugs_preprocess", number, item_features="mugs", item_features_version=version, user_features="u"
        )
    version_folder(folder, "mugs_fp32_onnx", "1")
    version_folder(folder, "tents_fp32_onnx_fused", "1")
    version_folder(
        folder, "tents_fp32_onnx_fused/1", "tents_preprocess", item_features="tents", item_features_version="1"
    )
    version_folder(folder, "postprocess", "1", attributes="attributes", attributes_version="1")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with ItemStore(tmp_path / "store") as opened:
        for features in ("mugs", "u"):
            for version in ("older", "old", "new"):
                opened.put(features, version, [("a", b"x" * 1000)])
        for features in ("cups", "tents"):
            opened.put(features, "1", [("a", b"x")])
        opened.put("attributes", "1", [("a", b"{}")])
    return tmp_path / "store"


def tables(store: Path) -> dict[str, int]:
    with ItemStore(store) as opened:
        return opened.tables()


def test_tables_that_no_version_folder_names_are_dropped(repository: Path, store: Path) -> None:
    pruned = prune_tables(repository, store)
    assert pruned.tables == ("cups@1", "mugs@older", "u@older")
    assert pruned.freed_bytes > 0
    assert tables(store) == {"mugs@old": 1, "mugs@new": 1, "u@old": 1, "u@new": 1, **ALWAYS}
    assert prune_tables(repository, store).tables == ()

    shutil.rmtree(repository / "mugs_preprocess" / "1")
    assert prune_tables(repository, store).tables == ("mugs@old", "u@old")


def test_generation_after_generation_the_store_keeps_the_tables_of_those_that_are_kept(
    repository: Path, store: Path
) -> None:
    for generation in range(3, 40):
        version = f"generation {generation}"
        with ItemStore(store) as opened:
            opened.put("mugs", version, [("a", b"x" * 100_000)])
        version_folder(
            repository, "mugs_preprocess", str(generation), item_features="mugs", item_features_version=version
        )
        shutil.rmtree(repository / "mugs_preprocess" / str(generation - 2))
        prune_tables(repository, store)
    assert tables(store).keys() == {"mugs@generation 38", "mugs@generation 39", *ALWAYS}
    assert (store / "data.mdb").stat().st_size < 10 * 100_000  # what is dropped is used again


def test_a_version_that_is_being_written_and_a_table_that_is_being_filled_are_kept(
    repository: Path, store: Path
) -> None:
    version_folder(repository, "mugs_preprocess", ".new-x", item_features="mugs", item_features_version="older")
    with ItemStore(store) as opened:
        opened.create("bowls@1")
    assert prune_tables(repository, store).tables == ("cups@1", "u@older")


def test_what_another_repository_with_this_store_reads_is_kept(repository: Path, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    version_folder(other, "cups_preprocess", "1", item_features="cups", item_features_version="1")
    with ItemStore(store) as opened:
        opened.remember(other)
    assert "cups@1" not in prune_tables(repository, store).tables
    shutil.rmtree(other)
    assert prune_tables(repository, store).tables == ("cups@1",)


def test_nothing_is_dropped_where_a_contract_cannot_be_read(repository: Path, store: Path) -> None:
    before = tables(store)
    (repository / "mugs_preprocess" / "1" / "contract.json").write_text('{"param')
    with pytest.raises(ItemStoreError, match=r"mugs_preprocess/1/contract.json: no contract .* none was dropped"):
        prune_tables(repository, store)
    assert tables(store) == before


def test_a_store_that_is_not_there_is_not_made(repository: Path, tmp_path: Path) -> None:
    assert prune_tables(repository, tmp_path / "absent").tables == ()
    assert not (tmp_path / "absent").exists()
