"""Judged queries => queries labelled with a top-level category, in the same form: the categories are the items.

So an intent classifier is a ranker like any other: its candidates are the categories, the right one has grade 3, and
top-1 accuracy is the share of queries whose best-ranked item has it. Knows nothing of any classifier.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping

from builders.core.keys import key_of
from builders.data.beir import DatasetError, JudgedQueries, Product, Request
from builders.data.unlabeled import made_queries

RIGHT, WRONG = 3, 0
"""Grades of a query's label and of every other category."""
EXACT = 3


def category_lists(judged: JudgedQueries) -> JudgedQueries:
    """Each query with all top-level categories as candidates, its label judged 3, the others 0.

    The label is the commonest top-level category among the query's Exact products; of equally common ones the one that
    has more products in the whole corpus, then the first by name. A query without an Exact product that has a category
    is left out. Query ids and texts stay, so a query's split is the one that it has elsewhere. Items are named by their
    category, most products first, then by name.

    Raises:
        DatasetError: no product has a category, or no query gets a label.
    """
    sizes = Counter(top for product in judged.products.values() if (top := top_category(product)))
    categories = sorted(sizes, key=lambda name: (-sizes[name], name))
    found = {query_id: _label(judged, grades, categories) for query_id, grades in judged.judgements.items()}
    labels = {query_id: label for query_id, label in found.items() if label}
    if not labels:
        raise DatasetError(
            f"{len(sizes)} top-level categories and {len(found)} queries give no label; wanted queries with an Exact "
            "product that has a 'category' in its metadata; name other data with --data"
        )
    return JudgedQueries(
        queries={query_id: judged.queries[query_id] for query_id in labels},
        products={name: Product(name, title=name, category=(name,)) for name in categories},
        judgements={
            query_id: {name: RIGHT if name == label else WRONG for name in categories}
            for query_id, label in labels.items()
        },
        requests={query_id: request for query_id, request in judged.requests.items() if query_id in labels},
        users=judged.users,
        splits={query_id: split for query_id, split in judged.splits.items() if query_id in labels},
        unlabeled=MadeQueries(tuple(judged.products.values())),
    )


@dataclasses.dataclass(frozen=True)
class MadeQueries:
    """Unlabeled queries made of products, which are not the candidates here."""

    products: tuple[Product, ...]

    def __call__(self, count: int, seed: int) -> list[Request]:
        """As :func:`builders.data.unlabeled.made_queries`."""
        return made_queries(self.products, count, seed)

    @functools.cached_property
    def digest(self) -> str:
        """Changes with the products."""
        return key_of({"products": self.products})


def top_category(product: Product) -> str:
    """The widest category of a product; "" for one without."""
    return product.category[0] if product.category else ""


def labels_of(lists: JudgedQueries) -> dict[str, str]:
    """Query id => the category with the highest grade, of what :func:`category_lists` made."""
    return {query_id: max(grades, key=lambda name: grades[name]) for query_id, grades in lists.judgements.items()}


def titled_categories(judged: JudgedQueries) -> list[tuple[str, str]]:
    """(title, top-level category) of every product that has both, in the corpus' order."""
    pairs = ((product.title, top_category(product)) for product in judged.products.values())
    return [(title, category) for title, category in pairs if title and category]


def _label(judged: JudgedQueries, grades: Mapping[str, int], categories: list[str]) -> str:
    exact = Counter(top_category(judged.products[item_id]) for item_id, grade in grades.items() if grade == EXACT)
    return max((name for name in categories if exact[name]), key=lambda name: exact[name], default="")
