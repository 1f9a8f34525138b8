"""A shop's purchase log => what rankers of items for a user learn from and are judged on, parted by a cut in time.

Everything that a ranker may know, histories, popularity, prices, vocabularies, is from before the cut; it is judged on
purchases on or after it of items that the customer had not bought before ("first-time"). Whole customers are not held
out, so most are warm: they have a history. Those without one are cold.

Knows nothing of any network, nor how a metric is computed.
"""

from __future__ import annotations

import dataclasses
import datetime
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.sparse.linalg

from builders.beir import DatasetError, JudgedQueries, Product, Request
from builders.purchases import load_purchases

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

RECENT_DAYS = 30
BULK_QUANTITY = 12
"""Units on one line from which a purchase counts as bulk: the shop packs in dozens."""
BANDS = 10
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

ITEM_NUMBERS = (
    "price",
    "popularity",
    "recent_popularity",
    "units_sold",
    "mean_quantity",
    "bulk_share",
    "repeat_share",
    "home_share",
    "days_on_sale",
    "days_since_sale",
    "mean_basket",
    "price_spread",
    "title_words",
)
"""Raw item fields that are numbers of at least 0; shares are 0 to 1. See :func:`_item_statistics`."""
ITEM_VALUES = (
    "code_prefix",
    "code_family",
    "code_suffix",
    "first_word",
    "second_word",
    "third_word",
    "last_word",
    "colour_word",
    "material_word",
    "motif_word",
    "pack_word",
    "season_word",
    "price_band",
    "popularity_band",
    "quantity_band",
    "peak_month",
    "peak_weekday",
    "peak_hour",
    "first_month",
    "top_country",
)
"""Raw item fields that are short texts; None where there is none."""
USER_NUMBERS = (
    "invoices",
    "distinct_items",
    "mean_basket",
    "mean_quantity",
    "mean_price",
    "mean_spend",
    "first_time_share",
    "recency_days",
    "tenure_days",
)
"""Raw user fields that are numbers of at least 0, as of a moment. See :func:`user_fields`."""
USER_VALUES = ("user_id", "country", "usual_weekday", "usual_hour", "invoices_band", "recency_band", "basket_band")
"""Raw user fields that are short texts, as of a moment."""
CONTEXT_VALUES = ("weekday", "hour", "month", "part_of_day")
"""Raw context fields, short texts, of an invoice's time."""

Fields = dict[str, Any]

_WORDS = {
    name: frozenset(words.split())
    for name, words in {
        "colour_word": (
            "AMBER AQUA BEIGE BLACK BLUE BRONZE BROWN CLEAR COPPER CREAM CRYSTAL FUSCHIA GOLD GREEN GREY IVORY LILAC "
            "MAUVE MULTICOLOUR NATURAL OLIVE ORANGE PINK PURPLE RED SILVER TURQUOISE WHITE YELLOW"
        ),
        "material_word": (
            "BEADED CANVAS CERAMIC COTTON ENAMEL FABRIC FELT GLASS KNITTED LEATHER METAL PAPER PLASTIC PORCELAIN "
            "RUBBER SILK STONE TIN VELVET WICKER WIRE WOOD WOODEN WOOLLY ZINC"
        ),
        "motif_word": (
            "ANGEL BIRD BUTTERFLY CAKE CAT CHERRY CHICK CIRCUS DAISY DOG DOLLY FAIRY FLORAL FLOWER HEART HEARTS LOVE "
            "OWL PAISLEY POLKADOT RABBIT REGENCY RETROSPOT RETRO ROSE SPACEBOY SPOT STAR STRAWBERRY STRIPE "
            "TOADSTOOL UNION VINTAGE WOODLAND"
        ),
        "pack_word": "ASSORTED ASSTD BOX BUNDLE DOZEN PACK PAIR SET SET/3 SET/4 SET/6 SIX TWO",
        "season_word": (
            "ADVENT BIRTHDAY CHRISTMAS EASTER GARDEN HALLOWEEN PARTY SANTA SNOWFLAKE SPRING SUMMER VALENTINE WEDDING "
            "XMAS"
        ),
    }.items()
}


