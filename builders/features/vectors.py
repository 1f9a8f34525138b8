"""An item's vector as the item store keeps it: FP32, FP16, or INT8 with a scale a vector.

``served/vector_preprocess/model.py`` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from builders.core.errors import BuilderError

VectorForm = Literal["fp32", "fp16", "int8"]
STEPS = 127
"""INT8 steps of a vector's largest value."""


class VectorError(BuilderError):
    """A vector that cannot be stored; the message says what was found, what was wanted and what to do."""


def stored_vectors(vectors: np.ndarray, form: VectorForm) -> Iterator[bytes]:
    """Each row's bytes, little-endian: FP32 or FP16 values; or an FP32 scale, then INT8 values.

    Args:
        vectors: float32 [items, width].

    Raises:
        VectorError: a value is NaN or infinite, or becomes so in FP16.
    """
    if form == "int8":
        steps, scales = _int8(vectors)
        yield from (scale.tobytes() + row.tobytes() for scale, row in zip(scales, steps, strict=True))
    else:
        yield from (row.tobytes() for row in _floats(vectors, form))


def as_stored(vectors: np.ndarray, form: VectorForm) -> np.ndarray:
    """float32 [items, width]: what is read back of :func:`stored_vectors`. Raises: VectorError."""
    if form == "int8":
        steps, scales = _int8(vectors)
        return np.asarray(steps * scales[:, None], dtype=np.float32)
    return _floats(vectors, form).astype(np.float32)


def _floats(vectors: np.ndarray, form: VectorForm) -> np.ndarray:
    _check_finite(vectors, "computed")
    with np.errstate(over="ignore"):
        found = vectors.astype("<f2" if form == "fp16" else "<f4")
    _check_finite(found, f"stored as {form}")
    return found


def _int8(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _check_finite(vectors, "computed")
    largest = np.abs(vectors).max(axis=1, initial=0)
    scales = (np.where(largest > 0, largest, 1) / STEPS).astype("<f4")
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


def _check_finite(vectors: np.ndarray, how: str) -> None:
    bad = int((~np.isfinite(vectors)).any(axis=1).sum())
    if bad:
        raise VectorError(
            f"{bad} of {len(vectors)} items' vectors hold NaN or infinities {how}, wanted numbers: set vectors = "
            '"fp32" under [text], or mend the checkpoint or the texts'
        )
