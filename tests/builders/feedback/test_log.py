"""Clicks and purchases join the lists that they came from; what does not is counted."""

from __future__ import annotations

import random

import pytest

from builders.feedback.log import joined
from tests.support.feedback import click, purchase, shown


def test_clicks_and_purchases_join_by_request_and_item_in_any_order() -> None:
    events = [
        shown("r1", "abc"),
        shown("r2", "ab"),
        click("r1", "b", 5),
        click("r1", "c", 2),
        purchase("r1", "b", 3.0),
        purchase("r1", "b", 4.0),
        purchase("r2", "a"),
    ]
    for seed in range(3):
        random.Random(seed).shuffle(events)
        log = joined(events)
        of = {each.shown.request_id: each for each in log.lists}
        assert set(of["r1"].clicks) == {"b", "c"}
        assert (of["r1"].purchases, of["r2"].purchases) == ({"b": 7.0}, {"a": None})
        assert of["r2"].taken == {"a"}
        assert of["r1"].first_click_reciprocal_rank == pytest.approx(1 / 3)  # of c, which was clicked first
        assert of["r2"].first_click_reciprocal_rank == 0
        assert log.counts == {}


def test_what_does_not_join_or_stands_twice_is_counted() -> None:
    log = joined(
        [
            *[shown("r1", "abc")] * 3,
            click("r1", "a", 9),
            click("r1", "a", 3),
            click("r1", "z"),
            click("r9", "a"),
            *[purchase("r1", "b", 2.0)] * 2,
            purchase("r9", "a"),
            shown("twice", "ab"),
            shown("twice", "ba"),
            click("twice", "a"),
        ]
    )
    assert [each.shown.request_id for each in log.lists] == ["r1"]
    assert log.lists[0].purchases == {"b": 2.0}
    assert (log.lists[0].clicks["a"] - log.lists[0].shown.time).total_seconds() == 3
    assert log.counts == {
        "shown lists that stand twice, counted once": 2,
        "shown lists left out: another list has the same request id": 2,
        "repeated clicks on one item of a list, counted once": 1,
        "purchases that stand twice, counted once": 1,
        "clicks left out: their item was not in the list": 1,
        "clicks left out: no shown list has their request id": 1,
        "clicks left out: two lists have their request id": 1,
        "purchases left out: no shown list has their request id": 1,
    }
    assert log.told()[0] == "1 shown lists, 1 clicked items and 1 bought items in them"
