"""How `make chaos` counts, on a transport that is a fake; the servers are broken by `make chaos` itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import pytest
from rich.console import Console
from tritonrank_client import AsyncMockTransport, AsyncRankClient, Degradation, InferRequest, Unavailable

from perf import chaos
from perf.errors import PerfError

REQUESTS = [("a", ["1", "2", "3"]), ("b", ["4", "5"])]


class Server:
    """Reverses the candidates, until it is told otherwise."""

    does = "reverse"

    def __call__(self, request: InferRequest) -> Mapping[str, np.ndarray]:
        ids = request.inputs["item_ids"]
        if self.does == "nothing":
            raise Unavailable("gone")
        ordered = ids if self.does == "something else" else ids[::-1]
        return {"ranked_ids": ordered, "scores": np.arange(len(ids), 0, -1, dtype=np.float32)}


async def calls(server: Server, fault: str) -> list[chaos.Call]:
    transport = AsyncMockTransport(server)
    async with AsyncRankClient("fake", transport=transport, degradation=Degradation()) as client:
        load = chaos.Load(REQUESTS)
        await load.learn(client)

        async def broken() -> None:
            server.does = fault

        return await load.open_loop(client, 200.0, 0.5, broken)


def test_calls_after_the_fault_are_degraded_and_right() -> None:
    found = asyncio.run(calls(Server(), "nothing"))
    steps = [call.step for call in found]
    assert 50 < len(found) < 200
    assert steps == sorted(steps), "what was asked before the fault was ranked, what came later was not"
    assert {call.step for call in found} == {"", "first_stage"} and all(call.right for call in found)
    lost, wrong, late = chaos._answered("x", found)
    assert (lost.value, wrong.value) == (0, 0) and late.passed
    assert "first_stage (Unavailable)" in lost.detail and "ranked" in lost.detail


def test_another_order_than_before_is_wrong() -> None:
    _, wrong, _ = chaos._answered("x", asyncio.run(calls(Server(), "something else")))
    assert wrong.value > 0 and wrong.passed is False


def test_a_part_that_is_not_there_is_refused() -> None:
    with pytest.raises(PerfError, match="found 'earthquake', wanted one of killed, overload"):
        chaos.run_chaos(Console(), ["earthquake"])
