"""Large files as independent compressed blobs: written on the packing machine, put together on the GPU machine by all
of its cores at once, whatever blobs are there already and in whatever order they come.

A library's CUDA kernels are LZ4 blocks, which nothing compresses further. So the ones that the GPU can load travel
plain in xz, where hundreds of near-equal kernels share a dictionary, and are put back as LZ4 blocks into the room that
they had; the others are left zero. Every other byte, the entries' headers included, and every offset stays what it was.

Needs the package lz4 where a library has compressed kernels; xz is in Python.
"""

from __future__ import annotations

import dataclasses
import lzma
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deploy.airgap import fatbins

FILTERS: dict[str, list[dict[str, int]]] = {
    "code": [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 64 * 2**20}],
    "kernels": [{"id": lzma.FILTER_LZMA2, "dict_size": 128 * 2**20, "lc": 0, "lp": 4, "pb": 4}],
    "workload": [{"id": lzma.FILTER_LZMA2, "lc": 0, "lp": 0, "pb": 0}],
}
"""Kind of content => what compresses it best; a kernel's instructions are 16 bytes long, weights are sorted by byte."""
CODE_CHUNK, KERNEL_CHUNK = 20 * 2**20, 128 * 2**20
LZ4_LEVELS = (6, 12)
"""Of LZ4's high compression: the first whose block fits into the room of the original's."""


@dataclasses.dataclass(frozen=True)
class Blob:
    """What one blob holds of one file.

    Attributes:
        kind: "code" or "kernels".
        pieces: [offset, bytes] of code; [payload offset, room, header offset, plain bytes, whether LZ4, crc32] of
            kernels.
    """

    file: str
    kind: str
    pieces: Sequence[Sequence[int]]


def library_blobs(path: Path, name: str, arch: int, how: str) -> Iterator[tuple[Blob, bytes]]:
    """A library in blobs, for a GPU of ``arch``. how:

    "repacked"  kernels that it can load, plain, to be LZ4 blocks again; the others are zero
    "blocks"    the same kernels, their LZ4 blocks as they are
    "all"       every byte as it is
    """
    data = path.read_bytes()
    found = [] if how == "all" else list(fatbins.containers(data))
    kept = [entry for container in found for entry in fatbins.loadable(container, arch)]
    places = {entry.payload for entry in kept} if how == "blocks" else set()
    holes = [entry for container in found for entry in container if entry.payload not in places]
    anew = kept if how == "repacked" else []
    yield from _code_blobs(data, name, holes, {entry.header for entry in anew if entry.is_lz4})
    yield from _kernel_blobs(data, name, anew)


def _code_blobs(
    data: bytes, name: str, entries: Sequence[fatbins.Entry], anew: set[int]
) -> Iterator[tuple[Blob, bytes]]:
    """All but the payloads and the compressed sizes of those that are compressed ``anew``: blobs come in any order."""
    pieces: list[list[int]] = []
    total = start = 0
    holes = [(e.payload, e.payload + e.size) for e in entries]
    holes += [(at + fatbins.COMPRESSED_SIZE_AT, at + fatbins.COMPRESSED_SIZE_AT + 4) for at in anew]
    for end, following in [*sorted(holes), (len(data), len(data))]:
        while start < end:
            size = min(end - start, CODE_CHUNK - total)
            pieces.append([start, size])
            start, total = start + size, total + size
            if total == CODE_CHUNK:
                yield _code_blob(data, name, pieces)
                pieces, total = [], 0
        start = following
    if pieces:
        yield _code_blob(data, name, pieces)


def _code_blob(data: bytes, name: str, pieces: list[list[int]]) -> tuple[Blob, bytes]:
    return Blob(name, "code", pieces), b"".join(data[start : start + size] for start, size in pieces)


def _kernel_blobs(data: bytes, name: str, kept: Sequence[fatbins.Entry]) -> Iterator[tuple[Blob, bytes]]:
    pieces: list[list[int]] = []
    plain: list[bytes] = []
    if any(entry.is_lz4 for entry in kept):
        import lz4.block
    for entry in kept:
        payload = data[entry.payload : entry.payload + entry.size]
        kernel = lz4.block.decompress(payload[: entry.compressed], entry.plain) if entry.is_lz4 else payload
        pieces.append([entry.payload, entry.size, entry.header, len(kernel), int(entry.is_lz4), zlib.crc32(kernel)])
        plain.append(kernel)
        if sum(piece[3] for piece in pieces) >= KERNEL_CHUNK:
            yield Blob(name, "kernels", pieces), b"".join(plain)
            pieces, plain = [], []
    if pieces:
        yield Blob(name, "kernels", pieces), b"".join(plain)


def compressed(kind: str, content: bytes, preset: int = 6) -> bytes:
    """xz, with what suits the kind, one of FILTERS."""
    *before, last = FILTERS[kind]
    filters = [*before, {**last, "preset": preset}]
    return lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters)


def restore(blob: Blob, packed: bytes, folder: Path, size: int) -> None:
    """Put a blob's bytes where they belong in ``folder / blob.file`` of ``size`` bytes. Raises ValueError where they do
    not come out as they went in."""
    content = lzma.decompress(packed)
    handle = os.open(folder / blob.file, os.O_RDWR | os.O_CREAT, 0o755)
    try:
        os.ftruncate(handle, size)
        place = 0
        for piece in blob.pieces:
            plain = piece[3] if blob.kind == "kernels" else piece[1]
            part = content[place : place + plain]
            place += plain
            if blob.kind == "kernels":
                _put_kernel(handle, piece, part, f"{blob.file} at {piece[0]}")
            else:
                os.pwrite(handle, part, piece[0])
    finally:
        os.close(handle)


def _put_kernel(handle: int, piece: Sequence[int], kernel: bytes, where: str) -> None:
    payload, room, header, _, is_lz4, crc = piece
    if zlib.crc32(kernel) != crc:
        raise ValueError(f"{where}: a kernel came out changed")
    block = _fitting_block(kernel, room, where) if is_lz4 else kernel
    os.pwrite(handle, block + bytes(room - len(block)), payload)
    if is_lz4:
        os.pwrite(handle, struct.pack("<I", len(block)), header + fatbins.COMPRESSED_SIZE_AT)


def _fitting_block(kernel: bytes, room: int, where: str) -> bytes:
    import lz4.block

    for level in LZ4_LEVELS:
        block = lz4.block.compress(kernel, mode="high_compression", compression=level, store_size=False)
        if len(block) <= room:
            return block
    raise ValueError(f"{where}: {len(block)} bytes of LZ4 do not fit into {room}")


def to_json(blob: Blob) -> dict[str, Any]:
    """Inverse of ``Blob(**...)``."""
    return dataclasses.asdict(blob)
