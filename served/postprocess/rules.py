"""Business rules over scores: the order of candidates that a shop wants shown. The one place that says how they apply.

Order of application:

1. filter: with ``in_stock_only``, items whose attribute ``in_stock`` is false leave the list. All else is in stock.
2. boost and bury: each ``attribute=value`` adds its amount to the score of the items that have it. An item without a
   score stays without one.
3. order: highest score first, ties in first-stage order, items without a score last.
4. brand limit: of a brand, at most ``max_per_brand`` items stand among the first k; further ones go behind the first
   k, or fill them up where nothing else is left. Pinned items count for their brand, and are not moved. An item without
   a brand is not limited.
5. pins: an item stands at its position, 1 = first; where the filter left fewer items, last. A pinned item that the
   filter took stays away.
6. cut: the first k.

Attributes are those of the item store. Knows nothing of Triton, requests or LMDB: NumPy and the standard library only.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

IN_STOCK, BRAND = "in_stock", "brand"
Attributes = Mapping[str, Any]
"""Attribute => text, number or boolean of one item."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is asked of one list.

    Attributes:
        in_stock_only: leave out items that are not in stock.
        boosts: (attribute, value, amount added to the score).
        pins: row of the candidate => its position, 1 = first.
        max_per_brand: items of one brand among the first k; 0 = no limit.
    """

    in_stock_only: bool = False
    boosts: tuple[tuple[str, str, float], ...] = ()
    pins: Mapping[int, int] = dataclasses.field(default_factory=dict)
    max_per_brand: int = 0

    @property
    def read_attributes(self) -> bool:
        """Whether the items' attributes must be known."""
        return bool(self.in_stock_only or self.boosts or self.max_per_brand)


def combined(score: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """FP32 [candidates] of FP32 [candidates, heads]: the heads' weighted sum; a single head as it is."""
    if score.shape[1] == 1 and not weights:
        return score[:, 0]
    return score @ np.array(weights, dtype=np.float32)


def best_first(scores: np.ndarray) -> np.ndarray:
    """Positions, highest score first; equal scores keep their order. scores: [candidates], finite."""
    return np.argsort(-scores, kind="stable")


def arranged(
    scores: np.ndarray, unscored: float, rules: Rules, attributes: Sequence[Attributes], k: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Apply the rules in their order; see the docstring of this file.

    Args:
        scores: FP32 [candidates], finite.
        unscored: score of an item without one.
        attributes: of each candidate; empty where ``rules.read_attributes`` is false.
        k: how many to return.

    Returns:
        Rows of the candidates, best first, at most k; scores FP32 [candidates] with the boosts; how many the
        filter left out.
    """
    boosted = _boosted(scores, unscored, rules, attributes)
    order = [row for row in best_first(boosted).tolist() if not (rules.in_stock_only and _is_out(attributes[row]))]
    pins = _places(rules.pins, order)
    unpinned = [row for row in order if row not in pins]
    if rules.max_per_brand:
        unpinned = _brand_limited(unpinned, pins, attributes, rules.max_per_brand, k)
    listed = _pinned(unpinned, pins)[:k]
    return np.array(listed, dtype=np.int64), boosted.astype(np.float32), len(boosted) - len(order)


def _boosted(scores: np.ndarray, unscored: float, rules: Rules, attributes: Sequence[Attributes]) -> np.ndarray:
    """FP64 [candidates]: in FP32 a large boost would swallow the differences between those that it lifts."""
    if not rules.boosts:
        return scores.astype(np.float64)
    amounts: dict[str, dict[str | None, float]] = {}
    for name, value, amount in rules.boosts:
        of_name = amounts.setdefault(name, {})
        of_name[value] = of_name.get(value, 0.0) + amount
    added = [sum(of_name.get(text_of(item.get(name)), 0.0) for name, of_name in amounts.items()) for item in attributes]
    return np.where(scores == np.float32(unscored), scores, scores + np.array(added, dtype=np.float64))


def text_of(value: Any) -> str | None:
    """An attribute as a boost spells it: true and false for booleans, 7 and 7.5 for numbers."""
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)


def _is_out(item: Attributes) -> bool:
    return item.get(IN_STOCK) is False


def _places(pins: Mapping[int, int], order: Sequence[int]) -> dict[int, int]:
    """Row => where it will stand, the first place first; the last places of the list for positions behind its end."""
    wanted = sorted((pins[row], row) for row in order if row in pins)
    last = range(len(order) - len(wanted) + 1, len(order) + 1)
    return {row: min(position, place) for (position, row), place in zip(wanted, last, strict=True)}


def _brand_limited(
    rows: Sequence[int], pins: Mapping[int, int], attributes: Sequence[Attributes], limit: int, k: int
) -> list[int]:
    """The rows in their order, but surplus ones of a brand behind those that the first k have room for."""
    first = [row for row, place in pins.items() if place <= k]
    shown = collections.Counter(attributes[row].get(BRAND) for row in first)
    room = k - len(first)
    chosen: list[int] = []
    for row in rows:
        brand = attributes[row].get(BRAND)
        if len(chosen) < room and (not brand or shown[brand] < limit):
            shown[brand] += 1
            chosen.append(row)
    taken = set(chosen)
    return [*chosen, *(row for row in rows if row not in taken)]


def _pinned(rows: Sequence[int], pins: Mapping[int, int]) -> list[int]:
    listed = list(rows)
    for row, place in pins.items():
        listed.insert(place - 1, row)
    return listed
