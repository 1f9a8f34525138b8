"""Propensities of positions, and grades, recovered from logs that were made by a position-based model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from builders.data.beir import DatasetError
from builders.feedback.events import Click, Shown
from builders.feedback.grades import graded
from builders.feedback.impressions import Impressions, impressions_of
from builders.feedback.log import joined
from builders.feedback.propensities import estimated_propensities
from tests.support.feedback import click, purchase, shown

PROPENSITIES = np.array([1.0, 0.7, 0.5, 0.35, 0.2])
ATTRACTIONS = np.random.default_rng(7).uniform(0.1, 0.7, (12, 5))
"""[queries, items]"""


Order = Callable[[np.random.Generator, np.ndarray], np.ndarray]
"""An order of items, from what they attract."""


def simulated(lists: int, order: Order, **fields: bool) -> Impressions:
    generator = np.random.default_rng(1)
    events: list[Shown | Click] = []
    for number in range(lists):
        query = number % len(ATTRACTIONS)
        items = order(generator, ATTRACTIONS[query])
        clicked = generator.random(len(items)) < PROPENSITIES[: len(items)] * ATTRACTIONS[query][items]
        events.append(shown(f"r{number}", [f"i{item}" for item in items], query=f"q{query}", **fields))
        events += [click(f"r{number}", f"i{item}") for item in items[clicked]]
    return impressions_of(joined(events).lists)


def noisy(generator: np.random.Generator, attractions: np.ndarray) -> np.ndarray:
    """A ranker that is good, not always the same."""
    return np.argsort(-(attractions + generator.normal(0, 0.25, len(attractions))))


def bad(generator: np.random.Generator, attractions: np.ndarray) -> np.ndarray:
    """One that puts what attracts most at the bottom."""
    return np.argsort(attractions + generator.normal(0, 0.1, len(attractions)))


def shuffled(generator: np.random.Generator, attractions: np.ndarray) -> np.ndarray:
    """Of 3, 4 or 5 items."""
    return generator.permutation(len(attractions))[: generator.integers(3, 6)]


def test_expectation_maximisation_recovers_the_propensities_of_a_ranker_that_varies() -> None:
    impressions = simulated(8000, noisy)
    naive = np.bincount(impressions.position, impressions.taken) / np.bincount(impressions.position)
    found = estimated_propensities(impressions)
    assert "expectation maximisation" in found.source
    assert "not settled" not in found.source
    assert found.of_position == pytest.approx(PROPENSITIES, abs=0.06)
    assert np.abs(naive / naive[0] - PROPENSITIES).max() > 0.1  # what a count of clicks by position would say


def test_shuffled_lists_of_several_lengths_give_the_propensities_directly() -> None:
    found = estimated_propensities(simulated(8000, shuffled, randomised=True))
    assert "shuffled lists" in found.source
    assert found.of_position == pytest.approx(PROPENSITIES, abs=0.06)


def of(*rows: tuple[Sequence[str], Sequence[str]], times: int = 20) -> Impressions:
    """Lists with their clicked items, each so many times."""
    events: list[Shown | Click] = []
    for number, (items, clicked) in enumerate(row for row in rows for _ in range(times)):
        events += [shown(f"r{number}", items), *(click(f"r{number}", item) for item in clicked)]
    return impressions_of(joined(events).lists)


def test_positions_that_nothing_links_with_the_top_are_not_known_and_left_out() -> None:
    impressions = of(("abcd", "ab"), ("bacd", "ab"), ("ab", ""), ("abdc", "c"))
    propensities = estimated_propensities(impressions)
    assert np.isnan(propensities.of_position).tolist() == [False, False, True, True]
    found = graded(impressions, propensities)
    assert found.grades == {"lamp": {"a": 2, "b": 2}}
    assert any(note.startswith("120 of 280 impressions stand at positions of unknown") for note in found.notes)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        pytest.param([("ab", "a"), ("ab", "b")], "no item was shown for one query at the top and at", id="one order"),
        pytest.param([("ab", "b"), ("ba", "a")], "nothing was clicked at the top", id="no click at the top"),
    ],
)
def test_a_log_that_cannot_tell_propensities_is_refused(rows: list[tuple[str, str]], fault: str) -> None:
    with pytest.raises(DatasetError, match=rf"{fault}.*--bias none"):
        estimated_propensities(of(*rows))


def test_inverse_propensity_orders_items_right_where_counts_of_clicks_do_not() -> None:
    impressions = simulated(12000, bad)
    naive, corrected = graded(impressions), graded(impressions, estimated_propensities(impressions))
    truth = {
        f"q{query}": {f"i{item}": value for item, value in enumerate(row)} for query, row in enumerate(ATTRACTIONS)
    }

    def right(rates: dict[str, dict[str, float]]) -> float:
        """Share of the pairs of items that clearly differ and stand in the right order."""
        pairs = [
            rates[query][one] > rates[query][other]
            for query, items in truth.items()
            for one in items
            for other in items
            if items[one] > items[other] + 0.1
        ]
        return float(np.mean(pairs))

    assert right(naive.rates) < 0.7
    assert right(corrected.rates) > 0.95
    weak = [
        (query, item) for query, items in truth.items() for item in items if items[item] < 0.4 * max(items.values())
    ]
    assert {corrected.grades[query][item] for query, item in weak} == {1}
    assert 2 in {naive.grades[query][item] for query, item in weak}


def test_grades_say_clicked_close_to_the_best_and_bought() -> None:
    events = [shown(f"r{number}", "abcde") for number in range(100)]
    clicks = {"a": 60, "b": 50, "c": 5, "d": 5}
    acts = [click(f"r{number}", item) for item, count in clicks.items() for number in range(count)]
    log = joined([*events, *acts, purchase("r0", "a"), purchase("r0", "c"), purchase("r9", "a")])
    assert graded(impressions_of(log.lists)).grades == {"lamp": {"a": 3, "b": 2, "c": 2, "d": 1, "e": 0}}


def test_queries_that_differ_in_case_and_spaces_are_one_under_its_commonest_spelling() -> None:
    spellings = ["Red  lamp", "red lamp", "red lamp", " red lamp"]
    log = joined([shown(f"r{number}", "ab", query=text) for number, text in enumerate(spellings)])
    found = impressions_of(log.lists)
    assert found.texts == {"red lamp": "red lamp"}
    assert len(found.pairs) == 2


def test_rare_pairs_clipped_clicks_and_queries_without_a_click_are_counted() -> None:
    events: list[Shown | Click] = []
    for number in range(400):
        events += [shown(f"r{number}", "ab" if number % 2 else "ba"), click(f"r{number}", "a" if number % 2 else "b")]
    events += [click("r1", "b"), click("r2", "a")]  # a second position that hardly anybody looks at
    events += [shown(f"n{number}", "ab", query="nothing") for number in range(400)]
    events += [shown("rare", "xa"), click("rare", "x")]
    impressions = impressions_of(joined(events).lists)
    notes = graded(impressions, estimated_propensities(impressions)).notes
    assert any(note.startswith("2 of 403 clicks had a weight above 10") for note in notes)
    assert any("of 5 pairs of query and item were seen fewer than 10 times" in note for note in notes)
    assert "1 queries without a clicked item among those left out" in notes
    with pytest.raises(DatasetError, match="--least-impressions"):
        graded(impressions, least_impressions=1000)
