"""RankClient: a search service's one call."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

import numpy as np

from ._contract import RANK, check_served_model
from ._deadline import Deadline
from ._errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from ._request import inputs_from_arguments, listed
from ._response import RankedList, ranked_list_from_outputs
from ._transport import GrpcTransport, InferRequest, Transport

DEFAULT_TIMEOUT_S = 0.2


class RankClient:
    """Ranks items on one server. Use one a process, made after it forks, from as many threads as you like.

        RankClient("localhost:8001")                            the published ranker, 0.2 s a request
        RankClient("localhost:8001", timeout_s=0.05)            another budget for every request
        RankClient("localhost:8001", model="rank_two_tower")    a variant
        RankClient("mock", transport=MockTransport(handler))    no server, for tests

    url: host and port of Triton's gRPC service, without a scheme.
    timeout_s: seconds for one call, everything included; a call may bring its own.
    Raises: InvalidRequest for such a url or timeout_s.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "rank",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        transport: Transport | None = None,
    ):
        _check_url(url)
        Deadline(timeout_s)  # for its check
        self._model = model
        self._timeout_s = timeout_s
        self._transport = transport if transport is not None else GrpcTransport(url)
        self._contract_agreed = False
        self._contract_lock = threading.Lock()

    def rank(
        self, query: str, item_ids: Sequence[str], top_k: int | None = None, timeout_s: float | None = None
    ) -> RankedList:
        """Rank the items for the query, within the time budget or not at all.

            client.rank("red shoes", ids)                     all of them, best first
            client.rank("red shoes", ids, top_k=10)           the best 10
            client.rank("red shoes", ids, timeout_s=0.05)     within 50 ms

        Args:
            query: not blank, at most 2,048 bytes of UTF-8.
            item_ids: N = 1 to 1,024 distinct ids of 1 to 511 bytes of UTF-8, in first-stage order.
            top_k: items to return, at least 0; None or 0 = all; more than N = N.
            timeout_s: seconds for this call, the connection and the check of the contract at first use included.

        Returns: K = min(top_k, N) ids with float32 scores, highest first. Items that the server could not score come
            last, in first-stage order.
        Raises: a TritonRankError: InvalidRequest before anything is sent, ContractMismatch at first use, Unavailable,
            Overloaded, DeadlineExceeded, ServerError.
        """
        deadline = self._deadline(timeout_s)
        ids = listed(item_ids)
        inputs = inputs_from_arguments(query, ids, top_k, RANK)
        self._agree_on_contract(deadline)
        outputs = self._infer(inputs, deadline)
        return ranked_list_from_outputs(outputs, ids, top_k, RANK)

    def check_contract(self, timeout_s: float | None = None) -> None:
        """Compare the server's model with this client's contract now: at start-up, say, before the first user waits.

        Raises: ContractMismatch, Unavailable, Overloaded, DeadlineExceeded, ServerError.
        """
        deadline = self._deadline(timeout_s)
        self._contract_agreed = False
        self._agree_on_contract(deadline)

    def ready(self, timeout_s: float | None = None) -> bool:
        """Whether the server takes requests for the model; False where nothing answers in time."""
        try:
            return self._transport.is_ready(self._model, self._deadline(timeout_s).remaining_s())
        except (Unavailable, Overloaded, DeadlineExceeded):
            return False

    def close(self) -> None:
        """Give the connection back; calls then raise Unavailable. Safe to call again."""
        self._transport.close()

    def __enter__(self) -> RankClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._timeout_s if timeout_s is None else timeout_s)

    def _agree_on_contract(self, deadline: Deadline) -> None:
        """Fetch and compare once, from whichever thread comes first; the others wait within their own budget."""
        if self._contract_agreed:
            return
        if not self._contract_lock.acquire(timeout=deadline.remaining_s()):
            raise DeadlineExceeded(f"timeout_s={deadline.timeout_s:g} was spent on the first check of the contract")
        try:
            if not self._contract_agreed:
                served = self._transport.served_model(self._model, deadline.remaining_s())
                check_served_model(self._model, served, RANK)
                self._contract_agreed = True
        finally:
            self._contract_lock.release()

    def _infer(self, inputs: Mapping[str, np.ndarray], deadline: Deadline) -> Mapping[str, np.ndarray]:
        outputs = tuple(tensor.name for tensor in RANK.model.outputs)
        try:
            return self._transport.infer(InferRequest(self._model, inputs, outputs, deadline.remaining_s()))
        except (Unavailable, InvalidRequest):
            # Another model may have been published meanwhile: compare again before the next request.
            self._contract_agreed = False
            raise


def _check_url(url: str) -> None:
    if not url or url.startswith(("http://", "https://", "grpc://", "grpcs://")):
        raise InvalidRequest(
            f"url: found {url!r}, wanted host:port of Triton's gRPC service without a scheme, such as 'localhost:8001'",
            "url",
        )
