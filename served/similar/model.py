"""item id => the items nearest to it: exact cosine over every stored vector, without the item itself.

All vectors are held in one matrix. It is read anew when something was written to the store, by the first request after
that, so an added item is found without a restart. That request takes longer: 0.3 s for 100,000 vectors of 384.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lmdb
import numpy as np
import triton_python_backend_utils as pb_utils
from served import InvalidArgument, StoreModel, check_ids


class TritonPythonModel(StoreModel):
    """inputs: item_id BYTES [1], top_k INT32 [1] (optional); outputs: ranked_ids BYTES, scores FP32, both [ranked]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load contract and vectors. Raises: RuntimeError when the store does not hold them in the model's version."""
        super().initialize(args)
        table = f"{self.parameters['item_features']}@{self.parameters['item_features_version']}"
        self.table = self.store.environment.open_db(table.encode(), create=False)
        self.load()

    def answer(self, request: Any) -> dict[str, np.ndarray]:
        """ranked_ids and scores, both [ranked], at most top_k."""
        item_id = requested_item(request, self.parameters)
        count = top_k(request, self.parameters)
        if self.store.environment.info()["last_txnid"] != self.loaded_at:
            self.load()
        row = self.row_of.get(item_id)
        if row is None:
            self.unknown.add(1)
            raise InvalidArgument("item_id: not in the item store; 'python -m builders add-items' adds items")
        scores = self.vectors @ self.vectors[row]
        nearest = best(scores, row, count)
        return {"ranked_ids": self.ids[nearest], "scores": scores[nearest]}

    def load(self) -> None:
        """All ids and vectors of the store as it is now. Raises: RuntimeError: a stored value is no such vector."""
        try:
            self._load()
        except lmdb.MapResizedError:  # a writer enlarged the map: adopt its size
            self.store.environment.set_mapsize(0)
            self._load()

    def _load(self) -> None:
        with self.store.environment.begin(db=self.table, buffers=True) as transaction:
            items = [(bytes(item_id), value) for item_id, value in transaction.cursor()]
            self.vectors = unit_vectors([value for _, value in items], self.parameters["vector_width"])
            written_by = transaction.id()
        self.ids = np.array([item_id for item_id, _ in items], dtype=np.object_)
        self.row_of = {item_id: row for row, (item_id, _) in enumerate(items)}
        self.loaded_at = written_by


def unit_vectors(values: Sequence[bytes | memoryview], width: int) -> np.ndarray:
    """FP32 [items, width] of length 1, from little-endian FP32; zeros stay zeros. Raises: RuntimeError."""
    wrong = next((len(value) for value in values if len(value) != 4 * width), None)
    if wrong is not None:
        raise RuntimeError(f"a stored vector has {wrong} bytes, wanted {4 * width}: fill the item store anew")
    vectors = np.frombuffer(bytearray().join(values), dtype="<f4").reshape(len(values), width)  # writable, one copy
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    vectors /= np.where(lengths > 0, lengths, 1)[:, None]
    return vectors


def best(scores: np.ndarray, left_out: int, count: int) -> np.ndarray:
    """Rows of the highest scores, highest first, equal ones in the order of their ids; one row is left out."""
    count = min(count, len(scores) - 1)
    lowest = np.partition(scores, len(scores) - 1 - count)[len(scores) - 1 - count]  # one more, for the one left out
    chosen = np.flatnonzero(scores >= lowest)
    chosen = chosen[chosen != left_out]
    return chosen[np.argsort(-scores[chosen], kind="stable")][:count]


def requested_item(request: Any, limits: dict[str, Any]) -> bytes:
    """Input ``item_id`` (BYTES [1]). Raises: InvalidArgument."""
    item_ids: list[bytes] = pb_utils.get_input_tensor_by_name(request, "item_id").as_numpy().reshape(-1).tolist()
    check_ids(item_ids, "item_id", limits["max_item_id_bytes"])
    return item_ids[0]


def top_k(request: Any, limits: dict[str, Any]) -> int:
    """How many items to return: input ``top_k`` (INT32 [1]). Raises: InvalidArgument."""
    tensor = pb_utils.get_input_tensor_by_name(request, "top_k")
    value = 0 if tensor is None else int(tensor.as_numpy().reshape(-1)[0])
    if not 0 <= value <= limits["max_similar"]:
        raise InvalidArgument(
            f"top_k: {value}, wanted 0 ({limits['default_similar']} items) to {limits['max_similar']}"
        )
    return value or limits["default_similar"]
