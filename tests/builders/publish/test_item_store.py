"""The item store's writer, and what a reader beside it sees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from builders.core.workspace import REPOSITORY_ROOT
from builders.publish import item_store
from builders.publish.item_store import ADDED, SIZE_VARIABLE, Entry, ItemStore, ItemStoreError, Mark

PREAMBLE = """
import os, pathlib, resource, sys
import lmdb
from builders.publish.item_store import ItemStore, ItemStoreError
folder = pathlib.Path(sys.argv[1])
"""


def in_another_process(code: str, folder: Path, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Lines of code with a ``store`` that is open."""
    code = f"{PREAMBLE}with ItemStore(folder) as store:\n    {code}"
    return run(code, folder, check=check)


def run(code: str, folder: Path, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], check=check, cwd=REPOSITORY_ROOT, capture_output=True, text=True
    )


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


def test_a_dropped_table_is_gone_with_all_that_lies_beside_it_and_can_be_made_again(folder: Path) -> None:
    with ItemStore(folder) as store:
        store.put("mugs", "2", ((f"{number}", b"x" * 100) for number in range(2000)))
        assert store.drop(["mugs@2"]) > 200_000
        assert store.tables() == {"mugs@1": 2}
        assert not [name for name in store._names() if "mugs@2" in name]
        store.put("mugs", "2", [("a", b"new")])
        assert store.tables() == {"mugs@1": 2, "mugs@2": 1}


def test_a_reader_in_flight_finishes_with_a_table_that_is_dropped_meanwhile(folder: Path) -> None:
    reader = lmdb.open(str(folder), readonly=True, max_dbs=64, create=False)
    database = reader.open_db(b"mugs@1", create=False)
    with reader.begin(db=database) as transaction:
        in_another_process("store.drop(['mugs@1'])", folder)
        in_another_process("store.put('cups', '1', [(str(n), b'y' * 500) for n in range(2000)])", folder)
        assert transaction.get(b"a") == b"red"
    reader.close()


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


# ---------------------------------------------------------------- what a value was computed from
def test_a_value_is_written_with_its_content_and_who_knows_it(folder: Path) -> None:
    with ItemStore(folder) as store:
        store.write("mugs@1", [Entry("a", b"green", "c1"), Entry("b", b"white", "c2")], {"shop"})
        store.write("mugs@1", [Entry("a", None, "c1")], {"outlet"})
        store.write("mugs@1", [Entry("b", None, "other")], {"outlet"})  # another writer was quicker
        assert store.marks("mugs@1", ["a", "b", "杯", "absent"]) == [
            Mark("c1", frozenset({"shop", "outlet"})), Mark("c2", frozenset({"shop"})), Mark(), None,
        ]  # fmt: skip
        store.put("mugs", "1", [("a", b"of unknown content")])
        assert store.marks("mugs@1", ["a"]) == [Mark("", frozenset({"shop", "outlet"}))]


def test_an_item_is_removed_when_nobody_knows_it_any_more(folder: Path) -> None:
    with ItemStore(folder) as store:
        store.write("mugs@1", [Entry("b", b"white", "c")], {"shop", "outlet"})
        assert store.remove("mugs@1", ["b"], {"shop"}) == 0
        assert store.remove("mugs@1", ["b", "absent"], {"outlet"}) == 1
        assert store.marks("mugs@1", ["b"]) == [None]


def test_an_added_item_is_no_longer_one_when_a_catalogue_holds_it(folder: Path) -> None:
    with ItemStore(folder) as store:
        store.write("mugs@1", [Entry("b", b"white", "c")], {ADDED})
        store.write("mugs@1", [Entry("b", None, "c")], {"shop"})
        store.write("mugs@1", [Entry("b", None, "c")], {ADDED})
        assert store.marks("mugs@1", ["b"]) == [Mark("c", frozenset({"shop"}))]


def changes(folder: Path) -> list[bytes]:
    environment = lmdb.open(str(folder), readonly=True, max_dbs=64, create=False)
    try:
        with environment.begin(db=environment.open_db(b":changes/mugs@1", create=False)) as transaction:
            return [value for _, value in transaction.cursor()]
    finally:
        environment.close()


def test_changes_of_a_whole_table_are_told_in_their_order_and_only_where_a_value_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert changes(folder) == []  # nobody could follow it while it was filled
    with ItemStore(folder) as store:
        store.put("mugs", "1", [("a", b"red"), ("b", b"white")])
        store.remove("mugs@1", ["a"])
    assert changes(folder) == [b"b", b"a"]
    monkeypatch.setattr(item_store, "KEPT_CHANGES", 3)
    with ItemStore(folder) as store:
        store.put("mugs", "1", [("c", b"x"), ("d", b"x")])
    assert changes(folder) == [b"a", b"c", b"d"]


# ---------------------------------------------------------------- limits, faults and killed processes
def test_the_store_grows_beyond_the_size_that_it_was_opened_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, "0.0001")
    with ItemStore(folder) as store:
        store.put("mugs", "1", ((f"{number}", b"x" * 1000) for number in range(3000)))
        store.put("mugs", "1", [("large", b"x" * 5_000_000)])
        assert store.tables() == {"mugs@1": 3003}
    assert stored(folder, "mugs@1", "a") == [b"red"]


