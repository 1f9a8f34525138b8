"""item id => the items nearest to it: exact cosine over every stored vector, without the item itself.

All vectors are held in one matrix, which follows the store (``vectors.py``): an added, changed or removed item is seen
by the next request without a restart; of more than 1,000 changes at once each request takes up 1,000.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from served import InvalidArgument, StoreModel, check_ids
from vectors import FollowedTable


class TritonPythonModel(StoreModel):
    """inputs: item_id BYTES [1], top_k INT32 [1] (optional); outputs: ranked_ids BYTES, scores FP32, both [ranked]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load contract and vectors. Raises: RuntimeError when the store does not hold them in the model's version."""
        super().initialize(args)
        table = f"{self.parameters['item_features']}@{self.parameters['item_features_version']}"
        self.followed = FollowedTable(self.store.environment, table, self.parameters["vector_width"])

    def answer(self, request: Any) -> dict[str, np.ndarray]:
        """ranked_ids and scores, both [ranked], at most top_k."""
        item_id = requested_item(request, self.parameters)
        count = top_k(request, self.parameters)
        vectors = self.followed.vectors()
        if item_id not in vectors.row_of:
            self.unknown.add(1)
            raise InvalidArgument("item_id: not in the item store; 'python -m builders add-items' adds items")
        ids, scores = vectors.nearest(item_id, count)
        return {"ranked_ids": ids, "scores": scores}

    def finalize(self) -> None:
        """Close the store."""
        self.followed.close()
        super().finalize()


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
