"""A ranker in the place of a server: a fake, since a server does not fail when it is told to."""

from __future__ import annotations

import numpy as np
from tritonrank_client import InferRequest, Unavailable


class FailingRanker:
    """Fails so often, then answers with the first stage's order."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.asked = failures, list[InferRequest]()

    def __call__(self, request: InferRequest) -> dict[str, np.ndarray]:
        self.asked.append(request)
        if len(self.asked) <= self.failures:
            raise Unavailable("gone")
        ids = request.inputs["item_ids"]
        return {"ranked_ids": ids, "scores": np.zeros(len(ids), np.float32)}
