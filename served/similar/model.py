"""item id => the items nearest to it by the cosine of their stored vectors, without the item itself.

Of a small catalogue every item is compared, of a large one those that an index finds; scores are exact either way. Both
follow the store (``vectors.py``): an added, changed or removed item is seen by the next request without a restart; of
more than 1,000 changes at once each request takes up 1,000.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from served import InvalidArgument, StoreModel, check_ids
from vectors import FollowedTable, Indexed, UnknownItem, Vectors


class TritonPythonModel(StoreModel):
    """inputs: item_id BYTES [1], top_k INT32 [1] (optional); outputs: ranked_ids BYTES, scores FP32, both [ranked]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load contract and vectors. Raises: RuntimeError when the store does not hold them in the model's version."""
        super().initialize(args)
        table = f"{self.parameters['item_features']}@{self.parameters['item_features_version']}"
        self.followed = FollowedTable(
            self.store.environment,
            table,
            self.parameters["vector_width"],
            exact=self.parameters["exact"],
            warn=pb_utils.Logger.log_warn,
        )
        self.index_gauges = IndexGauges(args["model_name"])

    def answer(self, request: Any) -> dict[str, np.ndarray]:
        """ranked_ids and scores, both [ranked], at most top_k."""
        item_id = requested_item(request, self.parameters)
        count = top_k(request, self.parameters)
        vectors = self.followed.vectors()
        self.index_gauges.update(vectors)
        try:
            ids, scores = vectors.nearest(item_id, count)
        except UnknownItem:
            self.unknown.add(1)
            raise InvalidArgument("item_id: not in the item store; 'python -m builders add-items' adds items") from None
        return {"ranked_ids": ids, "scores": scores}

    def finalize(self) -> None:
        """Close the store."""
        self.followed.close()
        super().finalize()


class IndexGauges:
    """How good the index is among Triton's own metrics, as of the latest request."""

    def __init__(self, model: str) -> None:
        meanings = {
            "tritonrank_similar_recall": "Share of the exact 10 nearest items that the index found when it was built",
            "tritonrank_similar_beside": "Items that changed since, which are compared beside the index",
        }
        families = [
            pb_utils.MetricFamily(name=name, description=meaning, kind=pb_utils.MetricFamily.GAUGE)
            for name, meaning in meanings.items()
        ]
        self._gauges = [(family, family.Metric(labels={"model": model})) for family in families]  # see Counter

    def update(self, vectors: Vectors | Indexed) -> None:
        """1 and 0 where every item is compared."""
        found = (vectors.search.recall, len(vectors.beside)) if isinstance(vectors, Indexed) else (1.0, 0)
        for (_, gauge), value in zip(self._gauges, found, strict=True):
            gauge.set(float(value))


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
