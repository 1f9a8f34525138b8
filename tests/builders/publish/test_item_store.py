"""The item store's writer, and what a reader beside it sees."""

from __future__ import annotations

from pathlib import Path

import lmdb
import pytest

from builders.publish.item_store import ItemStore, ItemStoreError


def stored(folder: Path, table: str, *ids: str) -> list[bytes | None]:
    """What a reader of its own finds, as the served models read."""
    environment = lmdb.open(str(folder), readonly=True, max_dbs=64, create=False)
    try:
        database = environment.open_db(table.encode(), create=False)
        with environment.begin(db=database) as transaction:
            return [transaction.get(item_id.encode()) for item_id in ids]
    finally:
        environment.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of two items in version 1 of ``mugs``."""
    with ItemStore(tmp_path / "store") as store:
        assert store.put("mugs", "1", [("a", b"red"), ("杯", b"blue")]) == 2
    return tmp_path / "store"


def test_items_read_back_by_id(folder: Path) -> None:
    assert stored(folder, "mugs@1", "a", "杯", "absent") == [b"red", b"blue", None]


def test_put_replaces_and_keeps_the_rest(folder: Path) -> None:
    with ItemStore(folder) as store:
        store.put("mugs", "1", [("a", b"green"), ("b", b"white")])
        assert store.tables() == {"mugs@1": 3}
    assert stored(folder, "mugs@1", "a", "b", "杯") == [b"green", b"white", b"blue"]


def test_more_items_than_one_transaction_holds_are_all_written(tmp_path: Path) -> None:
    with ItemStore(tmp_path) as store:
        assert store.put("many", "1", ((f"{number}", b"x") for number in range(20_001))) == 20_001
        assert store.tables() == {"many@1": 20_001}


def test_a_new_version_is_a_table_beside_the_old_one(folder: Path) -> None:
    with ItemStore(folder) as store:
        store.put("mugs", "2", [("a", b"new")])
        assert store.tables() == {"mugs@1": 2, "mugs@2": 1}
        assert store.ids("mugs", "1") == {"a", "杯"}
        assert store.ids("mugs", "3") == set()


def test_dropping_other_versions_leaves_other_features_alone(folder: Path) -> None:
    with ItemStore(folder) as store:
        store.put("mugs", "2", [("a", b"new")])
        store.put("mugs_wide", "1", [("a", b"wide")])
        assert store.drop_other_versions("mugs", keep={"2"}) == ["mugs@1"]
        assert store.tables() == {"mugs@2": 1, "mugs_wide@1": 1}


def test_a_reader_that_is_open_sees_an_item_as_soon_as_it_is_committed(folder: Path) -> None:
    # A second environment on the same file in one process is not LMDB's way, so the reader shares the writer's.
    with ItemStore(folder) as store:
        environment = store._environment
        database = environment.open_db(b"mugs@1", create=False)
        with environment.begin(db=database) as before:
            store.put("mugs", "1", [("b", b"white")])
            assert before.get(b"b") is None
        with environment.begin(db=database) as after:
            assert after.get(b"b") == b"white"


@pytest.mark.parametrize("item_id", ["", "x" * 512, "é" * 256])
def test_an_id_that_is_no_key_is_refused_with_its_size(tmp_path: Path, item_id: str) -> None:
    with (
        ItemStore(tmp_path) as store,
        pytest.raises(ItemStoreError, match=rf"item id of {len(item_id.encode())} bytes, wanted 1 to 511"),
    ):
        store.put("mugs", "1", [(item_id, b"x")])


def test_the_longest_id_is_kept(tmp_path: Path) -> None:
    with ItemStore(tmp_path) as store:
        store.put("mugs", "1", [("x" * 511, b"found")])
    assert stored(tmp_path, "mugs@1", "x" * 511) == [b"found"]


def test_a_folder_whose_files_are_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"no LMDB" * 2000)
    with pytest.raises(ItemStoreError, match=r"item store .*: LMDB cannot open it \(.*run 'make repository'"):
        ItemStore(tmp_path)
