"""A small made-up catalogue with judged queries and purchases, for machines that have no real data and no network.

Grades follow from matching attributes, so a ranker's figures on it say only that the road works.
"""

from __future__ import annotations

import datetime
import random
from pathlib import Path
from typing import NamedTuple

from builders.data.beir import GENERATED_MARK, JudgedQueries, Product, write_judged
from builders.data.esci import renamed_when_whole
from builders.data.purchases import PURCHASES, purchases_schema

SEED = 20101209
QUERIES = 40
CANDIDATES = 40
PRODUCTS_PER_CATEGORY = 50
CUSTOMERS = 120
INVOICES_PER_CUSTOMER = 5

Purchase = tuple[str, str, datetime.datetime, str, str, int, float, str]
"""A row of a purchase log, in the order of :func:`builders.data.purchases.purchases_schema`."""

# category: (names of the thing, complementary category, sizes)
CATEGORIES = {
    "Running Shoes": (("running shoes", "trainers"), "Socks", ("size 7", "size 8", "size 9", "size 10")),
    "Socks": (("ankle socks", "crew socks"), "Running Shoes", ("small", "medium", "large")),
    "Coffee Makers": (("coffee maker", "drip brewer"), "Mugs", ("4 cup", "8 cup", "12 cup")),
    "Mugs": (("coffee mug", "tea cup"), "Coffee Makers", ("11 oz", "15 oz", "20 oz")),
    "Phone Cases": (("phone case", "phone cover"), "Chargers", ("5.4 inch", "6.1 inch", "6.7 inch")),
    "Chargers": (("wall charger", "power adapter"), "Phone Cases", ("20 W", "30 W", "65 W")),
    "Tents": (("camping tent", "dome tent"), "Sleeping Bags", ("2 person", "4 person", "6 person")),
    "Sleeping Bags": (("sleeping bag", "camping quilt"), "Tents", ("short", "regular", "long")),
    "Desks": (("writing desk", "computer table"), "Desk Lamps", ("40 inch", "48 inch", "55 inch")),
    "Desk Lamps": (("desk lamp", "reading light"), "Desks", ("small", "medium", "large")),
    "Curtains": (("blackout curtains", "window drapes"), "Cushions", ("63 inch", "84 inch", "96 inch")),
    "Cushions": (("throw pillow", "sofa cushion"), "Curtains", ("16 inch", "18 inch", "20 inch")),
}
COLORS = ("black", "white", "red", "blue", "green", "grey", "pink", "beige")
BRANDS = ("Alder", "Bramble", "Corvid", "Dunlin", "Elmhurst", "Fenwick", "Garnet", "Holloway")
FILLERS = ("lightweight", "durable", "premium", "everyday", "modern", "classic", "compact", "gift set")


class _Item(NamedTuple):
    product: Product
    size: str

    @property
    def category(self) -> str:
        return self.product.category[0]

    @property
    def attributes(self) -> dict[str, str]:
        return {"brand": self.product.brand, "color": self.product.color, "size": self.size}


def generated_catalogue() -> JudgedQueries:
    """600 products in 12 categories, 40 queries with 40 graded candidates each; the same on every call."""
    draw = random.Random(SEED)
    items = [_item(draw, category, number) for category in CATEGORIES for number in range(PRODUCTS_PER_CATEGORY)]
    queries, judgements = {}, {}
    for number, wanted in enumerate(draw.sample(items, QUERIES)):
        asked = draw.sample(sorted(wanted.attributes), 2)
        things, _, _ = CATEGORIES[wanted.category]
        queries[f"q{number}"] = " ".join([*(wanted.attributes[name] for name in asked), draw.choice(things)]).lower()
        judgements[f"q{number}"] = {
            item.product.item_id: _grade(wanted, item, asked) for item in _candidates(draw, wanted, items)
        }
    products = {item.product.item_id: item.product for item in items}
    return JudgedQueries(queries, products, judgements, generated=True)


def generated_purchases() -> list[Purchase]:
    """Invoices of customers who each keep to three categories; the same on every call."""
    draw = random.Random(SEED)
    products = list(generated_catalogue().products.values())
    lines = []
    for customer in range(1, CUSTOMERS + 1):
        liked = draw.sample(sorted(CATEGORIES), 3)
        shelf = [product for product in products if product.category[0] in liked]
        for number in range(INVOICES_PER_CUSTOMER):
            date = datetime.datetime(2010, 1, 1) + datetime.timedelta(days=60 * number + draw.randrange(60))
            invoice = f"{customer:04d}{number:02d}"
            lines += [_line(draw, customer, invoice, date, product) for product in draw.sample(shelf, 4)]
    return lines


def write_generated(folder: Path) -> None:
    """Writes catalogue, judgements and ``purchases.parquet`` into ``folder``, which appears whole or not at all.

    A folder that is there already is left as it is, but for the mark that says that it is generated.
    """
    import pyarrow as pa  # here and not above: only who has no data needs Parquet
    import pyarrow.parquet as pq

    if folder.is_dir():
        (folder / GENERATED_MARK).touch()  # earlier versions wrote none
        return
    columns = zip(*generated_purchases(), strict=True)
    schema = purchases_schema()
    with renamed_when_whole(folder) as beside:
        write_judged(generated_catalogue(), beside)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        pq.write_table(pa.table(arrays, schema=schema), beside / PURCHASES)
        (beside / GENERATED_MARK).touch()


def _item(draw: random.Random, category: str, number: int) -> _Item:
    things, _, sizes = CATEGORIES[category]
    brand, color, size = draw.choice(BRANDS), draw.choice(COLORS), draw.choice(sizes)
    thing, filler = draw.choice(things), draw.choice(FILLERS)
    product = Product(
        item_id=f"G{list(CATEGORIES).index(category):02d}{number:03d}",
        title=f"{brand} {filler.title()} {thing.title()}, {size}, {color.title()}",
        text=f"A {filler} {thing} by {brand}.\nColour: {color}. Size: {size}.",
        brand=brand,
        color=color,
        category=(category,),
        price=draw.randrange(500, 20000) / 100,
        rating=draw.randrange(20, 51) / 10,
        rating_count=draw.randrange(1, 5000),
    )
    return _Item(product, size)


def _candidates(draw: random.Random, wanted: _Item, items: list[_Item]) -> list[_Item]:
    """The wanted item, and as many of its category, of the complementary one and of all others as make CANDIDATES."""
    _, complement, _ = CATEGORIES[wanted.category]
    alike = [item for item in items if item.category == wanted.category and item != wanted]
    beside = [item for item in items if item.category == complement]
    others = [item for item in items if item.category not in (wanted.category, complement)]
    chosen = [wanted, *draw.sample(alike, 19), *draw.sample(beside, 10), *draw.sample(others, CANDIDATES - 30)]
    draw.shuffle(chosen)
    return chosen


def _grade(wanted: _Item, item: _Item, asked: list[str]) -> int:
    """3: the thing with all that was asked; 2: the thing; 1: what goes with it; 0: anything else."""
    _, complement, _ = CATEGORIES[wanted.category]
    if item.category == wanted.category:
        return 3 if all(item.attributes[name] == wanted.attributes[name] for name in asked) else 2
    return 1 if item.category == complement else 0


def _line(draw: random.Random, customer: int, invoice: str, date: datetime.datetime, product: Product) -> Purchase:
    quantity, price = draw.randrange(1, 5), product.price or 0.0
    return str(customer), invoice, date, product.item_id, product.title, quantity, price, "Nowhere"
