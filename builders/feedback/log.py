"""Shown lists with their clicks and purchases, joined by request id; what does not join is counted.

Memory grows linearly with the log. Events may come in any order.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from builders.data.beir import DatasetError
from builders.feedback.events import Click, Purchase, Shown
from builders.feedback.reading import read_events


@dataclasses.dataclass(frozen=True)
class ShownList:
    """A list and what its user did with it.

    Attributes:
        clicks: item id to the time of its first click.
        purchases: item id to what was paid for it in all; None where the log does not say.
    """

    shown: Shown
    clicks: Mapping[str, datetime.datetime]
    purchases: Mapping[str, float | None]

    @property
    def taken(self) -> set[str]:
        """Items that were clicked or bought: who buys an item has looked at it."""
        return {*self.clicks, *self.purchases}

    @property
    def first_click_reciprocal_rank(self) -> float:
        """1 / position of the first click in time, the higher position at the same moment; 0 without a click."""
        if not self.clicks:
            return 0.0
        positions = {item_id: place for place, item_id in enumerate(self.shown.item_ids, start=1)}
        first = min(self.clicks, key=lambda item_id: (self.clicks[item_id], positions[item_id]))
        return 1 / positions[first]


@dataclasses.dataclass(frozen=True)
class FeedbackLog:
    """A log, joined.

    Attributes:
        lists: in the order of the log.
        counts: what was counted once or left out => how many, of those that there were any.
    """

    lists: Sequence[ShownList]
    counts: Mapping[str, int]

    def told(self) -> list[str]:
        """Lines for a reader."""
        clicks = sum(len(each.clicks) for each in self.lists)
        purchases = sum(len(each.purchases) for each in self.lists)
        first = f"{len(self.lists)} shown lists, {clicks} clicked items and {purchases} bought items in them"
        return [first, *(f"{count} {what}" for what, count in self.counts.items())]


def read_feedback(paths: Sequence[Path]) -> FeedbackLog:
    """Reads and joins files. Raises: DatasetError: see :func:`builders.feedback.reading.read_events`, or no list."""
    log = joined(read_events(paths))
    if not log.lists:
        raise DatasetError(
            f'{", ".join(map(str, paths))}: no shown list, wanted records with "event": "shown"'
            + "".join(f"; {line}" for line in log.told()[1:])
        )
    return log


def joined(events: Iterable[Shown | Click | Purchase]) -> FeedbackLog:
    """Lists with their clicks and purchases.

    A record that stands twice is counted once, as logs that are delivered at least once hold them. Two different lists
    of one request id are both left out, since nobody knows which of them was clicked.
    """
    join = _Join()
    for event in events:
        join.add(event)
    return join.log()


class _Join:
    def __init__(self) -> None:
        self.shown: dict[str, Shown] = {}
        self.contradicted: set[str] = set()
        self.clicks: dict[tuple[str, str], datetime.datetime] = {}
        self.purchases: dict[tuple[str, str], set[tuple[datetime.datetime, float | None]]] = {}
        self.counts: collections.Counter[str] = collections.Counter()

    def add(self, event: Shown | Click | Purchase) -> None:
        if isinstance(event, Shown):
            self._add_list(event)
        elif isinstance(event, Click):
            self._add_click(event)
        else:
            self._add_purchase(event)

    def _add_list(self, event: Shown) -> None:
        if event.request_id not in self.shown:
            self.shown[event.request_id] = event
        elif self.shown[event.request_id] == event:
            self.counts["shown lists that stand twice, counted once"] += 1
        else:
            self.contradicted.add(event.request_id)
            self.counts["shown lists left out: another list has the same request id"] += 1

    def _add_click(self, event: Click) -> None:
        key = (event.request_id, event.item_id)
        if key in self.clicks:
            self.counts["repeated clicks on one item of a list, counted once"] += 1
        self.clicks[key] = min(event.time, self.clicks.get(key, event.time))

    def _add_purchase(self, event: Purchase) -> None:
        known = self.purchases.setdefault((event.request_id, event.item_id), set())
        if (event.time, event.revenue) in known:
            self.counts["purchases that stand twice, counted once"] += 1
        known.add((event.time, event.revenue))

    def log(self) -> FeedbackLog:
        self.counts["shown lists left out: another list has the same request id"] += len(self.contradicted)
        kept = {request_id: each for request_id, each in self.shown.items() if request_id not in self.contradicted}
        items = {request_id: set(each.item_ids) for request_id, each in kept.items()}
        clicks: dict[str, dict[str, datetime.datetime]] = {}
        purchases: dict[str, dict[str, float | None]] = {}
        for (request_id, item_id), time in self.clicks.items():
            if self._joins("clicks", request_id, item_id, items):
                clicks.setdefault(request_id, {})[item_id] = time
        for (request_id, item_id), bought in self.purchases.items():
            if self._joins("purchases", request_id, item_id, items):
                purchases.setdefault(request_id, {})[item_id] = _paid(bought)
        lists = [
            ShownList(each, clicks.get(request_id, {}), purchases.get(request_id, {}))
            for request_id, each in kept.items()
        ]
        return FeedbackLog(lists, {what: count for what, count in self.counts.items() if count})

    def _joins(self, what: str, request_id: str, item_id: str, items: Mapping[str, set[str]]) -> bool:
        if request_id in self.contradicted:
            self.counts[f"{what} left out: two lists have their request id"] += 1
        elif request_id not in items:
            self.counts[f"{what} left out: no shown list has their request id"] += 1
        elif item_id not in items[request_id]:
            self.counts[f"{what} left out: their item was not in the list"] += 1
        else:
            return True
        return False


def _paid(bought: Iterable[tuple[datetime.datetime, float | None]]) -> float | None:
    known = [revenue for _, revenue in bought if revenue is not None]
    return sum(known) if known else None
