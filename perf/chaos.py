"""What a search service notices while its rankers break: the client's answers, each held against its deadline.

The shop is that of :mod:`perf.soak`, its servers are ``python -m server``, as an operator runs them, on this machine.
The asyncio client asks at random (Poisson) times, an open loop, whatever becomes of the requests before. A right
answer is the order that the ranker gave before anything was broken: what is served while a publication runs scores in
the same order. Nothing here is told to the client beforehand.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from tritonrank_client import (
    AsyncRankClient,
    BreakerPolicy,
    Degradation,
    HedgePolicy,
    RankedList,
    RetryPolicy,
    TritonRankError,
)

from perf.bench_base import Figure
from perf.errors import PerfError
from perf.outages import SERVER, STUB, Launched
from perf.soak import CANDIDATES, Shop

TIMEOUT_S = 0.2
LATE_S = 0.01
"""By so much a call may end after its deadline, at the 99th percentile."""
SHARE = 0.2
"""Of the capacity, the steady load."""
CALLERS, CAPACITY_S, STEADY_S, OVERLOAD_S = 8, 5.0, 20.0, 60.0
OVERLOAD = 3.0
SERVERS = 3
BACK_S = 3.0
EJECTED_S = 5.0
"""After a fault of one of several servers, before latencies are counted."""
HUNG_RATIO, SLO_S = 1.5, 0.05
CALLS, GROWTH = 20_000, 1.05
REQUESTS = 20
MANY = 300
"""Candidates of a request under overload: the sender, on the same machine, is not to be what is overloaded."""

Request = tuple[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Call:
    """One that ended. step: of the degradation, "" for what was asked; why: the class of the error
    behind it; error: the class of one that was raised; right: in the order of before.

    Attributes:
        start_s, end_s: by time.monotonic.
    """

    start_s: float
    end_s: float
    step: str = ""
    error: str = ""
    why: str = ""
    right: bool = True

    @property
    def good(self) -> bool:
        """The list that was asked for."""
        return not self.step and not self.error

    @property
    def seconds(self) -> float:
        """It took."""
        return self.end_s - self.start_s


class Load:
    """The same requests again and again; what a healthy server said to each is what is right."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.right: dict[int, tuple[str, ...]] = {}

    async def learn(self, client: AsyncRankClient) -> None:
        """Raises: TritonRankError."""
        await client.warm_up()
        for number, (query, item_ids) in enumerate(self.requests):
            self.right[number] = (await client.rank(query, item_ids, timeout_s=5.0)).ids

    async def capacity_per_s(self, client: AsyncRankClient) -> float:
        """Answers in time a second to a few callers that ask again at once."""
        end_s = time.monotonic() + CAPACITY_S

        async def call(number: int) -> int:
            good = 0
            while time.monotonic() < end_s:
                good += (await self._call(client, number)).good
                number += CALLERS
            return good

        return sum(await asyncio.gather(*(call(number) for number in range(CALLERS)))) / CAPACITY_S

    async def open_loop(
        self,
        client: AsyncRankClient,
        rate_per_s: float,
        seconds: float,
        fault: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> list[Call]:
        """Every call of so many seconds; `fault` begins after a quarter of them."""
        draw, start_s = random.Random(0), time.monotonic()
        tasks: list[asyncio.Task[Call]] = []
        broken: asyncio.Task[None] | None = None
        at_s = draw.expovariate(rate_per_s)
        while at_s < seconds:
            await asyncio.sleep(max(0.0, start_s + at_s - time.monotonic()))
            if fault is not None and broken is None and at_s > seconds / 4:
                broken = asyncio.create_task(fault())
            tasks.append(asyncio.create_task(self._call(client, len(tasks))))
            at_s += draw.expovariate(rate_per_s)
        calls = await asyncio.gather(*tasks)
        if broken is not None:
            await broken
        return list(calls)

    async def _call(self, client: AsyncRankClient, number: int) -> Call:
        number %= len(self.requests)
        start_s = time.monotonic()
        try:
            ranked = await client.rank(*self.requests[number])
        except TritonRankError as error:
            return Call(start_s, time.monotonic(), error=type(error).__name__)
        why = ranked.degraded.error.__name__ if ranked.degraded else ""
        return Call(start_s, time.monotonic(), _step(ranked), why=why, right=self._is_right(number, ranked))

    def _is_right(self, number: int, ranked: RankedList) -> bool:
        wanted = self.requests[number][1] if ranked.degraded else self.right[number]
        return ranked.ids == tuple(wanted)


def _step(ranked: RankedList) -> str:
    return ranked.degraded.step if ranked.degraded else ""


def run_chaos(console: Console, parts: Sequence[str] = ()) -> list[Figure]:
    """Build the shop, break things, measure; `parts` of PARTS, all of them unless given. Raises: PerfError."""
    if strangers := set(parts) - set(PARTS):
        raise PerfError(f"--part: found {min(strangers)!r}, wanted one of {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="tritonrank_chaos_") as folder, contextlib.ExitStack() as stack:
        shop = Shop(Path(folder), 0)
        shop.workspace.item_store.mkdir(parents=True)
        console.print("building two small rankers in a copy of this checkout", style="dim")
        shop.open()
        servers = [Launched(shop, f"server{number}") for number in range(SERVERS)]
        for server in servers:
            stack.callback(server.stop)
        servers[0].start()
        figures: list[Figure] = []
        for name in parts or PARTS:
            console.print(f"{name}: {PARTS[name].__doc__}", style="dim")
            figures += asyncio.run(PARTS[name](Chaos(shop, servers)))
        return figures


class Chaos:
    """The shop, its servers of which the first runs, and their load."""

    def __init__(self, shop: Shop, servers: Sequence[Launched]) -> None:
        self.shop, self.servers = shop, servers
        self.load = self.load_of(CANDIDATES)

    def load_of(self, candidates: int) -> Load:
        """Requests of so many candidates."""
        draw, items = random.Random(3), list(self.shop.products)
        return Load([(f"query {number}", draw.sample(items, candidates)) for number in range(REQUESTS)])

    @contextlib.asynccontextmanager
    async def client(self, servers: int = 1) -> AsyncIterator[AsyncRankClient]:
        """Of the first so many servers, as a careful service sets it up."""
        urls = [server.grpc_url for server in self.servers[:servers]]
        async with AsyncRankClient(
            urls,
            timeout_s=TIMEOUT_S,
            degradation=Degradation(),
            retry=RetryPolicy(),
            breaker=BreakerPolicy(),
            hedge=HedgePolicy() if servers > 1 else None,
        ) as client:
            await self.load.learn(client)
            yield client

    async def all_started(self) -> None:
        """Every server runs."""
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in self.servers if not server.runs))