@dataclasses.dataclass(frozen=True)
class Basket:
    """One invoice before the cut.

    Attributes:
        item_ids: distinct, in the order of its lines.
        quantities, prices: of each item: units in all, mean unit price in pounds sterling.
        first_time: of each item, whether the customer had not bought it before.
    """

    user_id: str
    time: datetime.datetime
    item_ids: tuple[str, ...]
    quantities: tuple[int, ...]
    prices: tuple[float, ...]
    first_time: tuple[bool, ...]


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
        note: a line for a reader if the cut is not the one that was asked for, else empty.
    """

    cut: datetime.datetime
    items: dict[str, Product]
    users: dict[str, Fields]
    baskets: dict[str, tuple[Basket, ...]]
    histories: dict[str, tuple[str, ...]]
    positives: dict[str, tuple[str, ...]]
    test_times: dict[str, datetime.datetime]
    note: str = ""

    @property
    def known_items(self) -> tuple[str, ...]:
        """Ids of the items sold before the cut, the most popular first: the vocabulary of a ranker."""
        return tuple(item_id for item_id, product in self.items.items() if product.fields["popularity"])

    def is_warm(self, user_id: str) -> bool:
        """Whether the customer bought something before the cut."""
        return user_id in self.histories


@dataclasses.dataclass(frozen=True)
class Example:
    """A basket to predict from what was known just before it.

    Attributes:
        history: as in :attr:`PurchaseLog.histories`, but as of just before the basket, latest :data:`HISTORY_LIMIT`.
        positives: items bought for the first time in the basket, at least one.
        quantities: units of each of them.
        context, user: raw fields of the invoice's time, and of the customer just before it.
        age_days: from the basket to the cut.
    """

    user_id: str
    history: tuple[str, ...]
    positives: tuple[str, ...]
    quantities: tuple[int, ...]
    context: Fields
    user: Fields
    age_days: float


# ---------------------------------------------------------------- the log
def purchase_log(folder: Path, cut: datetime.datetime = CUT, until: datetime.datetime | None = None) -> PurchaseLog:
    """Read the purchases below ``folder`` and part them.

    Args:
        folder: as :func:`builders.purchases.load_purchases` takes it.
        cut: where the log does not reach over it (made-up data does not), the time before which nine invoices of ten
            lie takes its place, and ``note`` says so.
        until: leave out all purchases on or after it.

    Raises:
        DatasetError: no purchases, or none on one side of any cut.
    """
    lines = _lines(folder, until)
    moment, note = _cut_within(lines, cut, folder)
    before, after = lines[lines.time < moment], lines[lines.time >= moment]
    baskets = _baskets(before)
    histories = {user_id: tuple(_history(of_user)) for user_id, of_user in baskets.items()}
    positives, test_times = _first_time_purchases(after, histories)
    countries = before.groupby("user_id").country.first().to_dict()
    return PurchaseLog(
        cut=moment,
        items=_products(before, after, moment),
        users={user_id: user_fields(countries[user_id], of_user, moment) for user_id, of_user in baskets.items()},
        baskets=baskets,
        histories=histories,
        positives=positives,
        test_times=test_times,
        note=note,
    )


def validation_log(folder: Path) -> PurchaseLog:
    """The training part alone, parted at :data:`VALIDATION_CUT`: nothing in it is from after the test cut."""
    return purchase_log(folder, VALIDATION_CUT, until=purchase_log(folder).cut)


def _lines(folder: Path, until: datetime.datetime | None) -> pd.DataFrame:
    """A row an invoice and item: user_id, invoice, time, item_id, quantity, price, title, country; in time's order."""
    lines = load_purchases(folder).to_pandas()
    lines = lines.rename(columns={"invoice_date": "time", "stock_code": "item_id", "description": "title"})
    lines["user_id"] = lines.customer_id.astype(str)
    if until is not None:
        lines = lines[lines.time < until]
    lines["time"] = lines.groupby(["user_id", "invoice"]).time.transform("min")
    merged = lines.groupby(["user_id", "invoice", "item_id"], sort=False, as_index=False).agg(
        time=("time", "first"),
        quantity=("quantity", "sum"),
        price=("price", "mean"),
        title=("title", "first"),
        country=("country", "first"),
    )
    return merged.sort_values("time", kind="stable", ignore_index=True)


