"""A shop's purchase log => what rankers of items for a user learn from and are judged on, parted by a cut in time.

Everything that a ranker may know, histories, popularity, prices, vocabularies, is from before the cut; it is judged on
purchases on or after it of items that the customer had not bought before ("first-time"). Whole customers are not held
out, so most are warm: they have a history. Those without one are cold. Guests, who have no customer id, count for
their items' prices, sales and titles, and for no customer. Returns are netted on each side of the cut by itself:
what is known before it is what was known then.

Knows nothing of any network, nor how a metric is computed.
"""

from __future__ import annotations

import bisect
import dataclasses
import datetime
import functools
import itertools
import random
import statistics
from collections import OrderedDict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import pandas as pd
from rich.progress import track

from builders.core.keys import key_of
from builders.data.beir import DatasetError, JudgedQueries, Product, Request
from builders.data.purchase_columns import LABEL
from builders.data.purchase_fields import Basket, Customer, Fields, context_fields, days, item_products
from builders.data.purchases import read_purchases
from builders.data.returns import net_returns, without_no_purchases

T = TypeVar("T")

CUT = datetime.datetime(2010, 11, 1)
"""In UCI Online Retail II, 2009-12-01 to 2010-12-09: rankers learn from what lies before, the rest judges them."""
VALIDATION_CUT = datetime.datetime(2010, 10, 1)
"""The same inside the training part, to choose hyper-parameters by; see :func:`validation_log`."""
TRAINING_SHARE = 0.9
"""Share of the invoices before the cut, in a log that does not reach over the one asked for."""

HISTORY_LIMIT = 100
"""Latest distinct items of a history that a request carries."""
EVALUATION_CUSTOMERS = 400
NEGATIVES = 99
POSITIVE_GRADE = 3
SEED = 20101101
LARGE = 200_000
"""Lines of a log from which on its reading shows a bar."""


class Impression(NamedTuple):
    """An item that was shown and not taken."""

    time: datetime.datetime
    item_id: str


@dataclasses.dataclass(frozen=True)
class PurchaseLog:
    """A purchase log, parted at ``cut``.

    Attributes:
        cut: first moment of the test part.
        items: item id to product, the most popular first: title is the commonest description, price the median unit
            price in pounds sterling, ``fields`` hold :data:`ITEM_NUMBERS` and :data:`ITEM_VALUES`. Items that were
            not sold before the cut are there with popularity 0, their title and what follows from id and title.
        users: user id to raw fields (:data:`USER_NUMBERS`, :data:`USER_VALUES`) as of the cut, of warm customers.
        baskets: user id to invoices before the cut, oldest first, of warm customers.
        histories: user id to the distinct items bought before the cut, in the order of their latest purchase (one
            bought again moves to the end), then of lines on the invoice; oldest first, not cut to a length.
        positives: user id to the first-time purchases on or after the cut, in the order of purchase; customers with
            at least one, cold ones included.
        test_times: user id to the time of the first invoice with a first-time purchase, of the same customers.
        shown: user id to impressions: what the customer was shown and did not take, by time; None where the log does
            not tell ("label").
        notes: lines for a reader: of what was read, and if the cut is not the one that was asked for.
    """

    cut: datetime.datetime
    items: dict[str, Product]
    users: dict[str, Fields]
    baskets: dict[str, tuple[Basket, ...]]
    histories: dict[str, tuple[str, ...]]
    positives: dict[str, tuple[str, ...]]
    test_times: dict[str, datetime.datetime]
    shown: dict[str, tuple[Impression, ...]] | None = None
    notes: tuple[str, ...] = ()

    @property
    def known_items(self) -> tuple[str, ...]:
        """Ids of the items sold before the cut, the most popular first: the vocabulary of a ranker."""
        return tuple(item_id for item_id, product in self.items.items() if product.fields["popularity"])

    def is_warm(self, user_id: str) -> bool:
        """Whether the customer bought something before the cut."""
        return user_id in self.histories

    def passed_over(self, user_id: str) -> list[str]:
        """Items that the customer was shown on or after the cut and never bought, each once, in time's order."""
        bought = {*self.histories.get(user_id, ()), *self.positives.get(user_id, ())}
        shown = [each.item_id for each in (self.shown or {}).get(user_id, ()) if each.time >= self.cut]
        return [item_id for item_id in dict.fromkeys(shown) if item_id not in bought]


