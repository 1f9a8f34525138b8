"""A key for each row of a request, equal where the row's score is: of the model, of what the row holds and of what the
whole request shares. Standard library and NumPy only.

So nothing has to be told of a change: another text of an item, another query or prompt, another model file is another
key.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from batching import Arrays, RunLimits, used_lengths
from numpy.typing import NDArray

KEY_BYTES = 16
"""Of 2**128 keys two of a million million rows are equal with a probability of 1e-15."""
NO_KEY = b""
_CHUNK_BYTES = 1 << 20
_NOT_OF_SCORES = ("version_policy",)
"""Of a model configuration: what can change without any score of a version changing."""


def model_digest(version_folder: Path, config: Mapping[str, Any], runtime: str) -> bytes:
    """Of all that a row's score depends on besides the request: the version's files, how the runtime is set, the
    runtime itself, the processor's instruction sets.

    Args:
        config: the model's configuration, as Triton hands it over.
        runtime: name and version, such as "onnxruntime 1.32.0".
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    settings = {name: value for name, value in config.items() if name not in _NOT_OF_SCORES}
    _add(digest, json.dumps([settings, runtime, _instruction_sets()], sort_keys=True).encode())
    for path in sorted(path for path in version_folder.rglob("*") if path.is_file()):
        _add(digest, str(path.relative_to(version_folder)).encode())
        _add(digest, _file_digest(path))
    return digest.digest()


def _add(digest: Any, part: bytes) -> None:
    """With its length, so that no two series of parts are the same bytes."""
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def _file_digest(path: Path) -> bytes:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.digest()


def _instruction_sets() -> list[str]:
    """Of the first processor, as Linux calls them: runtimes choose their kernels by them."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return [platform.machine(), *sorted(flags.partition(":")[2].split())]


class RowKeys:
    """Gives each row of a request its key.

    Args:
        model: what :func:`model_digest` returns.
        limits: which inputs have the rows, and the mask of their padding.
        sequences: names of the row inputs that may have a value a token; those of the mask's length are read as far as
            the row's last token.
    """

    def __init__(self, model: bytes, limits: RunLimits, sequences: frozenset[str]) -> None:
        self._model, self._limits, self._sequences = model, limits, sequences

    def of(self, inputs: Arrays) -> list[bytes]:
        """A key of KEY_BYTES a row; NO_KEY of a row of zeros alone, which is what Triton warms a model up with.

        Args:
            inputs: of one request; no texts.
        """
        of_rows = dict(sorted(self._limits.of_rows(inputs).items()))
        mask = of_rows.get(self._limits.mask)
        cut = [
            name
            for name, array in of_rows.items()
            if mask is not None and name in self._sequences and array.shape[1] == mask.shape[1]
        ]
        of_request = self._of_request(inputs, of_rows, cut)
        rows = len(next(iter(of_rows.values())))
        used = np.zeros(rows, dtype=np.int64) if mask is None else used_lengths(mask).astype(np.int64)
        whole_arrays = [np.ascontiguousarray(array) for name, array in of_rows.items() if name not in cut]
        cut_arrays = [np.ascontiguousarray(of_rows[name]) for name in cut]
        keys = []
        for row, holds_any in enumerate(_hold_any(of_rows, rows)):
            digest = of_request.copy()
            digest.update(used[row])
            for array in whole_arrays:
                digest.update(array[row])
            for array in cut_arrays:
                digest.update(array[row, : used[row]])
            keys.append(digest.digest() if holds_any else NO_KEY)
        return keys

    def _of_request(self, inputs: Arrays, of_rows: Arrays, cut: list[str]) -> Any:
        """Names, types and shapes of all that is added of a row after this, and what the rows share."""
        digest = hashlib.blake2b(self._model, digest_size=KEY_BYTES)
        row_shapes = [
            (name, array.dtype.str, array.shape[2 if name in cut else 1 :]) for name, array in of_rows.items()
        ]
        _add(digest, repr((row_shapes, cut)).encode())
        for name, array in sorted(inputs.items()):
            if name not in of_rows:
                _add(digest, repr((name, array.dtype.str, array.shape)).encode())
                _add(digest, array.tobytes())
        return digest


def _hold_any(of_rows: Arrays, rows: int) -> list[bool]:
    """Whether each row holds anything but zeros."""
    found: NDArray[np.bool_] = np.zeros(rows, dtype=np.bool_)
    for array in of_rows.values():
        found |= array.any(axis=tuple(range(1, array.ndim)))
    return list(found)
