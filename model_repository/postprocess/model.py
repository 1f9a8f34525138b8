"""scores => ranked ids: highest first, ties by first-stage order, unknown items last, cut to top_k."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from served import Counter, InvalidArgument, answer_each, read_contract


class TritonPythonModel:
    """inputs: item_ids BYTES [candidates], score FP32 [candidates, 1], known BOOL [candidates], top_k INT32 [1]
    (optional); outputs: ranked_ids BYTES [ranked], scores FP32 [ranked]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the contract."""
        self.parameters = read_contract(args)["parameters"]
        self.unscored = Counter(
            "tritonrank_unscored_items_total", "Known candidates whose score was not a number", args["model_name"]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; see :func:`served.answer_each`."""
        return answer_each(requests, self.answer, pb_utils.Logger)

    def answer(self, request: Any) -> list[Any]:
        """ranked_ids and scores, both [ranked]."""
        item_ids = pb_utils.get_input_tensor_by_name(request, "item_ids").as_numpy()
        score = pb_utils.get_input_tensor_by_name(request, "score").as_numpy().reshape(-1)
        known = pb_utils.get_input_tensor_by_name(request, "known").as_numpy()
        count = top_k(request, len(item_ids))

        self.unscored.add(int((known & ~np.isfinite(score)).sum()))
        scores = np.where(known & np.isfinite(score), score, np.float32(self.parameters["unscored"]))
        order = best_first(scores)[:count]
        return [pb_utils.Tensor("ranked_ids", item_ids[order]), pb_utils.Tensor("scores", scores[order])]


def best_first(scores: np.ndarray) -> np.ndarray:
    """Positions, highest score first; equal scores keep their order. scores: FP32 [candidates], finite."""
    return np.argsort(-scores, kind="stable")


def top_k(request: Any, candidates: int) -> int:
    """How many items to return: input ``top_k`` (INT32 [1]), all when absent or 0. Raises: InvalidArgument."""
    tensor = pb_utils.get_input_tensor_by_name(request, "top_k")
    if tensor is None:
        return candidates
    values = tensor.as_numpy().reshape(-1)
    if values.size != 1 or values[0] < 0:
        raise InvalidArgument(f"top_k: {values.tolist()}, wanted one number >= 0 (0 = all)")
    return int(values[0]) or candidates
