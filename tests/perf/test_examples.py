"""The queries that are shown are chosen by what the ranker changes, losses included."""

from __future__ import annotations

from perf.examples import tally, telling_queries

BEFORE = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5, "e": 0.5}


def test_the_greatest_gain_the_median_and_the_greatest_loss_are_shown() -> None:
    shown = telling_queries(BEFORE, {"a": 0.4, "b": 0.9, "c": 0.5, "d": 0.1, "e": 0.7})
    assert shown == {
        "b": "+0.400: the greatest gain",
        "c": "+0.000: the median difference",
        "d": "-0.400: the greatest loss",
    }


def test_a_ranker_that_never_loses_is_not_said_to_lose() -> None:
    shown = telling_queries(BEFORE, {"a": 0.6, "b": 0.9})
    assert shown == {"b": "+0.400: the greatest gain", "a": "+0.100: no loss anywhere, the smallest gain"}


def test_a_ranker_that_never_gains_is_not_said_to_gain() -> None:
    assert telling_queries(BEFORE, {"a": 0.4}) == {"a": "-0.100: the greatest loss"}
    assert telling_queries({}, {"a": 0.4}) == {}


def test_gains_and_losses_are_counted_over_the_queries_of_both() -> None:
    after = {"a": 0.4, "b": 0.9, "c": 0.5, "d": 0.1, "z": 1.0}
    assert tally(BEFORE, after) == "better on 1, equal on 1, worse on 2 of 4 test queries"
