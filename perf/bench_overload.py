"""What is left of ``rank``'s goodput when three times as much is asked as it holds, at the client's default deadline.

Goodput is answers within their deadline a second. Capacity is what a few callers get that ask again as soon as they are
answered; then requests arrive at random times (an open loop), at capacity and at three times that, whatever becomes of
those before. All in one run on one server, so that what else the machine does meets both.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tritonrank_client import DEFAULT_TIMEOUT_S, RankClient, TritonRankError

from perf.bench_base import Bench, Figure
from perf.endpoints import RANK, serving
from perf.kit.data import USUAL_CANDIDATES, Request

CALLERS, REQUESTS = 8, 200
WARM_UP_S, WINDOW_S = 2.0, 10.0
FACTOR = 3.0
GOODPUT_RATIO_LIMIT = 0.8
IN_FLIGHT = 1024
CHECK_TIMEOUT_S = 30.0
GOOD = "in time"

Ask = Callable[[int], object]
"""Asks the request of that number. Raises: TritonRankError."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one open loop. ended: GOOD, or the error's name => how many requests ended so."""

    seconds: float
    ended: Counter[str]

    @property
    def goodput_per_s(self) -> float:
        """Answers within their deadline."""
        return self.ended[GOOD] / self.seconds

    def __str__(self) -> str:
        told = ", ".join(f"{count} {how}" for how, count in self.ended.most_common())
        return f"of {self.ended.total()} requests in {self.seconds:g} s: {told or 'none'}"


def bench_overload(bench: Bench) -> list[Figure]:
    """Goodput at three times capacity over that at capacity."""
    requests = list(itertools.islice(bench.requests(USUAL_CANDIDATES), REQUESTS))
    with serving([RANK], bench.workspace) as server, RankClient(server.grpc_url) as client:
        client.check_contract(CHECK_TIMEOUT_S)
        ask = _asking(client, requests)
        open_loop(ask, CALLERS / DEFAULT_TIMEOUT_S, WARM_UP_S)
        capacity_per_s = closed_loop(ask, CALLERS, WINDOW_S)
        at_capacity = open_loop(ask, capacity_per_s, WINDOW_S)
        beyond = open_loop(ask, capacity_per_s * FACTOR, WINDOW_S)
    told = f"capacity {capacity_per_s:.0f}/s; at it {at_capacity}; at {FACTOR:g} times {beyond}"
    ratio = beyond.goodput_per_s / max(at_capacity.goodput_per_s, 1e-9)
    return [
        Figure(f"goodput at {FACTOR:g} times capacity", ratio, "x", GOODPUT_RATIO_LIMIT, at_least=True, detail=told)
    ]


def closed_loop(ask: Ask, callers: int, seconds: float) -> float:
    """Answers in time a second to so many callers."""
    end_s = time.monotonic() + seconds

    def call(first: int) -> int:
        good = 0
        for number in itertools.count(first, callers):
            if time.monotonic() > end_s:
                return good
            good += _ending(ask, number) == GOOD
        raise AssertionError("counted to the end")

    with ThreadPoolExecutor(callers) as pool:
        return sum(pool.map(call, range(callers))) / seconds


def open_loop(ask: Ask, rate_per_s: float, seconds: float, seed: int = 0) -> Outcome:
    """Requests at random (Poisson) times, each begun whatever became of those before."""
    draw = random.Random(seed)
    asked: list[Future[str]] = []
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        start_s = time.monotonic()
        at_s = draw.expovariate(rate_per_s)
        while at_s < seconds:
            time.sleep(max(start_s + at_s - time.monotonic(), 0.0))
            asked.append(pool.submit(_ending, ask, len(asked)))
            at_s += draw.expovariate(rate_per_s)
    return Outcome(seconds, Counter(one.result() for one in asked))


def _asking(client: RankClient, requests: Sequence[tuple[Request, list[str]]]) -> Ask:
    def ask(number: int) -> object:
        request, item_ids = requests[number % len(requests)]
        return client.rank(request.query, item_ids)

    return ask


def _ending(ask: Ask, number: int) -> str:
    try:
        ask(number)
    except TritonRankError as error:
        return type(error).__name__
    return GOOD