# ---------------------------------------------------------------- what is broken
async def killed(chaos: Chaos) -> list[Figure]:
    """SIGKILL of the only server under a fifth of its capacity; the launcher starts it again."""
    server, ready_s = chaos.servers[0], []

    async def kill() -> None:
        starts = server.starts()
        for process in server.processes(SERVER):
            process.kill()
        while server.starts() == starts:
            await asyncio.sleep(0.02)
        ready_s.append(time.monotonic())

    async with chaos.client() as client:
        capacity_per_s = await chaos.load.capacity_per_s(client)
        calls = await chaos.load.open_loop(client, SHARE * capacity_per_s, STEADY_S, kill)
    after = sorted(call.end_s - ready_s[0] for call in calls if call.step and call.end_s > ready_s[0])
    told = ", ".join(f"{seconds:.1f}" for seconds in after[-8:])
    return [
        *_answered("a killed server", calls),
        Figure("a killed server: last degraded answer after readiness", max([0.0, *after]), "s", BACK_S, detail=(
            f"{len(after)} after it" + (f", the last at {told} s" if after else "")
        )),
    ]  # fmt: skip


async def one_of_three_hung(chaos: Chaos) -> list[Figure]:
    """One of three servers stands still, its launcher too: nobody heals it."""
    return await _one_of_three(
        chaos, "one of three servers hung", lambda server: [psutil.Process(server.pid), *server.processes("")]
    )


async def one_stub_of_three_hung(chaos: Chaos) -> list[Figure]:
    """A stub of one of three servers stands still; its launcher starts the server again."""
    return await _one_of_three(chaos, "one stub of three servers hung", lambda server: server.processes(STUB)[:1])


async def _one_of_three(
    chaos: Chaos, name: str, victims: Callable[[Launched], Sequence[psutil.Process]]
) -> list[Figure]:
    await chaos.all_started()
    victim = chaos.servers[1]
    async with chaos.client(SERVERS) as client:
        rate_per_s = SHARE * await chaos.load.capacity_per_s(client)
        healthy = await chaos.load.open_loop(client, rate_per_s, STEADY_S)
        stopped = victims(victim)
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        try:
            hung = await chaos.load.open_loop(client, rate_per_s, STEADY_S)
        finally:
            for process in stopped:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)
    await asyncio.to_thread(victim.stop)
    after = [call for call in hung if call.start_s > hung[0].start_s + EJECTED_S]
    ratio = _p99_s(after) / _p99_s(healthy)
    detail = f"p99 {_p99_s(healthy) * 1e3:.1f} => {_p99_s(after) * 1e3:.1f} ms of {len(healthy)} and {len(after)} calls"
    return [*_answered(name, hung), Figure(f"{name}: p99 over the healthy one", ratio, "x", HUNG_RATIO, detail=detail)]


