"""How likely a position is looked at, relative to the top one, estimated from a feedback log.

The position-based model: an item is clicked when its position is examined and the item attracts for the query,
P(click) = propensity(position) * attraction(query, item). Where the log has enough lists whose order was shuffled, the
propensity of a position is its click-through rate over the top position's, in lists that reach it. Elsewhere both
factors are estimated by expectation maximisation (Wang et al., 2018, "Position Bias Estimation for Unbiased Learning to
Rank in Personal Search"), which learns from items that were shown for one query at several positions.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from builders.data.beir import DatasetError
from builders.feedback.impressions import Impressions

RANDOMISED_CLICKS = 100
"""At the top position of shuffled lists, from which on they give the propensities: a standard error of a tenth."""
STEPS = 5000
TOLERANCE = 1e-6
"""Largest change of a propensity in a step that ends the estimation."""
_LEAST = 1e-9


@dataclasses.dataclass(frozen=True)
class Propensities:
    """Estimated propensities.

    Attributes:
        of_position: float64 [positions], of the top position 1; NaN where the log does not tell.
        source: how they were estimated, for a reader.
    """

    of_position: np.ndarray
    source: str


def estimated_propensities(impressions: Impressions) -> Propensities:
    """From shuffled lists where there are enough, else by expectation maximisation.

    Raises:
        DatasetError: no list is shuffled enough and no item of a query was shown at more than one position, or nothing
            was clicked at the top.
    """
    shuffled = impressions.randomised & impressions.taken & (impressions.position == 0)
    if shuffled.sum() >= RANDOMISED_CLICKS:
        return _of_shuffled_lists(impressions)
    return _by_expectation_maximisation(impressions)


def _of_shuffled_lists(impressions: Impressions) -> Propensities:
    chosen = impressions.randomised
    position, length, taken = impressions.position[chosen], impressions.length[chosen], impressions.taken[chosen]
    positions = int(impressions.position.max()) + 1
    clicks = np.bincount(position[taken], minlength=positions)
    top = (position == 0) & taken
    top_clicks = np.bincount(length[top], minlength=positions + 1)  # by the list's length
    reaching = top_clicks[::-1].cumsum()[::-1][1:]  # of lists of at least 1, 2, ... items
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where((clicks > 0) & (reaching > 0), clicks / reaching, np.nan)
    lists = int((position == 0).sum())
    return Propensities(found, f"the click-through rate by position of {lists} shuffled lists")


def _by_expectation_maximisation(impressions: Impressions) -> Propensities:
    positions = int(impressions.position.max()) + 1
    cell, row = np.unique(impressions.pair * positions + impressions.position, return_inverse=True)
    pair, position = np.divmod(cell, positions)
    shown = np.bincount(row).astype(float)
    clicks = np.bincount(row, weights=impressions.taken)
    _check_clicks_at_the_top(clicks[position == 0])
    linked = _linked_with_the_top(pair, position, len(impressions.pairs), positions)
    propensity, steps = _maximised(pair, position, shown, clicks, len(impressions.pairs), positions)
    found = np.where(linked & (propensity > _LEAST), propensity / propensity[0], np.nan)
    ended = "" if steps < STEPS else f", which had not settled after {STEPS} steps"
    return Propensities(found, f"expectation maximisation over {int(shown.sum())} impressions{ended}")


def _check_clicks_at_the_top(clicks: np.ndarray) -> None:
    if not clicks.sum():
        raise DatasetError(
            "nothing was clicked at the top position, so that no propensity can be estimated; wanted clicks, or "
            "--bias none"
        )


def _linked_with_the_top(pair: np.ndarray, position: np.ndarray, pairs: int, positions: int) -> np.ndarray:
    """bool [positions]: whether pairs shown at several positions lead from it to the top one; elsewhere attraction and
    propensity cannot be told apart. Raises: DatasetError: none but the top."""
    size = pairs + positions
    links = sparse.coo_matrix((np.ones(len(pair)), (pair, pairs + position)), shape=(size, size))
    _, parts = csgraph.connected_components(links, directed=False)
    linked: np.ndarray = parts[pairs:] == parts[pairs]
    if positions > 1 and linked.sum() == 1:
        raise DatasetError(
            "no item was shown for one query at the top and at another position, so that position and attraction "
            'cannot be told apart; wanted some lists with a shuffled order ("randomised": true), or --bias none'
        )
    return linked


def _maximised(
    pair: np.ndarray, position: np.ndarray, shown: np.ndarray, clicks: np.ndarray, pairs: int, positions: int
) -> tuple[np.ndarray, int]:
    """float64 [positions], up to a factor, and the steps taken.

    Args:
        pair, position, shown, clicks: [cells], one for each pair at each of its positions.
    """
    shown_of_pair, shown_at = np.bincount(pair, shown, pairs), np.bincount(position, shown, positions)
    examined = np.full(positions, 0.9)
    attracts = (np.bincount(pair, clicks, pairs) + 0.5) / (shown_of_pair + 1)
    passed = shown - clicks
    for step in range(STEPS):
        e, a = examined[position], attracts[pair]
        unclicked = np.maximum(1 - e * a, _LEAST)
        was_examined = clicks + passed * e * (1 - a) / unclicked
        did_attract = clicks + passed * a * (1 - e) / unclicked
        before = examined
        examined = np.bincount(position, was_examined, positions) / np.maximum(shown_at, _LEAST)
        attracts = np.bincount(pair, did_attract, pairs) / shown_of_pair
        if np.abs(examined - before).max() < TOLERANCE:
            return examined, step
    return examined, STEPS
