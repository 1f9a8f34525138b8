"""The loops that measure goodput: every request ends one way, and is counted."""

from __future__ import annotations

from tritonrank_client import DeadlineExceeded, Overloaded

from perf.bench_overload import GOOD, Outcome, closed_loop, open_loop


def ask(number: int) -> None:
    if number % 4 == 1:
        raise Overloaded("refused")
    if number % 4 == 2:
        raise DeadlineExceeded("too late")


def test_an_open_loop_counts_how_each_request_ended() -> None:
    outcome = open_loop(ask, rate_per_s=400, seconds=0.5)
    total = outcome.ended.total()
    wanted = {GOOD: total - (total + 2) // 4 - (total + 1) // 4, "Overloaded": (total + 2) // 4}
    assert total > 0
    assert {how: outcome.ended[how] for how in wanted} == wanted
    assert outcome.goodput_per_s == outcome.ended[GOOD] / 0.5
    assert open_loop(ask, rate_per_s=400, seconds=0.5).ended == outcome.ended  # the same arrivals


def test_an_open_loop_goes_on_where_nothing_is_answered() -> None:
    outcome = open_loop(lambda _: ask(1), rate_per_s=400, seconds=0.1)
    assert outcome.goodput_per_s == 0
    assert str(outcome) == f"of {outcome.ended.total()} requests in 0.1 s: {outcome.ended.total()} Overloaded"
    assert str(Outcome(1.0, type(outcome.ended)())) == "of 0 requests in 1 s: none"


def test_a_closed_loop_counts_answers_in_time() -> None:
    assert closed_loop(lambda _: None, callers=2, seconds=0.05) > 0
    assert closed_loop(lambda _: ask(1), callers=2, seconds=0.05) == 0
