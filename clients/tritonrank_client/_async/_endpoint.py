"""One model of the server that speaks one contract: agreed upon once, then asked. Knows nothing of arguments."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np

from .._contract import ListRules, ModelSpec, check_served_model, outputs_there, unserved
from .._deadline import Deadline
from .._errors import ContractMismatch, DeadlineExceeded, InvalidRequest, TritonRankError, Unavailable
from .._rules import RULE_OF_INPUT
from .._wire import AsyncTransport, InferRequest
from ._waiting import AsyncLock

AsyncSend = Callable[[Callable[[], InferRequest]], Awaitable[Mapping[str, Any]]]
"""Sends what a function makes, once or as often as it sees fit."""


class AsyncEndpoint:
    """From as many tasks as you like.

    model: its name on the server.
    contract: what the client knows of it.
    """

    def __init__(self, transport: AsyncTransport, model: str, contract: ModelSpec):
        self.model = model
        self.contract = contract
        self._transport = transport
        self._served: ModelSpec | None = None
        self._doubted = False
        self._lock = AsyncLock()

    async def served(self, deadline: Deadline) -> ModelSpec:
        """The server's interface, fetched and compared once, by whoever comes first; the others wait within their own
        budget. Raises: ContractMismatch and the transport's errors."""
        if (agreed := self._served) is not None:
            return agreed
        if not await self._lock.acquire(deadline.remaining_s()):
            raise DeadlineExceeded(f"timeout_s={deadline.timeout_s:g} was spent on the first check of the contract")
        try:
            return self._served or await self._fetched(deadline)
        finally:
            self._lock.release()

    async def check_again(self, deadline: Deadline) -> None:
        """Fetch and compare now. Raises: as `served`."""
        self._served = None
        await self.served(deadline)

    async def _fetched(self, deadline: Deadline) -> ModelSpec:
        agreed = await self._transport.served_model(self.model, deadline.remaining_s())
        check_served_model(self.model, agreed, self.contract)
        self._served, self._doubted = agreed, False
        return agreed

    async def infer(
        self,
        inputs: Mapping[str, np.ndarray],
        deadline: Deadline,
        request_id: str,
        headers: Mapping[str, str],
        send: AsyncSend,
    ) -> tuple[Mapping[str, np.ndarray], ModelSpec]:
        """Outputs by name, and the interface that the server had. Raises: every TritonRankError."""
        served = await self.served(deadline)
        self._check_served(inputs, served)
        outputs = tuple(tensor.name for tensor in outputs_there(self.contract, served))

        def request() -> InferRequest:
            return InferRequest(self.model, inputs, outputs, deadline.remaining_s(), request_id, headers)

        try:
            answered = await send(request)
        except InvalidRequest:
            self._served = None  # another model may have been published meanwhile
            raise
        except Unavailable:
            # As above, but one of several servers is enough for this error: to ask all of them for their contracts
            # before anything else would fail as long as it is there.
            self._doubted = True
            raise
        return answered, await self._compared(served, deadline)

    async def _compared(self, served: ModelSpec, deadline: Deadline) -> ModelSpec:
        """Again, after the first answer since nothing answered. Raises: ContractMismatch."""
        if not self._doubted:
            return served
        try:
            return await self._fetched(deadline)
        except ContractMismatch:
            self._served = None
            raise
        except TritonRankError:
            return served  # still in doubt

    def own_rules(self, served: ModelSpec) -> ListRules:
        """What the server's model does to lists by itself; as this client's contract says where the model does not."""
        return served.lists or self.contract.lists or ListRules()

    def _check_served(self, inputs: Mapping[str, np.ndarray], served: ModelSpec) -> None:
        missing = unserved(inputs, served)
        if missing:
            self._served = None  # one that has it may be published
            rule = RULE_OF_INPUT.get(missing[0])
            place = f"rules.{rule}" if rule else missing[0]
            raise InvalidRequest(
                f"{place}: model '{self.model}' on the server has no input '{missing[0]}'; leave it out, or publish a "
                "model that reads it",
                "rules" if rule else missing[0],
            )