@dataclasses.dataclass(frozen=True)
class Example:
    """A basket to predict from what was known just before it.

    Attributes:
        history: as in :attr:`PurchaseLog.histories`, but as of just before the basket, latest :data:`HISTORY_LIMIT`.
        positives: items bought for the first time in the basket, at least one.
        quantities: units of each of them.
        context, user: raw fields of the invoice's time, and of the customer just before it.
        age_days: from the basket to the cut.
        shown: items that the customer was shown since the basket before and took neither then nor now; empty where the
            log does not tell.
    """

    user_id: str
    history: tuple[str, ...]
    positives: tuple[str, ...]
    quantities: tuple[int, ...]
    context: Fields
    user: Fields
    age_days: float
    shown: tuple[str, ...] = ()


def purchase_log(folder: Path, cut: datetime.datetime = CUT, until: datetime.datetime | None = None) -> PurchaseLog:
    """Read the purchases below ``folder`` and part them.

    Args:
        folder: as :func:`builders.data.purchases.load_purchases` takes it.
        cut: where the log does not reach over it (made-up data does not), the time before which nine invoices of ten
            lie takes its place, and ``notes`` say so.
        until: leave out all purchases on or after it.

    Raises:
        DatasetError: no purchases, or none on one side of any cut.
    """
    read = read_purchases(folder)
    lines, impressions, dropped = _lines(read.lines.to_pandas(), until, folder)
    moment, notes = _cut_within(lines, cut, folder)
    before, returned_before = net_returns(lines[lines.time < moment])
    after, returned_after = net_returns(lines[lines.time >= moment])
    before, after = _merged(before), _merged(after)
    known_before, known_after = before[before.user_id.notna()], after[after.user_id.notna()]
    if known_before.empty or known_after.empty:
        raise DatasetError(
            f"{folder}: less returns, {len(known_before)} purchases of customers before {moment} and "
            f"{len(known_after)} from then on, wanted some on both sides"
        )
    baskets = _baskets(known_before)
    histories = {user_id: tuple(_history(of_user)) for user_id, of_user in baskets.items()}
    positives, test_times = _first_time_purchases(known_after, histories)
    countries = known_before.groupby("user_id").country.first().to_dict()
    return PurchaseLog(
        cut=moment,
        items=item_products(before, after if impressions is None else pd.concat([after, impressions]), moment),
        users={
            user_id: Customer.of(countries[user_id], of_user).fields(moment) for user_id, of_user in baskets.items()
        },
        baskets=baskets,
        histories=histories,
        positives=positives,
        test_times=test_times,
        shown=None if impressions is None else _impressions(impressions),
        notes=(*read.notes, *notes, *dropped, *(returned_before + returned_after).told()),
    )


def validation_log(folder: Path) -> PurchaseLog:
    """The training part alone, parted at :data:`VALIDATION_CUT`: nothing in it is from after the test cut."""
    return purchase_log(folder, VALIDATION_CUT, until=purchase_log(folder).cut)


