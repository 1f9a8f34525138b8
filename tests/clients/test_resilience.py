"""What a client does where no answer comes: retries, hedging, breaker, degradation, both forms of it.

The transports are fakes, named so, since what a server does at which moment has to be told here; real servers are in
test_several_servers.py, test_server.py and `make chaos`.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client
import pytest
from tritonrank_client import (
    AsyncMockTransport,
    AsyncRankClient,
    BreakerPolicy,
    CircuitOpen,
    Connections,
    DeadlineExceeded,
    Degradation,
    Experiment,
    HedgePolicy,
    InferRequest,
    InvalidRequest,
    MockTransport,
    Overloaded,
    RankClient,
    RankedList,
    RetryPolicy,
    Rules,
    ServerError,
    Shadow,
    TritonRankError,
    Unavailable,
    append_to,
)
from tritonrank_client._budget import BURST, Budget, Latencies
from tritonrank_client._contract import LIMITS

from tests.support.waiting import wait_until

IDS = ["a", "b", "c", "d"]
Handler = Callable[[InferRequest], Mapping[str, np.ndarray]]
Ask = Callable[..., RankedList]


def ranked(request: InferRequest, model: str | None = None) -> dict[str, np.ndarray]:
    """The reverse of the first stage."""
    ids = request.inputs["item_ids"][::-1]
    count = int(request.inputs["top_k"][0]) if "top_k" in request.inputs else 0
    scores = np.arange(len(ids), 0, -1, dtype=np.float32)
    return {"ranked_ids": ids[: count or None], "scores": scores[: count or None]}


class FakeServer:
    """Raises what it is given, one after another, and answers then; remembers what it was asked."""

    def __init__(self, *faults: TritonRankError | None, models: Sequence[str] = ()) -> None:
        self.faults, self.models = list(faults), set(models)
        self.asked: list[InferRequest] = []

    def __call__(self, request: InferRequest) -> dict[str, np.ndarray]:
        self.asked.append(request)
        fault = self.faults.pop(0) if self.faults else None
        if request.model in self.models:
            raise Unavailable("gone")
        if fault is not None:
            raise fault
        return ranked(request)


@pytest.fixture(params=["threads", "tasks"])
def rank(request: pytest.FixtureRequest) -> Callable[..., RankedList]:
    """Asks `handler` once more through a client with these options: the same client for the same handler."""
    clients: dict[int, Any] = {}

    def ask(handler: Handler, *arguments: Any, options: Mapping[str, Any], **more: Any) -> RankedList:
        key = id(handler)
        if request.param == "threads":
            client = clients.setdefault(key, RankClient("fake", transport=MockTransport(handler), **options))
            return client.rank("shoes", *arguments, **more)
        client = clients.setdefault(key, AsyncRankClient("fake", transport=AsyncMockTransport(handler), **options))
        return loop.run_until_complete(client.rank("shoes", *arguments, **more))

    loop = asyncio.new_event_loop()
    request.addfinalizer(loop.close)
    return ask


# ---------------------------------------------------------------- retries
@pytest.mark.parametrize(
    "fault", [Unavailable("x"), Overloaded("x"), DeadlineExceeded("x"), ServerError("x"), InvalidRequest("x")]
)
def test_only_what_nobody_answered_is_asked_again(rank: Ask, fault: TritonRankError) -> None:
    server = FakeServer(fault)
    if isinstance(fault, Unavailable):
        assert rank(server, IDS, options={"retry": RetryPolicy()}).ids == ("d", "c", "b", "a")
        assert len(server.asked) == 2
        return
    with pytest.raises(type(fault)):
        rank(server, IDS, options={"retry": RetryPolicy()})
    assert len(server.asked) == 1


def test_retries_end_with_their_number_and_with_the_deadline(rank: Ask) -> None:
    server = FakeServer(*[Unavailable("x")] * 9)
    with pytest.raises(Unavailable):
        rank(server, IDS, options={"retry": RetryPolicy(attempts=3)})
    assert len(server.asked) == 3
    server = FakeServer(Unavailable("x"))
    with pytest.raises(Unavailable):
        rank(server, IDS, timeout_s=0.05, options={"retry": RetryPolicy(longest_wait_s=0.06)})
    assert len(server.asked) == 1


def test_a_service_that_fails_as_a_whole_is_not_asked_twice_as_often(rank: Ask) -> None:
    calls, server = 50, FakeServer(*[Unavailable("x")] * 1000)
    for _ in range(calls):
        with pytest.raises(Unavailable):
            rank(server, IDS, options={"retry": RetryPolicy(budget=0.1, first_wait_s=0.0)})
    assert calls < len(server.asked) <= calls * 1.1 + BURST


def test_each_attempt_tells_the_server_what_is_left_and_the_same_request_id(rank: Ask) -> None:
    server = FakeServer(Unavailable("x"))
    found = rank(server, IDS, timeout_s=0.2, request_id="search 7", options={"retry": RetryPolicy()})
    first, second = server.asked
    assert 0.2 >= first.timeout_s > second.timeout_s > 0
    assert (first.request_id, second.request_id, found.request_id) == ("search 7",) * 3


# ---------------------------------------------------------------- degradation
@pytest.mark.parametrize(
    "fault", [Unavailable("gone"), Overloaded("full"), DeadlineExceeded("late"), ServerError("nan")]
)
def test_the_first_stage_order_is_said_to_be_that(rank: Ask, fault: TritonRankError) -> None:
    found = rank(FakeServer(fault), IDS, top_k=3, options={"degradation": Degradation()})
    assert found.ids == ("a", "b", "c") and not found.scored.any() and found.model == ""
    assert found.degraded is not None
    assert (found.degraded.step, found.degraded.reason, found.degraded.error) == (
        "first_stage",
        str(fault),
        type(fault),
    )


def test_a_fault_of_the_caller_is_never_degraded(rank: Ask) -> None:
    with pytest.raises(InvalidRequest):
        rank(FakeServer(InvalidRequest("x")), IDS, options={"degradation": Degradation()})
    with pytest.raises(InvalidRequest):
        rank(FakeServer(), ["a", "a"], options={"degradation": Degradation()})


def test_the_steps_come_in_their_order(rank: Ask) -> None:
    plan = Degradation(candidates=2, model="rank_small")
    fewer = rank(FakeServer(Overloaded("full")), IDS, options={"degradation": plan})
    assert fewer.ids == ("b", "a", "c", "d") and fewer.scored.tolist() == [True, True, False, False]
    assert fewer.degraded is not None and fewer.degraded.step == "fewer_candidates" and fewer.model == "rank"
    other = rank(FakeServer(models=["rank"]), IDS, options={"degradation": plan})
    assert other.ids == ("d", "c", "b", "a") and other.model == "rank_small"
    assert other.degraded is not None and other.degraded.step == "model"
    nothing = rank(FakeServer(models=["rank", "rank_small"]), IDS, options={"degradation": plan})
    assert nothing.degraded is not None and nothing.degraded.step == "first_stage"
    with pytest.raises(Unavailable):
        rank(
            FakeServer(models=["rank", "rank_small"]),
            IDS,
            options={"degradation": Degradation(model="rank_small", first_stage=False)},
        )


def test_fewer_candidates_bring_only_what_is_said_of_them(rank: Ask) -> None:
    server = FakeServer(Overloaded("full"))
    found = rank(
        server, IDS, item_fields={"a": {"x": 1}, "d": {"x": 2}}, rules=Rules(pins={"b": 1, "c": 2, "a": 4}),
        options={"degradation": Degradation(candidates=2)},
    )  # fmt: skip
    fewer = server.asked[-1].inputs
    assert fewer["item_ids"].tolist() == [b"a", b"b"] and len(fewer["item_fields"]) == 2
    assert fewer["pinned_ids"].tolist() == [b"b"]
    assert found.ids == ("b", "a", "c", "d")


def test_what_a_filter_might_take_away_is_not_put_behind_the_ranked(rank: Ask) -> None:
    found = rank(
        FakeServer(Overloaded("full")), IDS, rules=Rules(in_stock_only=True),
        options={"degradation": Degradation(candidates=2)},
    )  # fmt: skip
    assert found.ids == ("b", "a")


def test_the_first_attempt_leaves_time_for_the_steps(rank: Ask) -> None:
    server = FakeServer(Overloaded("full"))
    rank(server, IDS, timeout_s=1.0, options={"degradation": Degradation(candidates=2, keep=0.4)})
    assert server.asked[0].timeout_s <= 0.6 < server.asked[1].timeout_s


# ---------------------------------------------------------------- breaker
def test_a_breaker_opens_by_the_share_of_failures_and_closes_by_itself(rank: Ask) -> None:
    faults = [None, Unavailable("x"), None, ServerError("x"), DeadlineExceeded("x"), None]
    server = FakeServer(*faults)
    policy = {"breaker": BreakerPolicy(failures=3, of_last=5, open_s=0.05)}
    endings = []
    for _ in range(6):
        try:
            rank(server, IDS, options=policy)
            endings.append("")
        except TritonRankError as error:
            endings.append(type(error).__name__)
    assert endings == ["", "Unavailable", "", "ServerError", "DeadlineExceeded", "CircuitOpen"]
    assert len(server.asked) == 5
    wait_until(lambda: not _is_open(lambda: rank(server, IDS, options=policy)))
    assert rank(server, IDS, options=policy).ids == ("d", "c", "b", "a")


def _is_open(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except CircuitOpen:
        return True
    return False


def test_faults_of_callers_do_not_open_a_breaker(rank: Ask) -> None:
    server = FakeServer(*[InvalidRequest("x")] * 20)
    for _ in range(20):
        with pytest.raises(InvalidRequest):
            rank(server, IDS, options={"breaker": BreakerPolicy(failures=1, of_last=1)})
    assert len(server.asked) == 20


def test_an_answer_that_took_too_long_is_a_failure_of_the_breaker_alone(rank: Ask) -> None:
    server = FakeServer()
    policy = {"breaker": BreakerPolicy(failures=1, of_last=1, slow_s=0.0)}
    assert rank(server, IDS, options=policy).ids == ("d", "c", "b", "a")
    with pytest.raises(CircuitOpen, match="1 of its last 1 attempts failed"):
        rank(server, IDS, options=policy)


# ---------------------------------------------------------------- hedging
class HeldServer:
    """The first of every two requests of a call waits until `release`."""

    def __init__(self) -> None:
        self.release, self.late = threading.Event(), False
        self.asked = 0

    def __call__(self, request: InferRequest) -> dict[str, np.ndarray]:
        self.asked += 1
        if self.late and self.asked % 2:
            assert self.release.wait(10)
        return ranked(request)


def test_a_late_answer_is_not_waited_for() -> None:
    server = HeldServer()
    client = RankClient("fake", transport=MockTransport(server), hedge=HedgePolicy(of_last=10), timeout_s=10)
    client.rank("shoes", IDS)
    server.late = True
    server.asked = 0
    assert client.rank("shoes", IDS).ids == ("d", "c", "b", "a")
    server.release.set()
    assert server.asked == 2


def test_the_losing_task_is_cancelled_and_the_error_of_one_is_not_the_callers() -> None:
    async def main() -> None:
        server, cancelled = HalfServer(), []
        client = AsyncRankClient("fake", transport=server, hedge=HedgePolicy(of_last=10), timeout_s=10)
        await client.rank("shoes", IDS)
        server.plan = ["hang", "answer"]
        assert (await client.rank("shoes", IDS)).ids == ("d", "c", "b", "a")
        await asyncio.sleep(0)
        cancelled.append(server.cancelled)
        server.plan = ["fail when released", "answer"]
        assert (await client.rank("shoes", IDS)).ids == ("d", "c", "b", "a")
        assert cancelled == [1]

    asyncio.run(main())


class HalfServer(AsyncMockTransport):
    """Does with each request what `plan` says next."""

    def __init__(self) -> None:
        super().__init__(ranked)
        self.plan: list[str] = []
        self.cancelled = 0

    async def infer(self, request: InferRequest) -> Mapping[str, np.ndarray]:
        what = self.plan.pop(0) if self.plan else "answer"
        try:
            if what == "hang":
                await asyncio.sleep(60)
            if what == "fail when released":
                await asyncio.sleep(0.01)
                raise Unavailable("x")
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await super().infer(request)


def test_a_budget_is_a_burst_and_a_share() -> None:
    budget = Budget(0.5)
    assert sum(budget.take() for _ in range(100)) == BURST
    for _ in range(10):
        budget.add()
    assert sum(budget.take() for _ in range(100)) == 5


def test_a_late_request_is_known_after_enough_of_them() -> None:
    latencies = Latencies(of_last=100, quantile=0.5)
    for number in range(9):
        latencies.add(number)
    assert latencies.late_after_s is None
    latencies.add(9)
    assert latencies.late_after_s == 4.5


# ---------------------------------------------------------------- experiment and shadow
def test_the_same_callers_are_always_sent_to_the_other_model(rank: Ask) -> None:
    server, plan = FakeServer(), {"experiment": Experiment("rank_candidate", 0.3, "first")}
    drawn = {key: rank(server, IDS, key=key, options=plan).model for key in map(str, range(400))}
    assert {rank(server, IDS, key=key, options=plan).model == model for key, model in drawn.items()} == {True}
    assert 80 < sum(model == "rank_candidate" for model in drawn.values()) < 160
    assert rank(server, IDS, options=plan).model == "rank"
    other = FakeServer()
    again = {
        key: rank(other, IDS, key=key, options={"experiment": Experiment("rank_candidate", 0.3, "second")}).model
        for key in drawn
    }
    assert again != drawn


def test_a_copy_is_logged_with_both_orders_and_nothing_of_the_user(tmp_path: Path) -> None:
    log = tmp_path / "shadow.jsonl"
    with RankClient(
        "fake", transport=MockTransport(FakeServer()), shadow=Shadow("rank_candidate", 1.0, append_to(log))
    ) as client:
        found = client.rank("secret query", IDS, request_id="r1", user_id="secret user", history=["x"])
    [line] = [json.loads(text) for text in log.read_text().splitlines()]
    assert line["request_id"] == "r1" and line["candidates"] == IDS and "secret" not in log.read_text()
    assert line["live"]["ids"] == list(found.ids) == line["shadow"]["ids"]
    assert (line["live"]["model"], line["shadow"]["model"]) == ("rank", "rank_candidate")


def test_copies_are_dropped_and_never_waited_for() -> None:
    lines: list[dict[str, Any]] = []
    held = threading.Event()

    def server(request: InferRequest) -> dict[str, np.ndarray]:
        if request.model == "rank_candidate":
            assert held.wait(10)
        return ranked(request)

    with RankClient(
        "fake", transport=MockTransport(server), shadow=Shadow("rank_candidate", 1.0, lines.append, at_once=2)
    ) as client:
        for _ in range(5):
            client.rank("shoes", IDS)
        assert client._copies is not None and client._copies.dropped == 3
        held.set()
    assert len(lines) == 2


def test_a_copy_that_fails_is_nobodys_fault() -> None:
    lines: list[dict[str, Any]] = []
    with RankClient(
        "fake", transport=MockTransport(FakeServer(models=["rank_candidate"])),
        shadow=Shadow("rank_candidate", 1.0, lines.append),
    ) as client:  # fmt: skip
        before = dropped()
        assert client.rank("shoes", IDS).model == "rank"
    assert lines == [] and dropped() == before + 1


def test_a_log_that_fails_is_counted_and_nobodys_fault() -> None:
    def full_disk(line: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    before = dropped("not logged")
    shadow = Shadow("rank_candidate", 1.0, full_disk)
    with RankClient("fake", transport=MockTransport(FakeServer()), shadow=shadow) as client:
        assert client.rank("shoes", IDS).model == "rank"
    assert dropped("not logged") == before + 1


def dropped(why: str = "Unavailable") -> float:
    labels = {"endpoint": "rank", "why": why}
    return prometheus_client.REGISTRY.get_sample_value("tritonrank_client_shadows_dropped_total", labels) or 0.0


class CountingTransport(MockTransport):
    """How often it was asked for a contract."""

    asked_for_contracts = 0

    def served_model(self, model: str, timeout_s: float) -> Any:
        self.asked_for_contracts += 1
        return super().served_model(model, timeout_s)


def test_a_contract_is_fetched_once_for_copies_and_once_for_health_checks() -> None:
    transport = CountingTransport(ranked)
    shadow = Shadow("rank_candidate", 1.0, lambda line: None)
    with RankClient("fake", transport=transport, shadow=shadow) as client:
        for _ in range(5):
            client.rank("shoes", IDS)
            assert client.ready()
    assert transport.asked_for_contracts <= 3


def test_retries_of_every_step_are_counted() -> None:
    faults = [Unavailable("x"), Unavailable("x"), Unavailable("x"), None]
    name, labels = "tritonrank_client_further_attempts_total", {"endpoint": "rank", "kind": "retry"}
    before = prometheus_client.REGISTRY.get_sample_value(name, labels) or 0.0
    plan = {"retry": RetryPolicy(first_wait_s=0.0), "degradation": Degradation(model="rank_small")}
    with RankClient("fake", transport=MockTransport(FakeServer(*faults)), timeout_s=5, **plan) as client:
        assert client.rank("shoes", IDS).model == "rank_small"
    assert prometheus_client.REGISTRY.get_sample_value(name, labels) == before + 2


# ---------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RetryPolicy(attempts=1), "retry.attempts: found 1, wanted a whole number from 2 to 10"),
        (lambda: RetryPolicy(budget=0), "retry.budget: found 0, wanted a number above 0 and at most 1"),
        (lambda: HedgePolicy(quantile=1.5), "hedge.quantile"),
        (lambda: BreakerPolicy(failures=21), "breaker.failures: found 21, wanted a whole number from 1 to 20"),
        (lambda: BreakerPolicy(slow_s=float("nan")), "breaker.slow_s"),
        (lambda: Degradation(keep=1.0), "degradation.keep"),
        (lambda: Degradation(candidates=True), "degradation.candidates"),
        (lambda: Connections(max_age_s=0), "connections.max_age_s"),
        (lambda: Experiment("m", 2, "n"), "experiment.share"),
        (lambda: Experiment("m", 0.5, "n", endpoint="similar"), "experiment.endpoint"),
        (lambda: Shadow("m", 0.5, print, at_once=0), "shadow.at_once"),
        (lambda: RankClient([]), "url: found ''"),
        (lambda: RankClient(["a:1", "http://b:2"]), "url: found 'http://b:2'"),
        (lambda: RankClient("a:1", headers={"x": "a\nb"}), "headers: 'x' is no header"),
    ],
)  # fmt: skip
def test_an_option_that_does_not_fit_is_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make()
    assert told in str(refused.value)


def test_secrets_are_in_no_repr() -> None:
    request = InferRequest("rank", {}, (), 1.0, "r", {"authorization": "Bearer secret"})
    assert "secret" not in repr(request)
    assert "secret" not in repr(vars(RankClient("a:1", token="secret")).keys())


def test_a_client_is_refused_after_a_fork() -> None:
    client = RankClient("fake", transport=MockTransport(FakeServer()))
    client.rank("shoes", IDS)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            client.rank("shoes", IDS)
        except InvalidRequest as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"then forked; make one in each process" in os.read(read, 1000)


def test_unscored_is_what_the_contract_says() -> None:
    found = RankClient("fake", transport=MockTransport(FakeServer(Unavailable("x"))), degradation=Degradation()).rank(
        "shoes", IDS
    )
    assert (found.scores == LIMITS.unscored).all()


# ---------------------------------------------------------------- contracts
class OneOfThreeIsDown(MockTransport):
    """Three servers in turns, whatever they are asked; the first one is down."""

    def __init__(self) -> None:
        super().__init__(ranked)
        self.down, self._turn = True, 0

    def _take_turn(self) -> None:
        self._turn += 1
        if self.down and self._turn % 3 == 0:
            raise Unavailable("down")

    def infer(self, request: InferRequest) -> Mapping[str, np.ndarray]:
        self._take_turn()
        return super().infer(request)

    def served_model(self, model: str, timeout_s: float) -> Any:
        self._take_turn()  # metadata and configuration are one request each
        self._take_turn()
        return super().served_model(model, timeout_s)


def test_one_server_that_is_down_does_not_keep_the_others_from_answering() -> None:
    client = RankClient("fake", transport=OneOfThreeIsDown(), retry=RetryPolicy(budget=1.0), timeout_s=5)
    endings = []
    for _ in range(30):
        try:
            endings.append(bool(client.rank("shoes", IDS)))
        except Unavailable:
            endings.append(False)
    assert sum(endings) >= 29
