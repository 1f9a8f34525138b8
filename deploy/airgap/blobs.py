"""Large files as independent compressed chunks: cut on the packing machine, put together on the GPU machine by all of
its cores at once, whatever chunks are there already and in whatever order they come.

Every byte travels as it is: TensorRT checks the SHA-256 of its kernel library, and an H200 has seen it refuse one
without the kernels of other GPUs. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILTERS: dict[str, list[dict[str, int]]] = {
    "code": [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 64 * 2**20}],
    "workload": [{"id": lzma.FILTER_LZMA2, "lc": 0, "lp": 0, "pb": 0}],
}
"""Kind of content => what compresses it best; weights are sorted by byte."""
CODE_CHUNK = 20 * 2**20
READ_AT_ONCE = 2**22


@dataclasses.dataclass(frozen=True)
class Blob:
    """What one blob holds of one file.

    Attributes:
        file: path below the target.
        kind: one of FILTERS.
        offset: where in the file its bytes begin.
    """

    file: str
    kind: str
    offset: int


def chunks(root: Path, file: str, kind: str) -> Iterator[tuple[Blob, bytes]]:
    """``root / file`` in parts of CODE_CHUNK bytes, the last one of what is left."""
    with (root / file).open("rb") as source:
        offset = 0
        while content := source.read(CODE_CHUNK):
            yield Blob(file, kind, offset), content
            offset += len(content)


def compressed(kind: str, content: bytes, preset: int = 6) -> bytes:
    """xz, with what suits the kind, one of FILTERS."""
    *before, last = FILTERS[kind]
    filters = [*before, {**last, "preset": preset}]
    return lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters)


def restore(blob: Blob, packed: bytes, target: Path, size: int) -> None:
    """Put a blob's bytes where they belong in ``target / blob.file`` of ``size`` bytes."""
    content = lzma.decompress(packed)
    path = target / blob.file
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o755)
    try:
        os.ftruncate(handle, size)
        os.pwrite(handle, content, blob.offset)
    finally:
        os.close(handle)


def digest(path: Path) -> dict[str, Any]:
    """{"size": bytes, "sha256": in hexadecimal}: what a file that was put together is compared with."""
    found = hashlib.sha256()
    with path.open("rb") as source:
        while content := source.read(READ_AT_ONCE):
            found.update(content)
    return {"size": path.stat().st_size, "sha256": found.hexdigest()}


def to_json(blob: Blob) -> dict[str, Any]:
    """Inverse of ``Blob(**...)``."""
    return dataclasses.asdict(blob)
