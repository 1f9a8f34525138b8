"""Raw fields of items, customers and moments, computed from purchases before a cut in time.

Knows nothing of any network: :mod:`builders.data.purchase_log` parts the log, rankers declare which fields they read.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from builders.data.beir import Product

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
"""Raw user fields that are numbers of at least 0, as of a moment. See :class:`Customer`."""
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
        quantities, prices: of each item: units in all, mean unit price in pounds sterling, NaN where not known.
        first_time: of each item, whether the customer had not bought it before.
    """

    user_id: str
    time: datetime.datetime
    item_ids: tuple[str, ...]
    quantities: tuple[int, ...]
    prices: tuple[float, ...]
    first_time: tuple[bool, ...]


def context_fields(time: datetime.datetime) -> Fields:
    """:data:`CONTEXT_VALUES` of a moment; all short texts."""
    part = "morning" if time.hour < 11 else "noon" if time.hour < 14 else "afternoon"
    return {
        "weekday": WEEKDAYS[time.weekday()],
        "hour": str(time.hour),
        "month": str(time.month),
        "part_of_day": part,
    }


class Customer:
    """What is known of a customer, basket by basket: each is read once, however many there are."""

    def __init__(self, country: str) -> None:
        self._country = country
        self._first: Basket | None = None
        self._last: Basket | None = None
        self._weekdays: Counter[str] = Counter()
        self._hours: Counter[str] = Counter()
        self._baskets = self._lines = self._units = self._first_times = self._priced = 0
        self._prices = self._spend = 0.0

    @classmethod
    def of(cls, country: str, baskets: Iterable[Basket]) -> Customer:
        """After these baskets, oldest first."""
        customer = cls(country)
        for basket in baskets:
            customer.add(basket)
        return customer

    def add(self, basket: Basket) -> None:
        """The next one in time."""
        self._first = self._first or basket
        self._last = basket
        self._weekdays[WEEKDAYS[basket.time.weekday()]] += 1
        self._hours[str(basket.time.hour)] += 1
        self._baskets += 1
        self._lines += len(basket.item_ids)
        self._units += sum(basket.quantities)
        self._first_times += sum(basket.first_time)
        for units, price in zip(basket.quantities, basket.prices, strict=True):
            if not math.isnan(price):
                self._priced += 1
                self._prices += price
                self._spend += units * price

    def fields(self, moment: datetime.datetime) -> Fields:
        """:data:`USER_NUMBERS` and :data:`USER_VALUES` as of ``moment``; the country alone before the first basket.
        What needs a price is None where none is known."""
        if self._first is None or self._last is None:
            return {"country": self._country}
        recency = days(moment - self._last.time)
        mean_basket = self._lines / self._baskets
        return {
            "user_id": self._first.user_id,
            "country": self._country,
            "usual_weekday": max(self._weekdays, key=self._weekdays.__getitem__),
            "usual_hour": max(self._hours, key=self._hours.__getitem__),
            "invoices_band": _doubling_band(self._baskets),
            "recency_band": _doubling_band(recency),
            "basket_band": _doubling_band(mean_basket),
            "invoices": self._baskets,
            "distinct_items": self._first_times,
            "mean_basket": mean_basket,
            "mean_quantity": self._units / self._lines,
            "mean_price": self._prices / self._priced if self._priced else None,
            "mean_spend": self._spend / self._baskets if self._priced else None,
            "first_time_share": self._first_times / self._lines,
            "recency_days": recency,
            "tenure_days": days(moment - self._first.time),
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


def item_products(before: pd.DataFrame, after: pd.DataFrame, cut: datetime.datetime) -> dict[str, Product]:
    """The most popular first, ties by id; an item without a description is named by its id."""
    ids = [*before.item_id, *after.item_id]
    titles = {**dict(zip(ids, ids, strict=True)), **_titles(after), **_titles(before)}
    sold = {row.pop("item_id"): _with_none(row) for row in _item_statistics(before, cut).to_dict("records")}
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


def _with_none(fields: Fields) -> Fields:
    """None in the place of NaN, which is what comes of prices that are not known."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in fields.items()}


def _titles(lines: pd.DataFrame) -> dict[str, str]:
    """The commonest description of each item, ties by the alphabet."""
    counted = lines.groupby(["item_id", "title"], as_index=False).size()
    best = counted.sort_values(["size", "title"], ascending=[False, True]).drop_duplicates("item_id")
    return dict(zip(best.item_id, best.title, strict=True))


def _item_statistics(before: pd.DataFrame, cut: datetime.datetime) -> pd.DataFrame:
    """A row an item sold before the cut.

    price (median), popularity (customers, not guests), recent_popularity (customers of the last 30 days), units_sold,
    mean_quantity and mean_basket (of its lines), price_spread (highest over lowest price above 0, minus 1), bulk_share
    (of its lines with a dozen units or more), home_share (of its lines in the commonest country), repeat_share (of its
    customers who bought it on two invoices or more), days_on_sale, days_since_sale, and the values.
    """
    lines = before.assign(
        basket=before.groupby(["user_id", "invoice"], dropna=False).item_id.transform("size"),
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
    repeated = (lines.groupby(["item_id", "user_id"]).size() > 1).groupby("item_id").mean()
    table["repeat_share"] = repeated.reindex(table.index, fill_value=0.0)
    charged = lines[lines.price > 0].groupby("item_id").price
    table["price_spread"] = charged.max() / charged.min() - 1
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
    bands = (column.rank(pct=True, method="average") * BANDS).clip(upper=BANDS - 1)
    return bands.dropna().astype(int).astype(str).reindex(column.index)


def _commonest(keys: pd.Series, values: pd.Series) -> pd.Series:
    """Each key's commonest value as text, ties by order of values."""
    counted = pd.DataFrame({"key": keys, "value": values}).groupby(["key", "value"]).size().reset_index(name="count")
    best = counted.sort_values(["count", "value"], ascending=[False, True]).drop_duplicates("key")
    return best.set_index("key").value.astype(str)


def _doubling_band(number: float) -> str:
    """0 = below 1, then a band for each doubling: 1, 2 to 3, 4 to 7, ..."""
    return str(int(number).bit_length())


def days(difference: datetime.timedelta) -> float:
    return difference.total_seconds() / 86400


def _nth(words: Sequence[str], place: int) -> str | None:
    return words[place] if -len(words) <= place < len(words) else None
