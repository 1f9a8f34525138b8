"""The item store: what a ranker needs of each item, by item id, in LMDB (many readers, one writer, while serving).

One table a ranker and version of its features, named ``<features>@<version>``, so that the store of a new version is
filled beside the one being served. Values are raw little-endian arrays; the ranker's pre-processing reads them. Beside
each table lie two more, and one for all of them:

``:marks/<table>``    item id => the content that the value was computed from, and who knows the item (:class:`Mark`);
                      written with the value, in one transaction
``:changes/<table>``  sequence number => id of an item that was put or removed, so that a reader which holds all values
                      follows the table without reading it again; the latest ``KEPT_CHANGES``
``:about``            ``kind`` of the data; ``filling <table>`` until a new table is whole; ``repository <path>`` of
                      every model repository that was published with this store; ``index <table>`` and ``similar
                      <table>``, see ``similar_index.py``

Knows nothing of what the features mean.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import shutil
import types
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import lmdb

from builders.core.contract import MAX_ITEM_ID_BYTES
from builders.core.errors import BuilderError
from builders.features.batches import batched
from builders.publish.index_search import INDEXES, NOTE, IndexFault, IndexNote

T = TypeVar("T")
Kind = Literal["real", "generated"]
SIZE_VARIABLE = "TRITONRANK_STORE_SIZE_GIB"
"""GiB of address space that the store is opened with; it grows beyond them by itself. The file is as large as what is
in it."""
DEFAULT_SIZE_GIB = 8.0
MAX_TABLES = 2048
"""Tables that a writer can have open, three for each table of features."""
MAX_READERS = 1024
"""Slots in the lock file, which the writer makes: one for each thread that reads. Killed readers keep theirs until the
next who opens the store looks."""
KEPT_CHANGES = 100_000
"""Entries of a table's ``:changes``, and all since its index was made; a reader that is further behind reads the whole
table."""
ADDED = "added"
"""Knows the items that were added one by one: no build removes them until a catalogue has held them."""
_BATCH = 10_000
_ABOUT, _MARKS, _CHANGES = ":about", ":marks/", ":changes/"
_DISK_FULL = {os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)}
# LMDB tells a write that was cut short, as on a disk that fills up, as EIO.


class ItemStoreError(BuilderError):
    """The store or an item cannot be used; the message says why and what to do."""


class Mark(NamedTuple):
    """What is known of a stored value.

    Attributes:
        content: digest of what the value was computed from; "" = not known, so never current.
        sources: who knows the item: names of catalogues, or ADDED alone.
    """

    content: str = ""
    sources: frozenset[str] = frozenset()

    def known_by(self, sources: Collection[str]) -> Mark:
        """With these besides; an item that a catalogue holds is no longer one that was added."""
        if not sources:
            return self
        if ADDED in sources:
            return Mark(self.content, self.sources or frozenset({ADDED}))
        return Mark(self.content, (self.sources - {ADDED}) | frozenset(sources))

    def encoded(self) -> bytes:
        """As it is stored."""
        return f"{self.content} {','.join(sorted(self.sources))}".encode()

    @classmethod
    def decoded(cls, stored: bytes | None) -> Mark:
        """Of what is stored; of nothing the mark of a value whose origin is not known."""
        content, _, sources = (stored or b"").decode().partition(" ")
        return cls(content, frozenset(filter(None, sources.split(","))))


class Entry(NamedTuple):
    """An item to write.

    Attributes:
        value: None = the stored one stays, as it was computed from this content.
        content: digest of what the value was computed from.
    """

    item_id: str
    value: bytes | None
    content: str = ""


class _Tables(NamedTuple):
    """LMDB's handles of a table and of those beside it."""

    values: Any
    marks: Any
    changes: Any


class Snapshot:
    """A table in one transaction.

    Attributes:
        sequence: number of its last change.
        items: how many there are.
    """

    def __init__(self, transaction: Any, values: Any, sequence: int) -> None:
        self._transaction, self._values = transaction, values
        self.sequence = sequence
        self.items: int = transaction.stat(values)["entries"]

    def __iter__(self) -> Iterator[tuple[bytes, memoryview]]:
        """(id, value) in the order of their ids; a value is valid within the transaction."""
        with self._transaction.cursor(self._values) as cursor:
            for key, value in cursor:
                yield bytes(key), value

    def values(self, ids: Sequence[bytes]) -> list[bytes]:
        """Of items that are there."""
        return [bytes(self._transaction.get(item_id, db=self._values)) for item_id in ids]


