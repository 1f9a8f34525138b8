"""The vectors of a table of the item store, compared exactly or by an index, which follow the table item by item.

A small table's vectors all lie in one matrix (:class:`Vectors`). For a large one builders make an index, a file that is
mapped into memory; what changed since lies beside it in a matrix of its own (:class:`Indexed`), until they make the
next.

Beside the table lies ``:changes/<table>``: sequence number => id of an item that was put or removed. What was written
since the last look is read from there, a part by each request, so that none waits for all of it. Where the log does not
reach back so far, the whole table is read by a thread of its own, and requests are answered from the vectors before
until it is done. A new index is taken up when it has followed as far as what is served.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from index_search import INDEXES, NOTE, IndexFault, IndexNote, SearchIndex, asked_for, unit_vectors

ABOUT, CHANGES = ":about", ":changes/"
MOST_AT_ONCE = 1000
"""Changes that one request takes up, about two milliseconds; the next one takes up the next. To read the table anew in
their place would take its thread's share of the interpreter from every request until it is done."""
ITEMS_AT_ONCE = 10_000
SPARE_SHARE, SPARE_ROWS = 8, 1024
"""Rows for items that come: one for each 8, and so many."""


class UnknownItem(KeyError):
    """The table does not hold the item."""


class Vectors:
    """Item id => vector of length 1.

    Attributes:
        matrix: FP32 [rows, width], of which the first ``len(self)`` are items, in no order; zeros stay zeros.
    """

    def __init__(self, width: int, items: int = 0) -> None:
        self.width = width
        rows = items + items // SPARE_SHARE + SPARE_ROWS
        self.matrix = np.empty((rows, width), dtype=np.float32)
        self.ids = np.empty(rows, dtype=np.object_)
        self.row_of: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.row_of)

    def put(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Add or replace; values are little-endian FP32. Raises: RuntimeError: a value is no such vector."""
        if not items:
            return
        vectors = unit_vectors([value for _, value in items], self.width)
        if len(self) + len(items) > len(self.matrix):
            self._enlarge(len(self) + len(items))
        rows = [self.row_of.setdefault(item_id, len(self.row_of)) for item_id, _ in items]
        self.matrix[rows] = vectors
        self.ids[rows] = np.array([item_id for item_id, _ in items], dtype=np.object_)

    def remove(self, item_id: bytes) -> None:
        """The last row takes the place; nothing where it is not there."""
        row = self.row_of.pop(item_id, None)
        last = len(self)
        if row is not None and row != last:
            self.matrix[row], self.ids[row] = self.matrix[last], self.ids[last]
            self.row_of[self.ids[row]] = row

    def nearest(self, item_id: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and FP32 cosines of the nearest items without itself, at most ``count``: highest first, equal ones in the
        order of their ids. Raises: UnknownItem."""
        row = self.row_of.get(item_id)
        if row is None:
            raise UnknownItem(item_id)
        return self.nearest_to(self.matrix[row], item_id, count)

    def nearest_to(self, vector: np.ndarray, left_out: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of a vector (FP32 [width], of length 1), without one item."""
        items = len(self)
        return best(self.matrix[:items] @ vector, self.ids[:items], self.row_of.get(left_out), count)

    def _enlarge(self, items: int) -> None:
        larger = Vectors(self.width, items)
        present = len(self)
        larger.matrix[:present], larger.ids[:present] = self.matrix[:present], self.ids[:present]
        self.matrix, self.ids = larger.matrix, larger.ids


class Indexed:
    """An index, and beside it, compared exactly, every item that was put since.

    Args:
        search: the index.
        read: stored bytes of each id as they are now, None where the table does not hold it.

    Attributes:
        beside: vectors of what was put since.
        changed: ids of what was put or removed since; the index's own vectors of these are not looked at.
    """

    def __init__(self, search: SearchIndex, width: int, read: Callable[[Sequence[bytes]], list[bytes | None]]) -> None:
        self.search, self.width, self._read = search, width, read
        self.beside = Vectors(width)
        self.changed: set[bytes] = set()

    def put(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Add or replace, as :meth:`Vectors.put`."""
        self.changed.update(item_id for item_id, _ in items)
        self.beside.put(items)

    def remove(self, item_id: bytes) -> None:
        """Nothing where it is not there."""
        self.changed.add(item_id)
        self.beside.remove(item_id)

    def nearest(self, item_id: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`Vectors.nearest`, of the items that the index finds, with exact cosines. Raises: UnknownItem."""
        [value] = self._read([item_id])
        if value is None:
            raise UnknownItem(item_id)
        vector = unit_vectors([value], self.width)[0]
        parts = (self._indexed(vector, item_id, count), self.beside.nearest_to(vector, item_id, count))
        ids, scores = (np.concatenate(both) for both in zip(*parts, strict=True))
        return best(scores, ids, None, count)

    def _indexed(self, vector: np.ndarray, left_out: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Of all that did not change, as it is stored."""
        asked = asked_for(count)
        while True:
            found = self.search.nearest(vector, asked)
            ids = [one for one in found if one != left_out and one not in self.changed]
            if len(ids) >= count or len(found) < asked:
                break
            asked *= 2
        there = [(one, value) for one, value in zip(ids, self._read(ids), strict=True) if value is not None]
        scores = unit_vectors([value for _, value in there], self.width) @ vector
        return np.array([one for one, _ in there], dtype=np.object_), scores


def best(scores: np.ndarray, ids: np.ndarray, left_out: int | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores of the highest, highest first, equal ones in the order of their ids; one row is left out."""
    wanted = count if left_out is None else count + 1
    chosen = np.arange(len(scores))
    if wanted < len(scores):
        chosen = np.flatnonzero(scores >= np.partition(scores, len(scores) - wanted)[len(scores) - wanted])
    chosen = chosen[chosen != left_out] if left_out is not None else chosen
    order = np.argsort(-scores[chosen], kind="stable")
    ranked = scores[chosen[order]]
    if (ranked[1:] == ranked[:-1]).any():
        order = np.array(sorted(range(len(chosen)), key=lambda one: (-scores[chosen[one]], ids[chosen[one]])))
    rows = chosen[order][:count]
    return ids[rows], scores[rows]


@dataclasses.dataclass
class State:
    """Vectors, and how far they follow the table.

    Attributes:
        sequence: number of the last change in them.
        seen: LMDB's transaction that they are as of; 0 = of none quite.
    """

    vectors: Vectors | Indexed
    sequence: int
    seen: int = 0


class FollowedTable:
    """A table's vectors as they are now.

    Args:
        environment: LMDB's, read-only, which nothing else reads meanwhile.
        table: ``<features>@<version>``.
        exact: use no index although there is one.
        warn: told why an index is not used.

    Attributes:
        loads: how often the whole table was read.
        opened: how often an index was.

    Raises:
        RuntimeError: a stored value is no vector of this width.
    """

    def __init__(
        self,
        environment: Any,
        table: str,
        width: int,
        *,
        exact: bool = False,
        warn: Callable[[str], object] = print,
    ) -> None:
        self._environment, self._width, self._exact, self._warn = environment, width, exact, warn
        self._name = table
        self._table = environment.open_db(table.encode(), create=False)
        self._changes_name = CHANGES + table
        self._changes = _opened(environment, self._changes_name)
        self._about = _opened(environment, ABOUT)
        self._reading = threading.Lock()  # the map may be resized only while nothing is read
        self._thread: threading.Thread | None = None  # reads the whole table, or opens an index; one at a time
        self._fresh: State | None = None
        self._fault: Exception | None = None
        self._note = b""
        self.loads = self.opened = 0
        self._coming: State | None = None
        self._now = self._first()

    def vectors(self) -> Vectors | Indexed:
        """What the table holds; of many changes at once the first, and with each further call more.

        Raises:
            RuntimeError: a stored value is no vector of this width.
        """
        self._raise_fault()
        behind = self._environment.info()["last_txnid"] != self._now.seen
        if (behind or self._fresh or self._coming) and self._reading.acquire(blocking=False):
            try:
                self._adopt()
                self._follow()
            finally:
                self._reading.release()
        return self._now.vectors

    def close(self) -> None:
        """Wait until nothing is read any more."""
        if self._thread is not None:
            self._thread.join()

    def _first(self) -> State:
        note = self._transact(self._noted)
        found = self._index(note)
        if found is None:
            return self._load()
        while (reached := self._take_up(found)) is not None and not reached:
            pass
        return found if reached else self._load()

    # ------------------------------------------------------------ item by item
    def _follow(self) -> None:
        self._changes = self._changes or _opened(self._environment, self._changes_name)  # a writer may have made them
        self._about = self._about or _opened(self._environment, ABOUT)
        self._look_for_index()
        if self._coming is not None and self._take_up(self._coming) is None:
            self._coming = None
        if self._take_up(self._now) is None and self._coming is None:
            self._read_anew()
        if self._coming is not None and self._coming.sequence >= self._now.sequence and not self._is_busy:
            self._now, self._coming = self._coming, None

    def _take_up(self, state: State) -> bool | None:
        """Whether all changes are in it now, of which it takes up MOST_AT_ONCE; None where the log does not reach back
        so far."""
        changes = self._transact(lambda transaction: self._changed(transaction, state.sequence))
        if changes is None:
            return None
        items, reached, seen = changes
        state.vectors.put([(item_id, value) for item_id, value in items.items() if value is not None])
        for item_id in (item_id for item_id, value in items.items() if value is None):
            state.vectors.remove(item_id)
        state.sequence, state.seen = reached, seen or state.seen
        return bool(seen)

    def _changed(self, transaction: Any, sequence: int) -> tuple[dict[bytes, bytes | None], int, int] | None:
        """(id => value, None where it was removed; the sequence number up to which; the transaction, or 0 where more is
        left); None where the table has to be read anew."""
        if self._changes is None:
            return None
        with transaction.cursor(self._changes) as cursor:
            last = _number(cursor.key()) if cursor.last() else 0
            first = _number(cursor.key()) if cursor.first() else 1
            if not first - 1 <= sequence <= last:
                return None
            reached = min(last, sequence + MOST_AT_ONCE)
            there = cursor.set_range((sequence + 1).to_bytes(8, "big"))
            ids = {bytes(item_id) for _, item_id in itertools.islice(cursor, reached - sequence)} if there else set()
        values = {item_id: transaction.get(item_id, db=self._table) for item_id in ids}
        return values, reached, transaction.id() if reached == last else 0

    def _values(self, ids: Sequence[bytes]) -> list[bytes | None]:
        return self._transact(lambda transaction: [transaction.get(item_id, db=self._table) for item_id in ids])

    # ------------------------------------------------------------ an index
    def _noted(self, transaction: Any) -> bytes:
        return b"" if self._about is None else transaction.get(f"{NOTE} {self._name}".encode(), b"", db=self._about)

    def _look_for_index(self) -> None:
        """Where the store names another one, it is opened by a thread of its own, which reads no table."""
        note = b"" if self._exact else self._transact(self._noted)
        if note != self._note and not self._is_busy:
            self._start(lambda: self._index(note))

    def _index(self, note: bytes) -> State | None:
        """The index that the store names, without what changed since. None: it names none, or it cannot be used."""
        self._note = note
        if self._exact or not note:
            return None
        try:
            noted = IndexNote.decoded(note)
            if not noted.folder:
                return None
            search = SearchIndex(Path(self._environment.path()) / INDEXES / self._name / noted.folder, noted)
        except (IndexFault, ImportError) as fault:
            self._warn(f"similar compares with every item of {self._name}: {fault}")
            return None
        self.opened += 1
        return State(Indexed(search, self._width, self._values), noted.sequence)

    # ------------------------------------------------------------ the whole table
    def _read_anew(self) -> None:
        """Beside the requests; those that an index answers read the table, too, and wait for it."""
        if isinstance(self._now.vectors, Indexed):
            if not self._is_busy:
                self._now = self._load()
        elif not self._is_busy:
            self._start(self._load_alone)

    def _load_alone(self) -> State:
        with self._reading:
            return self._load()

    def _load(self) -> State:
        self.loads += 1
        return self._transact(self._whole)

    def _whole(self, transaction: Any) -> State:
        vectors = Vectors(self._width, transaction.stat(self._table)["entries"])
        with transaction.cursor(self._table) as cursor:
            for items in _in_parts(cursor):
                vectors.put(items)
        last = 0
        if self._changes is not None:
            with transaction.cursor(self._changes) as cursor:
                last = _number(cursor.key()) if cursor.last() else 0
        return State(vectors, last, transaction.id())

    # ------------------------------------------------------------ beside the requests
    @property
    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self, work: Callable[[], State | None]) -> None:
        def run() -> None:
            try:
                self._fresh = work()
            except Exception as error:  # raised by the next request
                self._fault = error

        self._thread = threading.Thread(target=run, name="vectors", daemon=True)
        self._thread.start()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def _adopt(self) -> None:
        """An index follows the table first as far as what is served."""
        fresh, self._fresh = self._fresh, None
        if fresh is None:
            return
        if isinstance(fresh.vectors, Indexed):
            self._coming = fresh
        else:
            self._now = fresh

    def _transact(self, work: Any) -> Any:
        try:
            with self._environment.begin() as transaction:
                return work(transaction)
        except lmdb.MapResizedError:  # a writer enlarged the map: adopt its size
            self._environment.set_mapsize(0)
            with self._environment.begin() as transaction:
                return work(transaction)


def _in_parts(cursor: Iterable[tuple[bytes, bytes]]) -> Iterable[list[tuple[bytes, bytes]]]:
    part: list[tuple[bytes, bytes]] = []
    for item in cursor:
        part.append(item)
        if len(part) == ITEMS_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _opened(environment: Any, name: str) -> Any:
    """None where the store is of an earlier version and has no such table."""
    try:
        return environment.open_db(name.encode(), create=False)
    except lmdb.NotFoundError:
        return None


def _number(key: bytes) -> int:
    return int.from_bytes(key, "big")