def _lines(
    lines: pd.DataFrame, until: datetime.datetime | None, folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame | None, list[str]]:
    """Purchases and returns: user_id (missing for a guest), invoice, time (the invoice's first), item_id, quantity,
    price, title, country. Impressions: user_id, time, item_id, title, in time's order; None where the log tells
    none. And what was left out."""
    names = {"customer_id": "user_id", "invoice_date": "time", "stock_code": "item_id", "description": "title"}
    lines = lines.rename(columns=names)
    if until is not None:
        lines = lines[lines.time < until]
    bought, shown = (lines[lines[LABEL]], lines[~lines[LABEL]]) if LABEL in lines else (lines, None)
    if bought.empty and shown is not None:
        raise DatasetError(f"{folder}: {LABEL} is 0 in all {len(lines)} lines, wanted some with 1, which were taken")
    bought, dropped = without_no_purchases(bought)
    times = bought.groupby(["user_id", "invoice"], dropna=False).time.transform("min")
    if shown is not None:
        shown = shown[shown.user_id.notna()].sort_values("time", kind="stable")[["user_id", "time", "item_id", "title"]]
    return bought.assign(time=times), shown, dropped


def _impressions(shown: pd.DataFrame) -> dict[str, tuple[Impression, ...]]:
    of_user: dict[str, list[Impression]] = {}
    for user_id, time, item_id in zip(shown.user_id, shown.time, shown.item_id, strict=True):
        of_user.setdefault(user_id, []).append(Impression(time, item_id))
    return {user_id: tuple(impressions) for user_id, impressions in of_user.items()}


def _merged(lines: pd.DataFrame) -> pd.DataFrame:
    """A row an invoice and item, in time's order."""
    merged = lines.groupby(["user_id", "invoice", "item_id"], sort=False, as_index=False, dropna=False).agg(
        time=("time", "first"),
        quantity=("quantity", "sum"),
        price=("price", "mean"),
        title=("title", "first"),
        country=("country", "first"),
    )
    return merged.sort_values("time", kind="stable", ignore_index=True)


def _cut_within(lines: pd.DataFrame, cut: datetime.datetime, folder: Path) -> tuple[datetime.datetime, tuple[str, ...]]:
    """By the invoices on which customers bought something."""
    times = lines[lines.quantity > 0].groupby(["user_id", "invoice"]).time.first()
    if times.empty:
        raise DatasetError(f"{folder}: no customer bought anything, wanted purchases before and after {cut}")
    if times.min() < cut <= times.max():
        return cut, ()
    moved = times.quantile(TRAINING_SHARE, interpolation="higher").to_pydatetime()
    if not times.min() < moved:
        raise DatasetError(f"{folder}: all {len(times)} invoices are of {moved}, wanted some before and some after")
    return moved, (
        f"the purchases are of {times.min():%Y-%m-%d} to {times.max():%Y-%m-%d} and do not reach over {cut:%Y-%m-%d}: "
        f"cut at {moved:%Y-%m-%d %H:%M}, before which {TRAINING_SHARE:.0%} of the invoices lie",
    )


def _baskets(before: pd.DataFrame) -> dict[str, tuple[Basket, ...]]:
    of_user: dict[str, list[Basket]] = {}
    seen: dict[str, set[str]] = {}
    for rows in _watched(_invoices(before), len(before), "reading invoices"):
        user_id, time = rows[0].user_id, rows[0].time
        bought = seen.setdefault(user_id, set())
        basket = Basket(
            user_id=user_id,
            time=time,
            item_ids=tuple(row.item_id for row in rows),
            quantities=tuple(row.quantity for row in rows),
            prices=tuple(row.price for row in rows),
            first_time=tuple(row.item_id not in bought for row in rows),
        )
        bought.update(basket.item_ids)
        of_user.setdefault(user_id, []).append(basket)
    return {user_id: tuple(baskets) for user_id, baskets in of_user.items()}


class _Line(NamedTuple):
    user_id: str
    invoice: str
    time: datetime.datetime
    item_id: str
    quantity: int
    price: float


def _rows(lines: pd.DataFrame) -> Iterator[_Line]:
    """Column by column: ``itertuples`` over Arrow's strings takes ten times as long."""
    return map(_Line._make, zip(*(lines[name].tolist() for name in _Line._fields), strict=True))


def _watched(steps: Collection[T], lines: int, title: str) -> Iterable[T]:
    """With a bar where there are many lines."""
    return track(steps, title, transient=True) if lines >= LARGE else steps


