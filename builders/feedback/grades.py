"""Grades 0 to 3 of pairs of query and item, from what users did with the lists that they saw.

The rate of a pair is the mean over its impressions of the clicks, each weighted with 1 / the propensity of its position
where the bias of positions is corrected, and drawn towards the rate of the whole log as if the pair had been shown
:data:`PRIOR_IMPRESSIONS` times more. A purchase is a click, too. Grades are relative to the best item of their query:

====  ==========================================================================
 0    shown often enough, never clicked
 1    clicked
 2    clicked at half the rate of the query's best item or more
 +1   bought
====  ==========================================================================
"""

from __future__ import annotations

import dataclasses

import numpy as np

from builders.data.beir import DatasetError
from builders.feedback.impressions import Impressions
from builders.feedback.propensities import Propensities
from builders.feedback.settings import LEAST_IMPRESSIONS

PRIOR_IMPRESSIONS = 10
LARGEST_WEIGHT = 10.0
"""Of a click; beyond it one click at a position that hardly anybody sees would decide."""
CLOSE_TO_BEST = 0.5


@dataclasses.dataclass(frozen=True)
class Graded:
    """Grades by query key and item id, of queries with at least one item that was clicked.

    Attributes:
        rates: of the same pairs, as the grades are made of them.
        notes: lines for a reader: what was left out or clipped.
    """

    grades: dict[str, dict[str, int]]
    rates: dict[str, dict[str, float]]
    notes: tuple[str, ...]


def graded(
    impressions: Impressions, propensities: Propensities | None = None, least_impressions: float = LEAST_IMPRESSIONS
) -> Graded:
    """Grades of the pairs that were seen often enough.

    Args:
        propensities: correct clicks by them; None = positions are taken to be alike.
        least_impressions: of a pair; with ``propensities``, an impression counts as much as its propensity.

    Raises:
        DatasetError: no query with a clicked item is left.
    """
    weights = _Weights.of(impressions, propensities)
    pairs = len(impressions.pairs)
    pair, taken = impressions.pair[weights.known], impressions.taken[weights.known]
    shown = np.bincount(pair, minlength=pairs)
    seen = np.bincount(pair, weights.seen, pairs)
    clicks = np.bincount(pair, weights.click * taken, pairs)
    rates = (clicks + PRIOR_IMPRESSIONS * clicks.sum() / max(shown.sum(), 1)) / (shown + PRIOR_IMPRESSIONS)
    enough = (seen >= least_impressions) & (shown > 0)
    bought = np.bincount(pair, impressions.bought[weights.known], pairs) > 0
    found, unclicked = _by_query(impressions, rates, clicks > 0, bought, enough)
    notes = (
        *weights.notes(taken),
        *_counted(int((~enough).sum()), pairs, f"were seen fewer than {least_impressions:g} times: left out"),
        *((f"{unclicked} queries without a clicked item among those left out",) if unclicked else ()),
    )
    if not found.grades:
        raise DatasetError(
            f"no query has a clicked item that was seen {least_impressions:g} times or more, wanted one at least: give "
            f"a longer log, or lower --least-impressions. {'; '.join(notes)}"
        )
    return dataclasses.replace(found, notes=notes)


@dataclasses.dataclass(frozen=True)
class _Weights:
    """Of impressions at positions whose propensity is known.

    Attributes:
        known: bool [rows].
        seen: float64 [known rows], what an impression counts.
        click: float64 [known rows], what a click on it counts.
    """

    known: np.ndarray
    seen: np.ndarray
    click: np.ndarray
    clipped: np.ndarray

    @classmethod
    def of(cls, impressions: Impressions, propensities: Propensities | None) -> _Weights:
        if propensities is None:
            ones = np.ones(len(impressions.pair))
            return cls(ones > 0, ones, ones, ones < 0)
        seen = propensities.of_position[impressions.position]
        known = np.isfinite(seen)
        seen = seen[known]
        return cls(known, seen, np.minimum(1 / seen, LARGEST_WEIGHT), 1 / seen > LARGEST_WEIGHT)

    def notes(self, taken: np.ndarray) -> list[str]:
        unknown, clipped = int((~self.known).sum()), int((self.clipped & taken).sum())
        return [
            *_counted(unknown, len(self.known), "stand at positions of unknown propensity: left out", "impressions"),
            *_counted(clipped, int(taken.sum()), f"had a weight above {LARGEST_WEIGHT:g}: clipped to it", "clicks"),
        ]


def _by_query(
    impressions: Impressions, rates: np.ndarray, clicked: np.ndarray, bought: np.ndarray, enough: np.ndarray
) -> tuple[Graded, int]:
    """Grades, and how many queries were left out since nothing in them was clicked."""
    best: dict[str, float] = {}
    unclicked: set[str] = set()
    kept = np.flatnonzero(enough)
    for index in kept:
        query = impressions.pairs[index][0]
        unclicked.add(query)
        if clicked[index]:
            best[query] = max(best.get(query, 0.0), float(rates[index]))
    found = Graded({query: {} for query in best}, {query: {} for query in best}, ())
    for index in kept:
        query, item_id = impressions.pairs[index]
        if query in best:
            close = rates[index] >= CLOSE_TO_BEST * best[query]
            found.grades[query][item_id] = int(clicked[index]) * (1 + int(close) + int(bought[index]))
            found.rates[query][item_id] = float(rates[index])
    return found, len(unclicked - set(best))


def _counted(count: int, of: int, what: str, things: str = "pairs of query and item") -> list[str]:
    return [f"{count} of {of} {things} {what}"] if count else []
