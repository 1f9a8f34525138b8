"""Shown lists of queries as arrays: one row for each item of each list. Memory grows linearly with the rows."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from builders.feedback.log import ShownList

Pair = tuple[str, str]
"""(query as :func:`query_key` gives it, item id)"""


@dataclasses.dataclass(frozen=True)
class Impressions:
    """Arrays [rows].

    Attributes:
        pairs: distinct pairs of query and item, in the order of the log.
        texts: query key to its commonest spelling, ties by the alphabet.
        pair: int64, index into ``pairs``.
        position: int64, from 0 = the top.
        length: int64, items of the row's list.
        taken: bool, clicked or bought.
        bought: bool.
        randomised: bool, whether the list's order was shuffled.
    """

    pairs: list[Pair]
    texts: dict[str, str]
    pair: np.ndarray
    position: np.ndarray
    length: np.ndarray
    taken: np.ndarray
    bought: np.ndarray
    randomised: np.ndarray


def query_key(query: str) -> str:
    """Queries that differ in case and spaces alone are one."""
    return " ".join(query.split()).casefold()


def impressions_of(lists: Sequence[ShownList]) -> Impressions:
    """Of lists that all have a query, at least one."""
    index: dict[Pair, int] = {}
    spellings: dict[str, collections.Counter[str]] = {}
    rows: list[tuple[int, int, int, bool, bool, bool]] = []
    for each in lists:
        shown, taken = each.shown, each.taken
        text = " ".join((shown.query or "").split())
        key = query_key(text)
        spellings.setdefault(key, collections.Counter())[text] += 1
        for position, item_id in enumerate(shown.item_ids):
            pair = index.setdefault((key, item_id), len(index))
            bought = item_id in each.purchases
            rows.append((pair, position, len(shown.item_ids), item_id in taken, bought, shown.randomised))
    pair, position, length, taken, bought, randomised = np.array(rows, dtype=np.int64).T
    return Impressions(
        pairs=list(index),
        texts={key: min(counted, key=lambda text: (-counted[text], text)) for key, counted in spellings.items()},
        pair=pair,
        position=position,
        length=length,
        taken=taken.astype(bool),
        bought=bought.astype(bool),
        randomised=randomised.astype(bool),
    )
