"""One writer at a time: of a model repository, of a ranker's build folder. Between processes, by a file lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

LOCK = ".lock"


@contextlib.contextmanager
def only_writer(folder: Path, what: str, say: Callable[[str], object] = print) -> Iterator[None]:
    """Hold the folder's lock; a second writer waits, and says for what. It ends with its process, also a killed one.

    Entering again in the same thread is no wait.

    Args:
        what: as in "another process is writing ...; waiting".
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"another process is writing {what}; waiting until it has ended")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
