"""All vectors of a table of the item store in one matrix, which follows the table item by item.

Beside the table lies ``:changes/<table>``: sequence number => id of an item that was put or removed. What was written
since the last look is read from there, a part by each request, so that none waits for all of it. Where the log does not
reach back so far, the whole table is read by a thread of its own, and requests are answered from the vectors before
until it is done.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import lmdb
import numpy as np

CHANGES = ":changes/"
MOST_AT_ONCE = 1000
"""Changes that one request takes up, about two milliseconds; the next one takes up the next. To read the table anew in
their place would take its thread's share of the interpreter from every request until it is done."""
ITEMS_AT_ONCE = 10_000
SPARE_SHARE, SPARE_ROWS = 8, 1024
"""Rows for items that come: one for each 8, and so many."""


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
        order of their ids. Raises: KeyError: no such item."""
        row, items = self.row_of[item_id], len(self)
        scores = self.matrix[:items] @ self.matrix[row]
        rows = best(scores, self.ids[:items], row, count)
        return self.ids[rows], scores[rows]

    def _enlarge(self, items: int) -> None:
        larger = Vectors(self.width, items)
        present = len(self)
        larger.matrix[:present], larger.ids[:present] = self.matrix[:present], self.ids[:present]
        self.matrix, self.ids = larger.matrix, larger.ids


def unit_vectors(values: Sequence[bytes], width: int) -> np.ndarray:
    """FP32 [items, width] of length 1, from little-endian FP32; zeros stay zeros. Raises: RuntimeError."""
    wrong = next((len(value) for value in values if len(value) != 4 * width), None)
    if wrong is not None:
        raise RuntimeError(f"a stored vector has {wrong} bytes, wanted {4 * width}: fill the item store anew")
    vectors = np.frombuffer(bytearray().join(values), dtype="<f4").reshape(len(values), width)  # writable, one copy
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    vectors /= np.where(lengths > 0, lengths, 1)[:, None]
    return vectors


def best(scores: np.ndarray, ids: np.ndarray, left_out: int, count: int) -> np.ndarray:
    """Rows of the highest scores, highest first, equal ones in the order of their ids; one row is left out."""
    count = min(count, len(scores) - 1)
    lowest = np.partition(scores, len(scores) - 1 - count)[len(scores) - 1 - count]  # one more, for the one left out
    chosen = np.flatnonzero(scores >= lowest)
    chosen = chosen[chosen != left_out]
    order = np.argsort(-scores[chosen], kind="stable")
    ranked = scores[chosen[order]]
    if (ranked[1:] == ranked[:-1]).any():
        order = np.array(sorted(range(len(chosen)), key=lambda one: (-scores[chosen[one]], ids[chosen[one]])))
    return chosen[order][:count]


class FollowedTable:
    """A table's vectors as they are now.

    Args:
        environment: LMDB's, read-only, which nothing else reads meanwhile.
        table: ``<features>@<version>``.

    Attributes:
        loads: how often the whole table was read.

    Raises:
        RuntimeError: a stored value is no vector of this width.
    """

    def __init__(self, environment: Any, table: str, width: int) -> None:
        self._environment, self._width = environment, width
        self._table = environment.open_db(table.encode(), create=False)
        self._changes_name = CHANGES + table
        self._changes = _opened(environment, self._changes_name)
        self._reading = threading.Lock()  # the map may be resized only while nothing is read
        self._fresh: tuple[Vectors, int, int] | None = None
        self._fault: Exception | None = None
        self._reader: threading.Thread | None = None
        self.loads = 0
        self._vectors, self._sequence, self._seen = self._load()

    def vectors(self) -> Vectors:
        """What the table holds; of many changes at once the first, and with each further call more.

        Raises:
            RuntimeError: a stored value is no vector of this width.
        """
        self._adopt()
        if self._environment.info()["last_txnid"] != self._seen and self._reading.acquire(blocking=False):
            try:
                self._follow()
            finally:
                self._reading.release()
        return self._vectors

    def close(self) -> None:
        """Wait until nothing is read any more."""
        if self._reader is not None:
            self._reader.join()

    # ------------------------------------------------------------ item by item
    def _follow(self) -> None:
        if self._changes is None:  # a writer may have made it meanwhile
            self._changes = _opened(self._environment, self._changes_name)
        changes = self._transact(self._changed)
        if changes is None:
            self._read_anew()
            return
        items, sequence, seen = changes
        self._vectors.put([(item_id, value) for item_id, value in items.items() if value is not None])
        for item_id in (item_id for item_id, value in items.items() if value is None):
            self._vectors.remove(item_id)
        self._sequence, self._seen = sequence, seen

    def _changed(self, transaction: Any) -> tuple[dict[bytes, bytes | None], int, int] | None:
        """(id => value, None where it was removed; the sequence number up to which; the transaction, or that before
        where more is left); None where the table has to be read anew."""
        if self._changes is None:
            return None
        with transaction.cursor(self._changes) as cursor:
            last = _number(cursor.key()) if cursor.last() else 0
            first = _number(cursor.key()) if cursor.first() else 1
            if not first - 1 <= self._sequence <= last:
                return None
            reached = min(last, self._sequence + MOST_AT_ONCE)
            there = cursor.set_range((self._sequence + 1).to_bytes(8, "big"))
            ids = (
                {bytes(item_id) for _, item_id in itertools.islice(cursor, reached - self._sequence)}
                if there
                else set()
            )
        values = {item_id: transaction.get(item_id, db=self._table) for item_id in ids}
        return values, reached, transaction.id() if reached == last else self._seen

    # ------------------------------------------------------------ the whole table
    def _read_anew(self) -> None:
        """In a thread of its own, one at a time."""
        if self._reader is None or not self._reader.is_alive():
            self._reader = threading.Thread(target=self._load_beside, name="vectors", daemon=True)
            self._reader.start()

    def _load_beside(self) -> None:
        try:
            with self._reading:
                self._fresh = self._load()
        except Exception as error:  # raised by the next request
            self._fault = error

    def _adopt(self) -> None:
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault
        if self._fresh is not None:
            (self._vectors, self._sequence, self._seen), self._fresh = self._fresh, None

    def _load(self) -> tuple[Vectors, int, int]:
        self.loads += 1
        return self._transact(self._whole)

    def _whole(self, transaction: Any) -> tuple[Vectors, int, int]:
        vectors = Vectors(self._width, transaction.stat(self._table)["entries"])
        with transaction.cursor(self._table) as cursor:
            for items in _in_parts(cursor):
                vectors.put(items)
        last = 0
        if self._changes is not None:
            with transaction.cursor(self._changes) as cursor:
                last = _number(cursor.key()) if cursor.last() else 0
        return vectors, last, transaction.id()

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
