"""Files that are whole or absent: written beside and renamed. And what a file is: its SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

BLOCK_BYTES = 2**20


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in blocks of BLOCK_BYTES."""
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11, TensorRT 8.6's last one is 3.10
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(parts: Iterable[str]) -> str:
    """12 hexadecimal digits that change when any part does."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by rename, so that a reader or a crash meets the old file or the new one, never a part."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp gives 0600: the server may run as another user
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes ``target`` by rename when the block ends well, and vanishes when it does not.

    Its name starts with a dot and is not a number, so Triton takes it for no version. What an earlier, killed run
    left beside the target is removed first.

    Raises:
        FileExistsError: ``target`` exists.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; a version folder is never changed, choose the next number")
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(".new-*"):
        shutil.rmtree(stale)
    fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=".new-"))
    try:
        yield fresh
        fresh.chmod(0o755)
        fresh.rename(target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that takes ``target``'s place by rename when the block ends well, and vanishes when it does not.

    Who has files of the old one open goes on reading them; they are gone when the last one closes them.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    fresh, old = beside / "new", beside / "old"
    fresh.mkdir()
    try:
        yield fresh
        put_in_place(fresh, target, old)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def put_in_place(fresh: Path, target: Path, old: Path) -> None:
    """The folder ``fresh`` becomes ``target`` by rename, and what was there ``old``; both or none of it happens."""
    try:
        if target.exists():
            _copy_modes(target, fresh)
            target.rename(old)
        fresh.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise


def _copy_modes(source: Path, target: Path) -> None:
    """Of the folder and of files of the same name, such as a lock file that other users may write."""
    shutil.copymode(source, target)
    for file in target.iterdir():
        if (source / file.name).exists():
            shutil.copymode(source / file.name, file)