class ItemStore:
    """The writer. Use as a context manager; LMDB lets one process write at a time and makes a second wait.

    Args:
        folder: made when absent.
        size_gib: see SIZE_VARIABLE, which is read where it is None.

    Raises:
        ItemStoreError: what lies there is no item store, or cannot be written. Every method raises it, too, where the
            disk is full or LMDB fails.
    """

    def __init__(self, folder: Path, size_gib: float | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        size_bytes = int((_size_gib() if size_gib is None else size_gib) * 2**30)
        self._handles: dict[str, Any] = {}
        try:
            self._environment = lmdb.open(str(folder), map_size=size_bytes, max_dbs=MAX_TABLES, max_readers=MAX_READERS)
            self._environment.reader_check()  # readers that were killed would keep old pages from being used again
        except lmdb.Error as error:
            raise ItemStoreError(
                f"item store {folder}: LMDB cannot open it ({error}); wanted a folder that this user may write, with "
                "nothing in it but an item store. Remove it and run 'make repository' to fill it anew"
            ) from error

    def __enter__(self) -> ItemStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._environment.close()

    # ------------------------------------------------------------ items
    def put(self, features: str, version: str, items: Iterable[tuple[str, bytes]]) -> int:
        """Add or replace items of unknown content, a transaction each 10,000: readers see whole items only.

        Args:
            features: table, such as ``cross_encoder``.
            version: of the model that the features belong to.
            items: (item id, value).

        Returns:
            Number of items written.

        Raises:
            ItemStoreError: an id that is empty or longer than LMDB's key limit.
        """
        name = table_name(features, version)
        is_new = self.create(name)
        count = 0
        for some in batched(items, _BATCH):
            self.write(name, [Entry(item_id, value) for item_id, value in some])
            count += len(some)
        if is_new:
            self.set_whole(name)
        return count

    def write(self, table: str, entries: Sequence[Entry], sources: Collection[str] = ()) -> None:
        """Write values with their marks, all in one transaction; the table is there.

        Args:
            sources: who knows these items, besides those who did.

        Raises:
            ItemStoreError: an id that is empty or longer than LMDB's key limit.
        """
        keyed = [(item_key(entry.item_id), entry) for entry in entries]
        tables = self._tables_of(table)

        def work(transaction: Any) -> None:
            changed = [key for key, entry in keyed if _write(transaction, tables, key, entry, sources)]
            self._log(transaction, table, tables, changed)

        if keyed:
            self._transact(work, write=True)

    def remove(self, table: str, item_ids: Iterable[str], sources: Collection[str] = ()) -> int:
        """Forget that ``sources`` know the items; those that nobody else knows are removed. Returns their number."""
        tables = self._tables_of(table)
        removed = 0
        for some in batched(item_ids, _BATCH):
            keys = [item_key(item_id) for item_id in some]

            def work(transaction: Any, keys: list[bytes] = keys) -> int:
                gone = [key for key in keys if _remove(transaction, tables, key, sources)]
                self._log(transaction, table, tables, gone)
                return len(gone)

            removed += self._transact(work, write=True)
        return removed

    def values(self, table: str, item_ids: Sequence[str]) -> list[bytes | None]:
        """What is stored of each item; None where the table does not hold it."""
        if not self.has(table):
            return [None] * len(item_ids)
        handle, keys = self._handle(table), [item_key(item_id) for item_id in item_ids]
        return self._transact(lambda transaction: [transaction.get(key, db=handle) for key in keys])

    def marks(self, table: str, item_ids: Sequence[str]) -> list[Mark | None]:
        """Of each item; None where the table does not hold it."""
        if not self.has(table):
            return [None] * len(item_ids)
        tables = self._tables_of(table)
        keys = [item_key(item_id) for item_id in item_ids]

        def work(transaction: Any) -> list[Mark | None]:
            with transaction.cursor(tables.values) as values:  # a value itself is not read
                return [
                    Mark.decoded(transaction.get(key, db=tables.marks)) if values.set_key(key) else None for key in keys
                ]

        return self._transact(work)

    def known(self, table: str) -> Iterator[tuple[str, Mark]]:
        """(item id, mark) of every item, in the order of their ids; writing meanwhile is fine."""
        if not self.has(table):
            return
        after, tables = b"", self._tables_of(table)
        while True:
            found = self._transact(functools.partial(_page, tables=tables, after=after))
            yield from ((key.decode(), mark) for key, mark in found)
            if len(found) < _BATCH:
                return
            after = found[-1][0]

    def gone(
        self, table: str, present: Container[str], sources: Collection[str], *, unmarked: bool
    ) -> tuple[list[str], int]:
        """Ids that ``sources`` know and that are not ``present``; and how many items ``sources`` know.

        Args:
            unmarked: whether items that nobody is known to know count as theirs.
        """
        absent, count = [], 0
        for item_id, mark in self.known(table):
            if mark.sources.intersection(sources) or (unmarked and not mark.sources):
                count += 1
                if item_id not in present:
                    absent.append(item_id)
        return absent, count

    def ids(self, features: str, version: str) -> set[str]:
        """Ids that the table holds; empty when there is no such table."""
        return {item_id for item_id, _ in self.known(table_name(features, version))}

    @contextlib.contextmanager
    def snapshot(self, table: str) -> Iterator[Snapshot]:
        """The table as it is now, however long it is read; writing meanwhile is fine, and takes new pages."""
        tables = self._tables_of(table)
        with self._guarded(lambda: self._environment.begin(buffers=True)) as transaction:
            yield Snapshot(transaction, tables.values, _last_change(transaction, tables))

    def sequence(self, table: str) -> int:
        """Number of the table's last change."""
        tables = self._tables_of(table)
        return self._transact(lambda transaction: _last_change(transaction, tables))

    # ------------------------------------------------------------ tables
    def tables(self) -> dict[str, int]:
        """Table => number of items; what lies beside tables is left out."""
        return {name: self._stat(self._handle(name))["entries"] for name in sorted(self._names()) if name[0] != ":"}

    def versions(self, features: str) -> list[str]:
        """Tables of these features."""
        return sorted(name for name in self._names() if name.startswith(f"{features}@"))

    def has(self, table: str) -> bool:
        """Whether there is such a table."""
        return table in self._handles or table in self._names()

    def create(self, table: str) -> bool:
        """Make the table where it is not there; it counts as unfilled, and no model is served with it, until
        :meth:`set_whole`. Returns whether it was made."""
        is_new = not self.has(table)
        if is_new:
            self._tell(f"filling {table}", "")  # first: killed after this, no part of a table is taken for a whole one
        for name in (table, _MARKS + table, _CHANGES + table):
            self._handle(name, create=True)
        return is_new

    def set_whole(self, table: str) -> None:
        """The table holds all that it should."""
        self._tell(f"filling {table}", None)

    def unfilled(self) -> set[str]:
        """Tables that are not whole."""
        return {key.removeprefix("filling ") for key in self._about() if key.startswith("filling ")}

    def drop(self, tables: Iterable[str]) -> int:
        """Drop tables with what lies beside them, each in one transaction; readers in flight finish with what they see.

        Returns:
            Bytes that new items can use; the file does not shrink.
        """
        freed = 0
        for table in tables:
            beside = [name for name in (table, _MARKS + table, _CHANGES + table) if self.has(name)]
            handles = [self._handle(name) for name in beside]
            freed += sum(_bytes(self._stat(handle)) for handle in handles)

            def work(transaction: Any, handles: list[Any] = handles) -> None:
                for handle in handles:
                    transaction.drop(handle)

            self._transact(work, write=True)
            for name in beside:
                del self._handles[name]
            for kind in ("filling", NOTE, "similar"):
                self.set_note(table, kind, None)
            shutil.rmtree(self.folder / INDEXES / table, ignore_errors=True)
        return freed

    # ------------------------------------------------------------ about the store
    def claim(self, kind: Kind) -> None:
        """Say of which kind the data is that is written now; an empty store takes either.

        Raises:
            ItemStoreError: the store holds data of the other kind.
        """
        held = self.kind
        if held in (None, kind) or not any(self.tables().values()):
            self._tell("kind", kind)
            return
        raise ItemStoreError(
            f"item store {self.folder} holds {held} data, and this data is {kind}: they are never mixed. Run 'python "
            "-m builders repository --new-store' (or build RECIPE --new-store), which fills a new store beside this "
            "one and renames it into its place; or name data of the same kind (--data, TRITONRANK_DATA)"
        )

    @property
    def kind(self) -> Kind | None:
        """Of its data. None: it is empty, or of an earlier version of the kit, which wrote real and generated data
        alike; then real data is taken for granted."""
        told = self._about().get("kind")
        return "real" if told is None and any(self.tables().values()) else told  # type: ignore[return-value]

    @property
    def repositories(self) -> list[Path]:
        """Model repositories that were published with this store."""
        return [Path(key.removeprefix("repository ")) for key in self._about() if key.startswith("repository ")]

    def note(self, table: str, kind: str) -> str | None:
        """What the store was told of a table, such as its index."""
        return self._about().get(f"{kind} {table}")

    def set_note(self, table: str, kind: str, value: str | None) -> None:
        """Seen by readers with the next transaction. value: None = no longer."""
        self._tell(f"{kind} {table}", value)

    def remember(self, repository: Path) -> None:
        """A model repository is published with this store."""
        self._tell(f"repository {repository.resolve()}", "")

    def _about(self) -> dict[str, str]:
        if not self.has(_ABOUT):
            return {}
        table = self._handle(_ABOUT)
        return self._transact(
            lambda transaction: {key.decode(): value.decode() for key, value in transaction.cursor(table)}
        )

    def _tell(self, key: str, value: str | None) -> None:
        """value: None = no longer."""
        if self._about().get(key) == value:
            return
        table = self._handle(_ABOUT, create=True)

        def work(transaction: Any) -> None:
            if value is None:
                transaction.delete(key.encode(), db=table)
            else:
                transaction.put(key.encode(), value.encode(), db=table)

        self._transact(work, write=True)

    # ------------------------------------------------------------ LMDB
    def _log(self, transaction: Any, table: str, tables: _Tables, keys: Sequence[bytes]) -> None:
        """Nobody follows a table that is not whole."""
        unfilled = transaction.get(f"filling {table}".encode(), db=self._handles[_ABOUT]) is not None
        if unfilled or not keys:
            return
        with transaction.cursor(tables.changes) as cursor:
            last = int.from_bytes(cursor.key(), "big") if cursor.last() else 0
            for number, key in enumerate(keys, start=last + 1):
                cursor.put(_sequence(number), key)
            unread = last + len(keys) - KEPT_CHANGES
            index = transaction.get(f"{NOTE} {table}".encode(), db=self._handles[_ABOUT])
            with contextlib.suppress(IndexFault):  # by another version of the kit: it is made anew
                unread = min(unread, IndexNote.decoded(index).sequence) if index else unread
            while cursor.first() and int.from_bytes(cursor.key(), "big") <= unread:
                cursor.delete()

    def _tables_of(self, table: str) -> _Tables:
        """Of a table of an earlier version of the kit those beside it are made now."""
        beside = (_MARKS + table, _CHANGES + table, _ABOUT)
        marks, changes, _ = (self._handle(name, create=True) for name in beside)
        return _Tables(self._handle(table), marks, changes)

    def _names(self) -> list[str]:
        return self._transact(lambda transaction: [key.decode() for key, _ in transaction.cursor()])

    def _stat(self, handle: Any) -> dict[str, int]:
        return self._transact(lambda transaction: transaction.stat(handle))

    def _handle(self, name: str, *, create: bool = False) -> Any:
        if name not in self._handles:
            self._handles[name] = self._guarded(lambda: self._environment.open_db(name.encode(), create=create))
        return self._handles[name]

    def _transact(self, work: Callable[[Any], T], *, write: bool = False) -> T:
        """Run ``work`` in a transaction, again where the map had to grow."""

        def attempt() -> T:
            with self._environment.begin(write=write) as transaction:
                return work(transaction)

        return self._guarded(attempt)

    def _guarded(self, attempt: Callable[[], T]) -> T:
        while True:
            try:
                return attempt()
            except lmdb.MapResizedError:  # another writer enlarged the map: adopt its size
                self._environment.set_mapsize(0)
            except lmdb.MapFullError:
                self._grow()
            except lmdb.DbsFullError as error:
                raise ItemStoreError(
                    f"item store {self.folder} holds more than {MAX_TABLES} tables: run 'python -m builders "
                    "prune', which drops those that no version of a published model reads"
                ) from error
            except lmdb.Error as error:
                raise self._refusal(error) from error

    def _grow(self) -> None:
        """Twice as much address space."""
        size = self._environment.info()["map_size"]
        try:
            self._environment.set_mapsize(2 * size)
        except (lmdb.Error, OverflowError, MemoryError) as error:
            raise ItemStoreError(
                f"item store {self.folder} is full at {size / 2**30:.3g} GiB, and this machine gives it no more "
                f"address space ({error}): run 'python -m builders prune', or set {SIZE_VARIABLE}"
            ) from error

    def _refusal(self, error: lmdb.Error) -> ItemStoreError:
        if isinstance(error, lmdb.DiskError) or any(reason in str(error) for reason in _DISK_FULL):
            return ItemStoreError(
                f"item store {self.folder}: the disk, or this user's share of it, is full ({error}). What was "
                "committed before is whole; make room, or run 'python -m builders prune', then this command again"
            )
        return ItemStoreError(f"item store {self.folder}: LMDB fails ({error}); run the command again")


def _page(transaction: Any, tables: _Tables, after: bytes) -> list[tuple[bytes, Mark]]:
    """The next ``_BATCH`` items after this one."""
    found: list[tuple[bytes, Mark]] = []
    with transaction.cursor(tables.values) as cursor:
        there = cursor.set_range(after) if after else cursor.first()
        if there and after and cursor.key() == after:
            there = cursor.next()
        while there and len(found) < _BATCH:
            found.append((cursor.key(), Mark.decoded(transaction.get(cursor.key(), db=tables.marks))))
            there = cursor.next()
    return found


def _write(transaction: Any, tables: _Tables, key: bytes, entry: Entry, sources: Collection[str]) -> bool:
    """Whether the value is another one now."""
    stored = transaction.get(key, db=tables.values)
    before = Mark.decoded(transaction.get(key, db=tables.marks))
    if entry.value is None and before.content != entry.content:
        return False  # another writer was quicker, with another content
    mark = Mark(entry.content, before.sources).known_by(sources)
    if mark != before:
        transaction.put(key, mark.encoded(), db=tables.marks)
    if entry.value is None or entry.value == stored:
        return False
    transaction.put(key, entry.value, db=tables.values)
    return True


def _remove(transaction: Any, tables: _Tables, key: bytes, sources: Collection[str]) -> bool:
    """Whether the item was there and is gone."""
    before = Mark.decoded(transaction.get(key, db=tables.marks))
    if left := before.sources.difference(sources):
        transaction.put(key, Mark(before.content, left).encoded(), db=tables.marks)
        return False
    transaction.delete(key, db=tables.marks)
    return bool(transaction.delete(key, db=tables.values))


def _last_change(transaction: Any, tables: _Tables) -> int:
    with transaction.cursor(tables.changes) as cursor:
        return int.from_bytes(cursor.key(), "big") if cursor.last() else 0


def _sequence(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _bytes(stat: dict[str, int]) -> int:
    return int(stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]))


def _size_gib() -> float:
    told = os.environ.get(SIZE_VARIABLE) or str(DEFAULT_SIZE_GIB)
    try:
        size = float(told)
    except ValueError:
        size = math.nan
    if not 0 < size < 2**20:
        raise ItemStoreError(f"{SIZE_VARIABLE} is '{told}', wanted a number of GiB above 0, such as 8")
    return size


def table_name(features: str, version: str) -> str:
    """``<features>@<version>``."""
    return f"{features}@{version}"


def item_key(item_id: str) -> bytes:
    """The id as LMDB's key. Raises: ItemStoreError."""
    key = item_id.encode("utf-8")
    if not 1 <= len(key) <= MAX_ITEM_ID_BYTES:
        raise ItemStoreError(f"item id of {len(key)} bytes, wanted 1 to {MAX_ITEM_ID_BYTES}: {item_id[:60]!r}")
    return key