def _cut_within(lines: pd.DataFrame, cut: datetime.datetime, folder: Path) -> tuple[datetime.datetime, str]:
    times = lines.groupby(["user_id", "invoice"]).time.first()
    if times.min() < cut <= times.max():
        return cut, ""
    moved = times.quantile(TRAINING_SHARE, interpolation="higher").to_pydatetime()
    if not times.min() < moved:
        raise DatasetError(f"{folder}: all {len(times)} invoices are of {moved}, wanted some before and some after")
    return moved, (
        f"the purchases are of {times.min():%Y-%m-%d} to {times.max():%Y-%m-%d} and do not reach over {cut:%Y-%m-%d}: "
        f"cut at {moved:%Y-%m-%d %H:%M}, before which {TRAINING_SHARE:.0%} of the invoices lie"
    )


def _baskets(before: pd.DataFrame) -> dict[str, tuple[Basket, ...]]:
    of_user: dict[str, list[Basket]] = {}
    seen: dict[str, set[str]] = {}
    for rows in _invoices(before):
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


def _invoices(lines: pd.DataFrame) -> Iterable[list[_Line]]:
    """Rows of each invoice, in time's order; two invoices of one minute are kept apart."""
    rows: dict[tuple[str, str], list[_Line]] = {}
    for row in _rows(lines):
        rows.setdefault((row.user_id, row.invoice), []).append(row)
    return rows.values()


def _history(baskets: Iterable[Basket]) -> list[str]:
    """Distinct items in the order of their latest purchase."""
    latest: dict[str, None] = {}
    for basket in baskets:
        _buy(latest, basket)
    return list(latest)


def _buy(latest: dict[str, None], basket: Basket) -> None:
    for item_id in basket.item_ids:
        latest.pop(item_id, None)
        latest[item_id] = None


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


# ---------------------------------------------------------------- raw fields
def context_fields(time: datetime.datetime) -> Fields:
    """:data:`CONTEXT_VALUES` of a moment; all short texts."""
    part = "morning" if time.hour < 11 else "noon" if time.hour < 14 else "afternoon"
    return {
        "weekday": WEEKDAYS[time.weekday()],
        "hour": str(time.hour),
        "month": str(time.month),
        "part_of_day": part,
    }


def user_fields(country: str, baskets: Sequence[Basket], moment: datetime.datetime) -> Fields:
    """:data:`USER_NUMBERS` and :data:`USER_VALUES` as of ``moment``, from the customer's baskets before it."""
    if not baskets:
        return {"country": country}
    units = [quantity for basket in baskets for quantity in basket.quantities]
    prices = [price for basket in baskets for price in basket.prices]
    first_time = [new for basket in baskets for new in basket.first_time]
    recency = _days(moment - baskets[-1].time)
    mean_basket = len(units) / len(baskets)
    return {
        "user_id": baskets[0].user_id,
        "country": country,
        "usual_weekday": statistics.mode(WEEKDAYS[basket.time.weekday()] for basket in baskets),
        "usual_hour": statistics.mode(str(basket.time.hour) for basket in baskets),
        "invoices_band": _doubling_band(len(baskets)),
        "recency_band": _doubling_band(recency),
        "basket_band": _doubling_band(mean_basket),
        "invoices": len(baskets),
        "distinct_items": sum(first_time),
        "mean_basket": mean_basket,
        "mean_quantity": sum(units) / len(units),
        "mean_price": sum(prices) / len(prices),
        "mean_spend": sum(unit * price for unit, price in zip(units, prices, strict=True)) / len(baskets),
        "first_time_share": sum(first_time) / len(first_time),
        "recency_days": recency,
        "tenure_days": _days(moment - baskets[0].time),
    }


def title_fields(item_id: str, title: str) -> Fields:
    """What follows from an item's id and title alone, so that an item never sold before has it too."""
    digits = item_id.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
    words = title.upper().replace(",", " ").split()
    found = {name: next((word for word in words if word in known), None) for name, known in _WORDS.items()}
    return {
        "code_prefix": digits[:2] or None,
        "code_family": digits[:3] or None,
        "code_suffix": item_id[len(digits) :].upper() or None,
        "first_word": _nth(words, 0),
        "second_word": _nth(words, 1),
        "third_word": _nth(words, 2),
        "last_word": _nth(words, -1),
        "title_words": len(words),
        "words": words,
        **found,
    }