def test_a_writer_goes_on_after_another_one_enlarged_the_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, "0.0001")
    with ItemStore(folder) as store:
        in_another_process("store.put('mugs', '1', [('large', b'x' * 1_000_000)])", folder)
        assert store.ids("mugs", "1") == {"a", "杯", "large"}
        store.put("mugs", "1", [("b", b"white")])


@pytest.mark.parametrize("told", ["much", "0", "-1", "nan", "inf"])
def test_a_size_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, told)
    with pytest.raises(ItemStoreError, match=f"{SIZE_VARIABLE} is '{told}', wanted a number of GiB above 0"):
        ItemStore(tmp_path)


def test_a_full_disk_is_told_and_what_was_committed_is_whole(folder: Path) -> None:
    with ItemStore(folder) as store:
        store.put("mugs", "1", ((f"{number}", b"x" * 100) for number in range(20_000)))
    size = (folder / "data.mdb").stat().st_size
    limited = run(
        f"""{PREAMBLE}
resource.setrlimit(resource.RLIMIT_FSIZE, ({size} + 4_000_000,) * 2)
with ItemStore(folder) as store:
    try:
        store.put("cups", "1", ((f"{{number}}", b"x" * 100) for number in range(80_000)))
    except ItemStoreError as error:
        print(error)
""",
        folder,
    )
    assert "the disk, or this user's share of it, is full" in limited.stdout
    assert "make room" in limited.stdout
    with ItemStore(folder) as store:
        assert store.tables()["mugs@1"] == 20_002
        assert store.unfilled() == {"cups@1"}  # no model is served with it
        store.put("cups", "1", [("a", b"x")])
        assert store.unfilled() == {"cups@1"}


def test_too_many_tables_are_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_store, "MAX_TABLES", 7)  # three for each, and one of the store itself
    with ItemStore(tmp_path) as store:
        store.put("mugs", "1", [("a", b"x")])
        store.put("mugs", "2", [("a", b"x")])
        with pytest.raises(ItemStoreError, match=r"more than 7 tables: run 'python -m builders prune'"):
            store.put("mugs", "3", [("a", b"x")])


def test_a_writer_killed_while_it_fills_a_table_leaves_one_that_counts_as_unfilled(tmp_path: Path) -> None:
    killed = in_another_process(
        "store.put('mugs', '1', ((str(n), b'x') if n < 25_000 else os.kill(os.getpid(), 9) for n in range(30_000)))",
        tmp_path,
        check=False,
    )
    assert killed.returncode == -9
    with ItemStore(tmp_path) as store:
        assert store.tables() == {"mugs@1": 20_000}
        assert store.unfilled() == {"mugs@1"}


def test_readers_that_were_killed_keep_no_slot(folder: Path) -> None:
    server = lmdb.open(str(folder), readonly=True, create=False)  # while nobody has it open, LMDB clears all slots
    killed = run(
        f"""{PREAMBLE}
environment = lmdb.open(str(folder), readonly=True, max_dbs=64, create=False)
with environment.begin() as transaction:
    os.kill(os.getpid(), 9)
""",
        folder,
        check=False,
    )
    assert killed.returncode == -9
    assert len(server.readers().splitlines()) == 2  # a header and the slot
    in_another_process("pass", folder)
    assert server.readers().strip() == "(no active readers)"
    server.close()


# ---------------------------------------------------------------- real and generated data
@pytest.mark.parametrize(("held", "given"), [("real", "generated"), ("generated", "real")])
def test_real_and_generated_data_are_never_mixed(tmp_path: Path, held: item_store.Kind, given: item_store.Kind) -> None:
    with ItemStore(tmp_path) as store:
        store.claim(given)  # an empty store takes either
        store.claim(held)
        store.put("mugs", "1", [("a", b"x")])
        store.claim(held)
        with pytest.raises(ItemStoreError, match=rf"holds {held} data, and this data is {given}.*--new-store"):
            store.claim(given)


def test_a_store_of_an_earlier_version_is_taken_for_real(folder: Path) -> None:
    with ItemStore(folder) as store:
        assert store.kind == "real"
        with pytest.raises(ItemStoreError, match="holds real data, and this data is generated"):
            store.claim("generated")


KILLED_READERS = """
import os, signal, sys
import lmdb

for _ in range(150):
    if (child := os.fork()) == 0:
        environment = lmdb.open(sys.argv[1], readonly=True, create=False)
        transaction = environment.begin()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_more_killed_readers_than_lmdb_has_slots_for_lock_nobody_out(folder: Path) -> None:
    """None of them looked for those before: LMDB's own default has room for 126."""
    reader = lmdb.open(str(folder), readonly=True, max_dbs=64, create=False)  # as long as one is open, slots are kept
    subprocess.run([sys.executable, "-c", KILLED_READERS, str(folder)], check=True)
    assert len(reader.readers().splitlines()) > 150
    with reader.begin() as transaction:
        assert transaction.stat()["entries"]
    assert reader.reader_check() >= 150
    reader.close()
