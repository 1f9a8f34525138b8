"""The index of ``similar`` as it is read: a FAISS inverted file of a table's vectors, and which item each row is.

An index is a folder beside the item store, and a note in the store that names it (:class:`IndexNote`). Copied beside
``similar``'s ``model.py``, so that its recall is measured by the code that serves. Runs in both environments.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

INDEXES = "indexes"
"""Folder in the item store's: ``indexes/<table>/<index>``."""
NOTE = "index"
"""Kind of the note about a table that names its index."""
VECTORS, IDS, ENDS = "vectors.faiss", "ids.npy", "ends.npy"
SPARE = 32


class IndexFault(RuntimeError):
    """An index that cannot be read; the message says what was found and what to run."""


class StoredVectorFault(RuntimeError):
    """A stored value that is no vector of the table's width."""


class IndexNote(NamedTuple):
    """What the store says of a table's index.

    Attributes:
        folder: its name; "" = none was kept, since its recall was too low.
        sequence: number of the table's last change that is in it.
        items: its rows.
        width: of a vector.
        probes: lists that a search looks through.
        recall: share of the exact 10 nearest that it finds.
        queries: items that recall was measured with.
    """

    folder: str
    sequence: int
    items: int
    width: int
    probes: int
    recall: float
    queries: int

    def encoded(self) -> str:
        """As it is stored."""
        return json.dumps(self._asdict())

    @classmethod
    def decoded(cls, stored: str | bytes) -> IndexNote:
        """Of what is stored. Raises: IndexFault: by another version of the kit."""
        try:
            return cls(**json.loads(stored))
        except (TypeError, ValueError) as error:
            raise IndexFault(
                f"the store's note of an index is {stored!r:.200}: run 'python -m builders index'"
            ) from error


class SearchIndex:
    """An index that is searched; its file is mapped into memory, and shared by all processes that do so.

    Args:
        folder: with VECTORS, IDS and ENDS.
        note: what the store says of it.

    Attributes:
        lists: into which the vectors are parted.
        probes: lists that a search looks through: more find more, and take longer.

    Raises:
        IndexFault: it is not there, or not what the note says.
    """

    def __init__(self, folder: Path, note: IndexNote) -> None:
        import faiss  # here: shops whose catalogue is compared exactly never load it

        try:
            _read_ahead(folder / VECTORS)
            self._index = cast(Any, faiss.read_index(str(folder / VECTORS), faiss.IO_FLAG_MMAP_IFC))
            self._ids = np.load(folder / IDS, mmap_mode="r")
            self._ends = np.load(folder / ENDS, mmap_mode="r")
        except (OSError, RuntimeError, ValueError) as error:
            raise IndexFault(
                f"index {folder}: cannot be read ({error!s:.200}): run 'python -m builders index'"
            ) from error
        found = self._index.ntotal, self._index.d, len(self._ends)
        if found != (note.items, note.width, note.items):
            raise IndexFault(
                f"index {folder}: {found[0]} vectors of {found[1]} and {found[2]} ids, the store says {note.items} of "
                f"{note.width}: run 'python -m builders index'"
            )
        self.items, self.recall, self.probes = note.items, note.recall, note.probes
        self.lists = int(self._index.nlist)
        self._parameters: Any = faiss.SearchParametersIVF

    def nearest(self, vector: np.ndarray, count: int) -> list[bytes]:
        """Ids of ``count`` items near to a vector (FP32 [width], of length 1), or of all where there are fewer; the
        nearest first by what 8 bits a dimension tell of them. Looks through more lists where those hold too few."""
        count, probes = min(count, self.items), self.probes
        while True:
            _, [rows] = self._index.search(vector[None], count, params=self._parameters(nprobe=probes))
            if rows[-1] >= 0 or probes >= self.lists:
                return [self._item_id(row) for row in rows.tolist() if row >= 0]
            probes *= 2

    def _item_id(self, row: int) -> bytes:
        start = int(self._ends[row - 1]) if row else 0
        return self._ids[start : int(self._ends[row])].tobytes()


def asked_for(count: int) -> int:
    """How many items an index is asked for where the ``count`` nearest are wanted: 8 bits order them nearly right, the
    stored vectors then quite."""
    return 2 * count + SPARE


def unit_vectors(values: Sequence[bytes], width: int) -> np.ndarray:
    """FP32 [items, width] of length 1, from little-endian FP32; zeros stay zeros. Raises: StoredVectorFault."""
    wrong = next((len(value) for value in values if len(value) != 4 * width), None)
    if wrong is not None:
        raise StoredVectorFault(f"a stored vector has {wrong} bytes, wanted {4 * width}: fill the item store anew")
    vectors: Any = np.frombuffer(bytearray().join(values), dtype="<f4").reshape(len(values), width)  # writable, 1 copy
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    vectors /= np.where(lengths > 0, lengths, 1)[:, None]
    return vectors


def _read_ahead(path: Path) -> None:
    """The system reads the file while the first requests come."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
