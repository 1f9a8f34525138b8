"""The asyncio client on the real Triton of conftest.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from tritonrank_client import (
    AsyncRankClient,
    ContractMismatch,
    DeadlineExceeded,
    Degradation,
    HedgePolicy,
    InvalidRequest,
    Overloaded,
    RankClient,
    ServerError,
    TritonRankError,
    Unavailable,
)

from server import TritonServer
from tests.support.small_model import Gates
from tests.support.waiting import wait_until

pytestmark = pytest.mark.server
Result = TypeVar("Result")


def run(server: TritonServer, ask: Callable[[AsyncRankClient], Awaitable[Result]], **options: object) -> Result:
    async def main() -> Result:
        async with AsyncRankClient(server.grpc_url, **{"timeout_s": 10.0, **options}) as client:
            return await ask(client)

    return asyncio.run(main())


def test_both_clients_give_the_same_list(server: TritonServer, connect: Callable[..., RankClient]) -> None:
    ids = ["1", "3", "unknown", "2"]
    threads = connect().rank("shoes", ids, top_k=3)
    tasks = run(server, lambda client: client.rank("shoes", ids, top_k=3))
    assert tasks.ids == threads.ids == ("3", "2", "1") and tasks.scores.tolist() == threads.scores.tolist()


def test_two_hundred_tasks_share_a_client(server: TritonServer) -> None:
    async def ask(client: AsyncRankClient) -> list[tuple[str, ...]]:
        answers = await asyncio.gather(*(client.rank("shoes", [str(n), str(n + 1)], top_k=1) for n in range(200)))
        return [answer.ids for answer in answers]

    assert run(server, ask, timeout_s=30.0) == [(str(n + 1),) for n in range(200)]


@pytest.mark.parametrize(
    ("query", "options", "error"),
    [
        ("fail INTERNAL", {}, ServerError),
        ("fail UNAVAILABLE", {}, Unavailable),
        ("fail INVALID_ARG", {}, InvalidRequest),
        ("short", {}, ServerError),
        ("nan", {}, ServerError),
        ("shoes", {"model": "rank_absent"}, Unavailable),
        ("shoes", {"model": "rank_foreign"}, ContractMismatch),
    ],
)
def test_what_goes_wrong_is_told_by_the_same_errors(
    server: TritonServer, query: str, options: dict[str, object], error: type[TritonRankError]
) -> None:
    with pytest.raises(error):
        run(server, lambda client: client.rank(query, ["1", "2"]), **options)


def test_a_held_request_ends_with_its_deadline_and_the_step_says_why(server: TritonServer, gates: Gates) -> None:
    held = gates.query()
    with pytest.raises(DeadlineExceeded):
        run(server, lambda client: client.rank(held, ["1", "2"], timeout_s=0.2))
    found = run(server, lambda client: client.rank(held, ["1", "2"], timeout_s=0.2), degradation=Degradation())
    assert found.ids == ("1", "2") and found.degraded is not None and found.degraded.error is DeadlineExceeded


def test_a_cancelled_call_leaves_the_client_fit(server: TritonServer, gates: Gates) -> None:
    async def ask(client: AsyncRankClient) -> tuple[str, ...]:
        held = asyncio.ensure_future(client.rank(gates.query(), ["1"]))
        await asyncio.to_thread(wait_until, lambda: gates.is_held(f"hold {gates.names[-1]}"))
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        gates.open()
        return (await client.rank("shoes", ["1", "2"])).ids

    assert run(server, ask) == ("2", "1")


def test_a_full_queue_is_told_at_once(server: TritonServer, gates: Gates) -> None:
    async def ask(client: AsyncRankClient) -> set[str]:
        held = [asyncio.ensure_future(client.rank(gates.query(), ["1"])) for _ in range(8)]
        done, pending = await asyncio.wait(held, return_when=asyncio.FIRST_EXCEPTION)
        gates.open()
        endings = {type(one.exception()).__name__ for one in done}
        await asyncio.gather(*pending, return_exceptions=True)
        return endings

    assert run(server, ask, model="rank_queued") == {Overloaded.__name__}


def test_a_hedged_answer_comes_from_the_second_request(server: TritonServer, gates: Gates) -> None:
    """Of one server with one instance: the first request holds it, so that only its cancellation lets a second in."""

    async def ask(client: AsyncRankClient) -> tuple[str, ...]:
        await client.rank("shoes", ["1", "2"])
        return (await client.rank("shoes", ["1", "2"])).ids

    assert run(server, ask, hedge=HedgePolicy(of_last=10)) == ("2", "1")


def test_ready_warm_up_and_contract(server: TritonServer) -> None:
    async def ask(client: AsyncRankClient) -> bool:
        await client.warm_up()
        await client.check_contract()
        return await client.ready()

    assert run(server, ask)
    with pytest.raises(Unavailable):
        run(server, lambda client: client.warm_up(), model="rank_absent")


def test_a_closed_client_is_unavailable(server: TritonServer) -> None:
    async def main() -> None:
        client = AsyncRankClient(server.grpc_url)
        await client.rank("shoes", ["1"], timeout_s=10)
        await client.close()
        await client.close()
        with pytest.raises(Unavailable, match="this client is closed"):
            await client.rank("shoes", ["1"])

    asyncio.run(main())