def _products(before: pd.DataFrame, after: pd.DataFrame, cut: datetime.datetime) -> dict[str, Product]:
    """The most popular first, ties by id."""
    titles = {**_titles(after), **_titles(before)}
    sold = {row.pop("item_id"): row for row in _item_statistics(before, cut).to_dict("records")}
    unsold: Fields = {"popularity": 0, "recent_popularity": 0, "units_sold": 0}
    products = [
        Product(
            item_id=item_id,
            title=title,
            price=sold.get(item_id, {}).get("price"),
            fields={**title_fields(item_id, title), **_without_price(sold.get(item_id, unsold))},
        )
        for item_id, title in titles.items()
    ]
    products.sort(key=lambda product: (-product.fields["popularity"], product.item_id))
    return {product.item_id: product for product in products}


def _without_price(fields: Mapping[str, Any]) -> Fields:
    return {name: value for name, value in fields.items() if name != "price"}


def _titles(lines: pd.DataFrame) -> dict[str, str]:
    """The commonest description of each item, ties by the alphabet."""
    counted = lines.groupby(["item_id", "title"], as_index=False).size()
    best = counted.sort_values(["size", "title"], ascending=[False, True]).drop_duplicates("item_id")
    return dict(zip(best.item_id, best.title, strict=True))


def _item_statistics(before: pd.DataFrame, cut: datetime.datetime) -> pd.DataFrame:
    """A row an item sold before the cut.

    price (median), popularity (customers), recent_popularity (customers of the last 30 days), units_sold,
    mean_quantity and mean_basket (of its lines), price_spread (highest over lowest price, minus 1), bulk_share (of its
    lines with a dozen units or more), home_share (of its lines in the commonest country), repeat_share (of its
    customers who bought it on two invoices or more), days_on_sale, days_since_sale, and the values.
    """
    lines = before.assign(
        basket=before.groupby(["user_id", "invoice"]).item_id.transform("size"),
        bulk=before.quantity >= BULK_QUANTITY,
        home=before.country == before.country.mode()[0],
    )
    recent = lines[lines.time >= cut - datetime.timedelta(days=RECENT_DAYS)]
    of_item = lines.groupby("item_id")
    table = of_item.agg(
        price=("price", "median"),
        popularity=("user_id", "nunique"),
        units_sold=("quantity", "sum"),
        mean_quantity=("quantity", "mean"),
        mean_basket=("basket", "mean"),
        bulk_share=("bulk", "mean"),
        home_share=("home", "mean"),
    )
    table["recent_popularity"] = recent.groupby("item_id").user_id.nunique().reindex(table.index, fill_value=0)
    table["repeat_share"] = (lines.groupby(["item_id", "user_id"]).size() > 1).groupby("item_id").mean()
    table["price_spread"] = of_item.price.max() / of_item.price.min() - 1
    table["days_on_sale"] = (cut - of_item.time.min()).dt.total_seconds() / 86400
    table["days_since_sale"] = (cut - of_item.time.max()).dt.total_seconds() / 86400
    return table.join(_item_values(lines, table)).reset_index()