def _invoices(lines: pd.DataFrame) -> Collection[list[_Line]]:
    """Rows of each invoice, in time's order; two invoices of one minute are kept apart."""
    rows: dict[tuple[str, str], list[_Line]] = {}
    for row in _rows(lines):
        rows.setdefault((row.user_id, row.invoice), []).append(row)
    return rows.values()


def _history(baskets: Iterable[Basket]) -> list[str]:
    """Distinct items in the order of their latest purchase."""
    latest: OrderedDict[str, None] = OrderedDict()
    for basket in baskets:
        _buy(latest, basket)
    return list(latest)


def _buy(latest: OrderedDict[str, None], basket: Basket) -> None:
    for item_id in basket.item_ids:
        latest[item_id] = None
        latest.move_to_end(item_id)


def _last(latest: OrderedDict[str, None], count: int) -> tuple[str, ...]:
    """The latest items, oldest first; read from the end, so that a long history costs no more than a short one."""
    return tuple(itertools.islice(reversed(latest), count))[::-1]


def _first_time_purchases(
    after: pd.DataFrame, histories: Mapping[str, Sequence[str]]
) -> tuple[dict[str, tuple[str, ...]], dict[str, datetime.datetime]]:
    bought = {user_id: set(items) for user_id, items in histories.items()}
    positives: dict[str, list[str]] = {}
    times: dict[str, datetime.datetime] = {}
    for row in _rows(after):
        seen = bought.setdefault(row.user_id, set())
        if row.item_id not in seen:
            seen.add(row.item_id)
            positives.setdefault(row.user_id, []).append(row.item_id)
            times.setdefault(row.user_id, row.time)
    return {user_id: tuple(items) for user_id, items in positives.items()}, times


def training_examples(log: PurchaseLog, *, with_empty_history: bool = False) -> list[Example]:
    """One for each basket before the cut with something bought for the first time, by customer, oldest first.

    Args:
        with_empty_history: also each customer's first basket.
    """
    lines = sum(len(basket.item_ids) for baskets in log.baskets.values() for basket in baskets)
    return [
        example
        for user_id in _watched(log.baskets, lines, "making examples")
        for example in _examples_of(log, user_id)
        if example.history or with_empty_history
    ]


def _examples_of(log: PurchaseLog, user_id: str) -> Iterator[Example]:
    """In one pass over the customer's baskets."""
    customer = Customer(log.users[user_id]["country"])
    latest: OrderedDict[str, None] = OrderedDict()
    seen_until = datetime.datetime.min
    impressions = (log.shown or {}).get(user_id, ())
    for basket in log.baskets[user_id]:
        new = [column for column, first_time in enumerate(basket.first_time) if first_time]
        if new:
            yield Example(
                user_id=user_id,
                history=_last(latest, HISTORY_LIMIT),
                positives=tuple(basket.item_ids[column] for column in new),
                quantities=tuple(basket.quantities[column] for column in new),
                context=context_fields(basket.time),
                user=customer.fields(basket.time),
                age_days=days(log.cut - basket.time),
                shown=_shown_between(impressions, seen_until, basket, latest),
            )
        _buy(latest, basket)
        customer.add(basket)
        seen_until = basket.time


def _shown_between(
    impressions: Sequence[Impression], start: datetime.datetime, basket: Basket, bought: Container[str]
) -> tuple[str, ...]:
    """Each item once that was shown after ``start`` and up to the basket's time, and is in neither."""
    first, last = (bisect.bisect_right(impressions, time, key=lambda each: each.time) for time in (start, basket.time))
    shown = dict.fromkeys(each.item_id for each in impressions[first:last])
    taken = frozenset(basket.item_ids) if shown else frozenset()
    return tuple(item_id for item_id in shown if item_id not in bought and item_id not in taken)


def request_of(log: PurchaseLog, user_id: str) -> Request:
    """What a test customer's first invoice after the cut would ask: history before the cut, id and time."""
    return Request(
        history=log.histories.get(user_id, ())[-HISTORY_LIMIT:],
        user_id=user_id,
        user=log.users.get(user_id),
        context=context_fields(log.test_times[user_id]),
    )


