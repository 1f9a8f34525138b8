"""One model asked under the caller's policies: breaker, retries and hedging. Knows nothing of other models."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .._arguments import Asked
from .._breaker import Breaker
from .._budget import Budget, Latencies
from .._contract import ENDPOINTS, ModelSpec
from .._deadline import Deadline
from .._errors import CircuitOpen, ServerError, TritonRankError, Unavailable
from .._extras import extra
from .._observing import Observation
from .._options import BreakerPolicy, HedgePolicy, RetryPolicy
from .._response import RankedList
from .._wire import AsyncTransport, InferRequest
from ._endpoint import AsyncEndpoint
from ._waiting import infer_hedged_async


@dataclass(frozen=True)
class Policies:
    """How every model of a client is asked."""

    retry: RetryPolicy | None = None
    hedge: HedgePolicy | None = None
    breaker: BreakerPolicy | None = None


class AsyncCaller:
    """Raises, when made: InvalidRequest where a policy needs a package that is not installed."""

    def __init__(self, transport: AsyncTransport, model: str, endpoint: str, policies: Policies):
        self.endpoint = AsyncEndpoint(transport, model, ENDPOINTS[endpoint])
        self._transport = transport
        self._policies = policies
        self._breaker = None if policies.breaker is None else Breaker(policies.breaker, model)
        self._tenacity = None if policies.retry is None else extra("tenacity", "resilience", "retry")
        self._retries = Budget(1.0 if policies.retry is None else policies.retry.budget)
        self._hedges = Budget(1.0 if policies.hedge is None else policies.hedge.budget)
        hedge = policies.hedge or HedgePolicy()
        self._latencies = Latencies(hedge.of_last, hedge.quantile)

    async def ask(self, asked: Asked, deadline: Deadline, observation: Observation) -> tuple[RankedList, ModelSpec]:
        """The model's list, and the interface that it had. Raises: every TritonRankError."""
        self._retries.add()
        self._hedges.add()
        observation.model = self.endpoint.model
        if self._tenacity is None or self._policies.retry is None:
            return await self._attempt(asked, deadline, observation)
        async for attempt in self._tenacity.AsyncRetrying(
            retry=self._tenacity.retry_if_exception(lambda error: self._may_retry(error, deadline)),
            stop=self._tenacity.stop_after_attempt(self._policies.retry.attempts),
            wait=self._tenacity.wait_random_exponential(
                self._policies.retry.first_wait_s, self._policies.retry.longest_wait_s
            ),
            reraise=True,
        ):
            with attempt:
                observation.retries += attempt.retry_state.attempt_number > 1
                return await self._attempt(asked, deadline, observation)
        raise AssertionError("tenacity gives a result or raises")

    def _may_retry(self, error: BaseException, deadline: Deadline) -> bool:
        """Only where nothing has answered, there is time for the longest wait, and the budget allows it."""
        assert self._policies.retry is not None
        narrow = isinstance(error, Unavailable) and not isinstance(error, CircuitOpen)
        return narrow and deadline.left_s() > self._policies.retry.longest_wait_s and self._retries.take()

    async def _attempt(
        self, asked: Asked, deadline: Deadline, observation: Observation
    ) -> tuple[RankedList, ModelSpec]:
        if self._breaker is None:
            return await self._answered(asked, deadline, observation)
        with self._breaker.watching():
            return await self._answered(asked, deadline, observation)

    async def _answered(
        self, asked: Asked, deadline: Deadline, observation: Observation
    ) -> tuple[RankedList, ModelSpec]:
        async def send(request: Callable[[], InferRequest]) -> Mapping[str, Any]:
            return await self._send(request, observation)

        outputs, served = await self.endpoint.infer(
            asked.inputs, deadline, observation.request_id, observation.headers, send
        )
        own = self.endpoint.own_rules(served)
        try:
            return asked.answer(outputs, own), served
        except ServerError:
            # A variant with other rules may have been published since they were read.
            try:
                await self.endpoint.check_again(deadline)
                served = await self.endpoint.served(deadline)
            except TritonRankError:
                pass
            if self.endpoint.own_rules(served) == own:
                raise
            return asked.answer(outputs, self.endpoint.own_rules(served)), served

    async def _send(self, request: Callable[[], InferRequest], observation: Observation) -> Mapping[str, Any]:
        hedge = self._policies.hedge
        if hedge is None:
            return await self._transport.infer(request())
        start_s = time.monotonic()
        late_after_s = self._latencies.late_after_s
        if late_after_s is None:
            outputs = await self._transport.infer(request())
        else:
            outputs, hedged = await infer_hedged_async(
                self._transport, request, max(late_after_s, hedge.at_least_s), self._hedges.take
            )
            observation.hedges += hedged
        self._latencies.add(time.monotonic() - start_s)
        return outputs
