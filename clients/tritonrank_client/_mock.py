"""A server that is a function, to test a search service through."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ._contract import ENDPOINTS, RANK, ModelSpec
from ._errors import Unavailable
from ._wire import InferRequest

Handler = Callable[[InferRequest], Mapping[str, np.ndarray]]


class MockTransport:
    """Answers each request with what `handler` returns, or raises what it raises.

        def first_stage_order(request):
            ids = request.inputs["item_ids"]  # object [N] of bytes
            return {"ranked_ids": ids, "scores": -np.arange(len(ids), dtype=np.float32)}

        client = RankClient("mock", transport=MockTransport(first_stage_order))

    served: the interface that the server claims to have; unless given, what the client knows of the endpoint that the
        model is named after (`recommend` of `recommend_sasrec`), else of `rank`.
    """

    def __init__(self, handler: Handler, served: ModelSpec | None = None):
        self._handler = handler
        self._served = served
        self._closed = False

    def infer(self, request: InferRequest) -> Mapping[str, np.ndarray]:
        """See Transport."""
        self._check_open()
        return self._handler(request)

    def served_model(self, model: str, timeout_s: float) -> ModelSpec:
        """See Transport."""
        self._check_open()
        return self._served or ENDPOINTS.get(model.partition("_")[0], RANK)

    def is_ready(self, model: str, timeout_s: float) -> bool:
        """See Transport."""
        self._check_open()
        return True

    def close(self) -> None:
        """See Transport."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("mock: this client is closed; make a new one")


class AsyncMockTransport:
    """As :class:`MockTransport`, for an `AsyncRankClient`; `handler` is a plain function too."""

    def __init__(self, handler: Handler, served: ModelSpec | None = None):
        self._mock = MockTransport(handler, served)

    async def infer(self, request: InferRequest) -> Mapping[str, np.ndarray]:
        """See Transport."""
        return self._mock.infer(request)

    async def served_model(self, model: str, timeout_s: float) -> ModelSpec:
        """See Transport."""
        return self._mock.served_model(model, timeout_s)

    async def is_ready(self, model: str, timeout_s: float) -> bool:
        """See Transport."""
        return self._mock.is_ready(model, timeout_s)

    async def close(self) -> None:
        """See Transport."""
        self._mock.close()