async def overload(chaos: Chaos) -> list[Figure]:
    """Three times the capacity for a minute, then a fifth of it."""
    chaos.load = chaos.load_of(MANY)
    async with chaos.client() as client:
        capacity_per_s = await chaos.load.capacity_per_s(client)
        calls = await chaos.load.open_loop(client, OVERLOAD * capacity_per_s, OVERLOAD_S)
        after = await chaos.load.open_loop(client, SHARE * capacity_per_s, STEADY_S)
    good = [call for call in calls if call.good]
    settled = [call for call in after if call.start_s > after[0].start_s + BACK_S]
    return [
        *_answered("overload", calls),
        Figure(
            "overload: p99 of what was ranked", _p99_s(good) * 1e3, "ms", 2 * SLO_S * 1e3, detail=f"{len(good)} calls"
        ),
        Figure("overload: degraded once it is over", sum(not call.good for call in settled), "calls", 0),
    ]


async def rolling_restart(chaos: Chaos) -> list[Figure]:
    """Three servers stopped (SIGTERM) and started one after another, and a publication, under load."""
    await chaos.all_started()

    async def restart() -> None:
        for server in chaos.servers:
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
        await asyncio.to_thread(chaos.shop.retrain, "rank")
        await asyncio.to_thread(chaos.shop.publish, "rank")
        for server in chaos.servers:
            await asyncio.to_thread(server.reload)

    async with chaos.client(SERVERS) as client:
        rate_per_s = SHARE * await chaos.load.capacity_per_s(client)
        calls = await chaos.load.open_loop(client, rate_per_s, 4 * STEADY_S, restart)
    degraded = sum(not call.good for call in calls)
    return [
        *_answered("a rolling restart and a publication", calls),
        Figure("a rolling restart and a publication: degraded", degraded, "calls", detail=f"of {len(calls)}"),
    ]


async def many_calls(chaos: Chaos) -> list[Figure]:
    """Twenty thousand calls: memory, descriptors and tasks of the service."""
    process = psutil.Process(os.getpid())
    async with chaos.client() as client:
        before: tuple[int, int, int] | None = None
        for number in range(CALLS):
            await client.rank(*chaos.load.requests[number % REQUESTS])
            if number == CALLS // 4:
                before = process.memory_info().rss, process.num_fds(), len(asyncio.all_tasks())
        after = process.memory_info().rss, process.num_fds(), len(asyncio.all_tasks())
    assert before is not None
    return [
        Figure(f"{CALLS:,} calls: memory of the last three quarters", after[0] / before[0], "x", GROWTH),
        Figure(f"{CALLS:,} calls: descriptors", after[1] - before[1], "more", 0),
        Figure(f"{CALLS:,} calls: tasks", after[2] - before[2], "more", 0),
    ]


PARTS: dict[str, Callable[[Chaos], Coroutine[Any, Any, list[Figure]]]] = {
    "killed": killed,
    "overload": overload,
    "many-calls": many_calls,
    "hung": one_of_three_hung,
    "stub": one_stub_of_three_hung,
    "rolling": rolling_restart,
}


def _answered(name: str, calls: Sequence[Call]) -> list[Figure]:
    """That each call was answered within its deadline, and the right thing."""
    ended = Counter(f"{call.step} ({call.why})" if call.step else call.error or "ranked" for call in calls)
    told = f"{len(calls)}: " + ", ".join(f"{count} {how}" for how, count in ended.most_common())
    return [
        Figure(f"{name}: calls lost", sum(bool(call.error) for call in calls), "calls", 0, detail=told),
        Figure(f"{name}: wrong lists", sum(not call.right for call in calls), "calls", 0),
        Figure(f"{name}: p99 after the deadline", (_p99_s(calls) - TIMEOUT_S) * 1e3, "ms", LATE_S * 1e3, detail=(
            f"p50 {statistics.median(call.seconds for call in calls) * 1e3:.1f}, p99 {_p99_s(calls) * 1e3:.1f} ms of "
            f"{len(calls)} calls"
        )),
    ]  # fmt: skip


def _p99_s(calls: Sequence[Call]) -> float:
    return float(np.quantile([call.seconds for call in calls], 0.99))