def _item_values(lines: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The short texts that come from sales: bands by decile, months, weekdays and hours of most lines."""
    abroad = lines[~lines.home]
    values = pd.DataFrame(index=table.index)
    values["price_band"] = _decile(table.price)
    values["popularity_band"] = _decile(table.popularity)
    values["quantity_band"] = _decile(table.mean_quantity)
    values["peak_month"] = _commonest(lines.item_id, lines.time.dt.month)
    values["peak_weekday"] = _commonest(lines.item_id, lines.time.dt.day_of_week.map(dict(enumerate(WEEKDAYS))))
    values["peak_hour"] = _commonest(lines.item_id, lines.time.dt.hour)
    values["first_month"] = lines.groupby("item_id").time.min().dt.to_period("M").astype(str)
    values["top_country"] = _commonest(abroad.item_id, abroad.country)
    return values.astype(object).where(values.notna(), None)


def _decile(column: pd.Series) -> pd.Series:
    return (column.rank(pct=True, method="average") * BANDS).clip(upper=BANDS - 1).astype(int).astype(str)


def _commonest(keys: pd.Series, values: pd.Series) -> pd.Series:
    """Each key's commonest value as text, ties by order of values."""
    counted = pd.DataFrame({"key": keys, "value": values}).groupby(["key", "value"]).size().reset_index(name="count")
    best = counted.sort_values(["count", "value"], ascending=[False, True]).drop_duplicates("key")
    return best.set_index("key").value.astype(str)


def _doubling_band(number: float) -> str:
    """0 = below 1, then a band for each doubling: 1, 2 to 3, 4 to 7, ..."""
    return str(int(number).bit_length())


def _days(difference: datetime.timedelta) -> float:
    return difference.total_seconds() / 86400


def _nth(words: Sequence[str], place: int) -> str | None:
    return words[place] if -len(words) <= place < len(words) else None


# ---------------------------------------------------------------- what rankers learn from
def training_examples(log: PurchaseLog, *, with_empty_history: bool = False) -> list[Example]:
    """One for each basket before the cut with something bought for the first time, by customer, oldest first.

    Args:
        with_empty_history: also each customer's first basket.
    """
    return [
        example
        for user_id in log.baskets
        for example in _examples_of(log, user_id)
        if example.history or with_empty_history
    ]


def _examples_of(log: PurchaseLog, user_id: str) -> Iterator[Example]:
    baskets, country = log.baskets[user_id], log.users[user_id]["country"]
    latest: dict[str, None] = {}
    for place, basket in enumerate(baskets):
        new = [column for column, first_time in enumerate(basket.first_time) if first_time]
        if new:
            yield Example(
                user_id=user_id,
                history=tuple(latest)[-HISTORY_LIMIT:],
                positives=tuple(basket.item_ids[column] for column in new),
                quantities=tuple(basket.quantities[column] for column in new),
                context=context_fields(basket.time),
                user=user_fields(country, baskets[:place], basket.time),
                age_days=_days(log.cut - basket.time),
            )
        _buy(latest, basket)


# ---------------------------------------------------------------- what they are judged on
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
    negatives uniformly from the items that the customer bought neither before nor after the cut. Grade 3 for the
    positive, 0 for the others. The query's text is empty and candidates are listed by popularity, so that is the first
    stage's order. Query ids are "u" and the customer's id.
    """
    draw = random.Random(seed)
    chosen = sorted(draw.sample(sorted(log.positives), min(customers, len(log.positives))))
    judgements = {f"u{user_id}": _judgements(log, user_id, negatives, draw) for user_id in chosen}
    return JudgedQueries(
        queries=dict.fromkeys(judgements, ""),
        products=log.items,
        judgements=judgements,
        requests={f"u{user_id}": request_of(log, user_id) for user_id in chosen},
        users=log.users,
        unlabelled=lambda count, seed: training_requests(log, count, seed),
    )


def training_requests(log: PurchaseLog, count: int, seed: int) -> list[Request]:
    """What customers would have asked before baskets of theirs, all before the cut; drawn with a seed, at most all."""
    examples = [example for example in training_examples(log) if example.history]
    drawn = random.Random(seed).sample(examples, min(count, len(examples)))
    return [Request(history=one.history, user_id=one.user_id, user=one.user, context=one.context) for one in drawn]


def _judgements(log: PurchaseLog, user_id: str, negatives: int, draw: random.Random) -> dict[str, int]:
    bought = {*log.histories.get(user_id, ()), *log.positives[user_id]}
    positive = draw.choice(log.positives[user_id])
    others = [item_id for item_id in log.items if item_id not in bought]
    listed = {positive, *draw.sample(others, min(negatives, len(others)))}
    return {item_id: POSITIVE_GRADE * (item_id == positive) for item_id in log.items if item_id in listed}


# ---------------------------------------------------------------- declaring features over a log
def vocabulary(values: Iterable[Any], at_least: int = 1) -> tuple[str, ...]:
    """The distinct texts among ``values`` that occur at least so often, the commonest first, ties by the alphabet."""
    counted = pd.Series([value for value in values if value], dtype=object).value_counts()
    kept = counted[counted >= at_least]
    return tuple(sorted(kept.index, key=lambda value: (-kept[value], value)))


def item_vocabularies(log: PurchaseLog, fields: Sequence[str], at_least: int = 2) -> tuple[tuple[str, ...], ...]:
    """One vocabulary a field, from the items sold before the cut."""
    products = [log.items[item_id].raw_fields for item_id in log.known_items]
    return tuple(vocabulary((product.get(field) for product in products), at_least) for field in fields)


def user_vocabularies(log: PurchaseLog, fields: Sequence[str], at_least: int = 2) -> tuple[tuple[str, ...], ...]:
    """One vocabulary a field, from the customers as of the cut."""
    return tuple(vocabulary((user.get(field) for user in log.users.values()), at_least) for field in fields)


def context_vocabularies(log: PurchaseLog, fields: Sequence[str] = CONTEXT_VALUES) -> tuple[tuple[str, ...], ...]:
    """One vocabulary a field, from the invoices before the cut."""
    contexts = [context_fields(basket.time) for baskets in log.baskets.values() for basket in baskets]
    return tuple(vocabulary(context[field] for context in contexts) for field in fields)


def normalisation(
    rows: Iterable[Mapping[str, Any]], fields: Sequence[str], *, log1p: bool = False
) -> dict[str, tuple[float, ...] | bool]:
    """``mean``, ``std`` and ``log1p`` of a dense feature; a field that is everywhere alike gets the deviation 1."""
    table = np.array([[np.nan if row.get(field) is None else row[field] for field in fields] for row in rows], float)
    table = np.log1p(table) if log1p else table
    deviations = np.nan_to_num(np.nanstd(table, axis=0))
    return {
        "mean": tuple(float(mean) for mean in np.nanmean(table, axis=0)),
        "std": tuple(float(deviation) if deviation > 1e-6 else 1.0 for deviation in deviations),
        "log1p": log1p,
    }


def item_normalisation(log: PurchaseLog, fields: Sequence[str] = ITEM_NUMBERS, *, log1p: bool = True) -> dict[str, Any]:
    """:func:`normalisation` over the items sold before the cut."""
    return normalisation((log.items[item_id].raw_fields for item_id in log.known_items), fields, log1p=log1p)


def user_normalisation(log: PurchaseLog, fields: Sequence[str] = USER_NUMBERS, *, log1p: bool = True) -> dict[str, Any]:
    """:func:`normalisation` over the customers as of the cut."""
    return normalisation(log.users.values(), fields, log1p=log1p)


def purchase_vectors(log: PurchaseLog, width: int) -> np.ndarray:
    """float32 [known items, width]: a start for an embedding of items, whose root mean square is 1.

    The right singular vectors of the customers' purchases before the cut, 0 or 1 (PureSVD: Cremonesi, Koren and
    Turrin, RecSys 2010): items that the same customers buy get like vectors.
    """
    row_of = {item_id: row for row, item_id in enumerate(log.known_items)}
    bought = [(user, row_of[item_id]) for user, items in enumerate(log.histories.values()) for item_id in items]
    users, items = np.array(bought).T
    ones = np.ones(len(bought), np.float32)
    matrix = scipy.sparse.csr_matrix((ones, (users, items)), shape=(len(log.histories), len(row_of)))
    vectors = np.zeros((len(row_of), width), np.float32)
    rank = min(width, min(matrix.shape) - 1)
    if rank:
        _, _, right = scipy.sparse.linalg.svds(matrix, k=rank, rng=SEED)
        vectors[:, :rank] = right.T * np.sqrt(len(row_of))
    return vectors


def recent_log_popularity(log: PurchaseLog) -> np.ndarray:
    """float32 [known items]: ln(1 + customers in the last days before the cut), mean 0: a start for an item's bias."""
    recent = np.log1p([log.items[item_id].fields["recent_popularity"] for item_id in log.known_items])
    return (recent - recent.mean()).astype(np.float32)