def evaluation_lists(
    log: PurchaseLog, customers: int = EVALUATION_CUSTOMERS, negatives: int = NEGATIVES, seed: int = SEED
) -> JudgedQueries:
    """The served protocol: a test customer's one first-time purchase among sampled items.

    Customers are drawn from all test customers, warm and cold, and each one's positive from all of the customer's; the
    negatives uniformly from the items that the customer bought neither before nor after the cut or, where the log tells
    impressions, from those that the customer was shown on or after the cut and never bought; then customers without any
    are left out. ``notes`` say which, and how many. Grade 3 for the
    positive, 0 for the others. The query's text is empty and candidates are listed by popularity, so that is the first
    stage's order. Query ids are "u" and the customer's id.
    """
    if not log.positives:
        raise DatasetError(
            f"no customer bought anything for the first time from {log.cut} on ({len(log.baskets)} customers before), "
            "wanted at least one to judge by; give a longer log of purchases"
        )
    draw = random.Random(seed)
    passed_over = {user_id: found for user_id in log.positives if (found := log.passed_over(user_id))}
    asked = sorted(passed_over or log.positives)
    chosen = sorted(draw.sample(asked, min(customers, len(asked))))
    judgements = {
        f"u{user_id}": _judgements(log, user_id, passed_over.get(user_id), negatives, draw) for user_id in chosen
    }
    return JudgedQueries(
        queries=dict.fromkeys(judgements, ""),
        products=log.items,
        judgements=judgements,
        requests={f"u{user_id}": request_of(log, user_id) for user_id in chosen},
        users=log.users,
        unlabeled=TrainingRequests(log),
        sampled="1 + shown" if passed_over else f"1 + {negatives} sampled",
        notes=(*log.notes, _told_of_negatives(log, judgements, len(passed_over))),
    )


def _told_of_negatives(log: PurchaseLog, judgements: Mapping[str, Mapping[str, int]], given: int) -> str:
    counts = [len(grades) - 1 for grades in judgements.values()]
    lists = f"{statistics.median(counts):g} a list at the median, {sum(counts)} in {len(counts)} lists"
    if given:
        left_out = len(log.positives) - given
        return f"negatives given, shown and not taken: {lists}; {left_out} customers without any are left out"
    reason = f" ({LABEL} is 0 for no judged customer)" if log.shown is not None else ""
    return f"negatives sampled among the items that the customer never bought{reason}: {lists}"


@dataclasses.dataclass(frozen=True)
class TrainingRequests:
    """Unlabeled requests: what customers would have asked before the cut."""

    log: PurchaseLog

    def __call__(self, count: int, seed: int) -> list[Request]:
        """As :func:`training_requests`."""
        return training_requests(self.log, count, seed)

    @functools.cached_property
    def digest(self) -> str:
        """Changes with the baskets before the cut."""
        return key_of({"baskets": self.log.baskets, "users": self.log.users})


def training_requests(log: PurchaseLog, count: int, seed: int) -> list[Request]:
    """What customers would have asked before baskets of theirs, all before the cut; drawn with a seed, at most all."""
    examples = [example for example in training_examples(log) if example.history]
    drawn = random.Random(seed).sample(examples, min(count, len(examples)))
    return [Request(history=one.history, user_id=one.user_id, user=one.user, context=one.context) for one in drawn]


def _judgements(
    log: PurchaseLog, user_id: str, given: Sequence[str] | None, negatives: int, draw: random.Random
) -> dict[str, int]:
    bought = {*log.histories.get(user_id, ()), *log.positives[user_id]}
    positive = draw.choice(log.positives[user_id])
    others = given or [item_id for item_id in log.items if item_id not in bought]
    listed = {positive, *draw.sample(others, min(negatives, len(others)))}
    return {item_id: POSITIVE_GRADE * (item_id == positive) for item_id in log.items if item_id in listed}
