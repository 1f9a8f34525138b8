"""Key => bytes, in one SQLite file of bounded size that the instances of a model share; the oldest go first.

Standard library only. SQLite in WAL mode: readers never wait for a writer, and a process that is killed leaves the file
whole. https://www.sqlite.org/wal.html
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

WAIT_S = 0.05
"""For another process that writes; longer would cost more than the scores are worth."""
VARIABLES = 500
"""Of one statement; SQLite takes 999 at least."""
_OPENING = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",  # in WAL mode a crash loses the last rows at most
    "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, value BLOB NOT NULL)",
)


class ScoreStore:
    """An open file. Every method raises sqlite3.Error or OSError where the file cannot be used.

    Args:
        path: made where it is missing, with its folder, which nobody else may read.
        most_bytes: of its pages in use; what one write brings, and SQLite's log of at most some megabytes, come on top.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            for statement in _OPENING:
                self._connection.execute(statement)
            self._most_pages = most_bytes // self._number("page_size")
        except sqlite3.Error:
            self.close()
            raise

    def read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Those of the keys that are stored, with their values."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), VARIABLES):
            part = keys[start : start + VARIABLES]
            asked = ",".join("?" * len(part))
            found.update(self._connection.execute(f"SELECT key, value FROM scores WHERE key IN ({asked})", part))
        return found

    def write(self, values: Mapping[bytes, bytes]) -> None:
        """Store them; where the file is full, twice as many of the oldest go."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", values.items())
            if self._number("page_count") - self._number("freelist_count") > self._most_pages:
                oldest = "SELECT rowid FROM scores ORDER BY rowid LIMIT ?"
                self._connection.execute(f"DELETE FROM scores WHERE rowid IN ({oldest})", (2 * len(values),))
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _number(self, pragma: str) -> int:
        [found] = self._connection.execute(f"PRAGMA {pragma}").fetchone()
        return int(found)
