"""BYTES tensors on the wire <=> arrays of bytes: each string after its length in four bytes, little-endian.

Strings of one length, as most catalogues' ids are, take no step of Python each. NumPy only.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

_LENGTH = struct.Struct("<I")


def decoded(buffer: np.ndarray) -> np.ndarray:
    """object [strings], each bytes, of a UINT8 buffer. Raises: ValueError: the last string is cut off."""
    content = buffer.tobytes()
    alike = _of_one_length(content)
    return np.array(_one_by_one(content) if alike is None else alike, dtype=np.object_)


def encoded(strings: np.ndarray) -> bytes | tuple[()]:
    """The buffer of an array of bytes or texts, in C order; () where it is empty, as Triton's own gives."""
    listed = [text if type(text) is bytes else str(text).encode() for text in strings.ravel().tolist()]
    if not listed:
        return ()
    lengths = np.fromiter(map(len, listed), dtype="<u4", count=len(listed))
    if not lengths[0] or (lengths != lengths[0]).any():
        return b"".join([part for text in listed for part in (_LENGTH.pack(len(text)), text)])
    rows = np.empty(len(listed), dtype=_row(int(lengths[0])))
    rows["length"], rows["text"] = lengths, np.frombuffer(b"".join(listed), dtype=rows.dtype["text"])
    return rows.tobytes()


def _of_one_length(content: bytes) -> Sequence[bytes] | None:
    """None where the strings differ in length, or are empty."""
    length = _LENGTH.unpack_from(content)[0] if len(content) >= _LENGTH.size else 0
    if not length or len(content) % (_LENGTH.size + length):
        return None
    rows = np.frombuffer(content, dtype=_row(length))
    # Where each has this length, each stands where a walk from the first would find it.
    strings: list[bytes] = rows["text"].tolist()
    return strings if (rows["length"] == length).all() else None


def _one_by_one(content: bytes) -> Sequence[bytes]:
    strings, end = [], 0
    while end < len(content):
        start = end + _LENGTH.size
        end = start + int.from_bytes(content[end:start], "little")
        strings.append(content[start:end])
    if end != len(content):
        raise ValueError(f"strings of {end} bytes in {len(content)}, wanted each as long as it says")
    return strings


def _row(length: int) -> np.dtype:
    return np.dtype([("length", "<u4"), ("text", f"V{length}")])
