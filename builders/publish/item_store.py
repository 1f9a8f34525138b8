"""The item store: what a ranker needs of each item, by item id, in LMDB (many readers, one writer, while serving).

One table a ranker and version of its features, named ``<features>@<version>``, so that the store of a new version is
filled beside the one being served. Values are raw little-endian arrays; the ranker's pre-processing reads them.

Knows nothing of what the features mean.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmdb

from builders.core.contract import MAX_ITEM_ID_BYTES
from builders.core.errors import BuilderError

MAP_SIZE_BYTES = 8 << 30
"""Upper limit of the store; address space only, the file grows as it is filled."""
MAX_TABLES = 64
_BATCH = 10_000


class ItemStoreError(BuilderError):
    """The store or an item cannot be used; the message says why and what to do."""


class ItemStore:
    """The writer. Use as a context manager; one process at a time (LMDB makes a second wait).

    Args:
        folder: made when absent.

    Raises:
        ItemStoreError: what lies there is no item store, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        try:
            self._environment = lmdb.open(str(folder), map_size=MAP_SIZE_BYTES, max_dbs=MAX_TABLES)
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

    def put(self, features: str, version: str, items: Iterable[tuple[str, bytes]]) -> int:
        """Add or replace items, a transaction each 10,000: readers see whole items only.

        Args:
            features: table, such as ``cross_encoder``.
            version: of the model that the features belong to.
            items: (item id, value).

        Returns:
            Number of items written.

        Raises:
            ItemStoreError: an id that is empty or longer than LMDB's key limit.
        """
        table = self._environment.open_db(table_name(features, version).encode())
        count = 0
        pending: list[tuple[bytes, bytes]] = []
        for item_id, value in items:
            pending.append((item_key(item_id), value))
            if len(pending) == _BATCH:
                count += self._commit(table, pending)
                pending = []
        return count + self._commit(table, pending)

    def _commit(self, table: Any, items: list[tuple[bytes, bytes]]) -> int:
        with self._environment.begin(write=True, db=table) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(items)
        return len(items)

    def drop_other_versions(self, features: str, keep: set[str]) -> list[str]:
        """Delete the tables of ``features`` whose version is not in ``keep``; returns their names."""
        kept = {table_name(features, version) for version in keep}
        gone = [name for name in self.tables() if name.startswith(f"{features}@") and name not in kept]
        for name in gone:
            table = self._environment.open_db(name.encode(), create=False)
            with self._environment.begin(write=True) as transaction:
                transaction.drop(table)
        return gone

    def tables(self) -> dict[str, int]:
        """Table name => number of items."""
        with self._environment.begin() as transaction:
            names = [key.decode() for key, _ in transaction.cursor()]
        counts = {}
        for name in names:
            table = self._environment.open_db(name.encode(), create=False)
            with self._environment.begin() as transaction:
                counts[name] = transaction.stat(table)["entries"]
        return counts

    def ids(self, features: str, version: str) -> set[str]:
        """Ids that the table holds; empty when there is no such table."""
        name = table_name(features, version)
        if name not in self.tables():
            return set()
        table = self._environment.open_db(name.encode(), create=False)
        with self._environment.begin(db=table) as transaction:
            return {key.decode() for key in transaction.cursor().iternext(values=False)}


def table_name(features: str, version: str) -> str:
    """``<features>@<version>``."""
    return f"{features}@{version}"


def item_key(item_id: str) -> bytes:
    """The id as LMDB's key. Raises: ItemStoreError."""
    key = item_id.encode("utf-8")
    if not 1 <= len(key) <= MAX_ITEM_ID_BYTES:
        raise ItemStoreError(f"item id of {len(key)} bytes, wanted 1 to {MAX_ITEM_ID_BYTES}: {item_id[:60]!r}")
    return key
