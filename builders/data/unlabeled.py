"""Lists that nobody judged: requests and hard candidates, made of the data, for fidelity, distillation and calibration.

Search queries are a few words of a product's title, of one of its bullet points, or its category with a brand, colour
or title word; candidates are the product itself and what BM25 puts near it. A shop's requests are moments before real
baskets; candidates are drawn from its items. Judgements are not read.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence

import numpy as np

from builders.data.beir import JudgedQueries, Product, Request
from builders.data.bm25 import TextIndex

_WORD = re.compile(r"[\w'./%\"-]+")
_CLAUSE = re.compile(r"[\n.:;,!]")
_STOP_WORDS = {"for", "and", "with", "the", "of", "in", "to", "a", "&", "-", "by", "on", "or"}
TITLE_HEAD = 14
"""Words of a title that say what the item is; later ones are mostly attributes for search engines."""
NEAR = 200
"""Candidates of a search query are drawn from the first so many by BM25."""


@dataclasses.dataclass(frozen=True)
class UnlabeledList:
    """A request and its candidates, in no order that means anything."""

    request: Request
    products: tuple[Product, ...]


def unlabeled_lists(data: JudgedQueries, count: int, candidates: int, seed: int) -> list[UnlabeledList]:
    """Make lists, seeded: other seeds give other lists.

    Args:
        data: whose corpus (and customers) the lists are made of.
        count: of lists; fewer where the data has fewer products or baskets.
        candidates: of each list; all items where there are no more.
    """
    products = list(data.products.values())
    if data.unlabeled is not None:
        rng = random.Random(seed)
        size = min(candidates, len(products))
        requests = data.unlabeled(count, seed)
        return [UnlabeledList(request, tuple(rng.sample(products, size))) for request in requests]
    return _search_lists(products, count, candidates, random.Random(seed))


def made_queries(products: Sequence[Product], count: int, seed: int) -> list[Request]:
    """At most one query a product."""
    rng = random.Random(seed)
    return [Request(query_text(product, rng)) for product in rng.sample(list(products), min(count, len(products)))]


def _search_lists(products: Sequence[Product], count: int, candidates: int, rng: random.Random) -> list[UnlabeledList]:
    index = TextIndex([product.title for product in products])
    lists = []
    for source in rng.sample(range(len(products)), min(count, len(products))):
        text = query_text(products[source], rng)
        rows = _near(index.scores(text), source, candidates, rng)
        lists.append(UnlabeledList(Request(text), tuple(products[row] for row in rows)))
    return lists


def _near(scores: np.ndarray, source: int, candidates: int, rng: random.Random) -> list[int]:
    """The product itself, half of the rest from the best by BM25, half from further down; shuffled."""
    ranked = [row for row in np.argsort(-scores, kind="stable")[:NEAR].tolist() if row != source]
    best = ranked[: (candidates - 1) // 2]
    further = ranked[len(best) :]
    rows = [source, *best, *rng.sample(further, min(candidates - 1 - len(best), len(further)))]
    rng.shuffle(rows)
    return rows


def query_text(product: Product, rng: random.Random) -> str:
    """A few words of its title, of one of its bullet points, or its category with a brand, colour or title word."""
    kind = rng.choice(["category", "title", "title", "text"])
    if kind == "category" and product.category:
        return _category_query(product, rng)
    if kind == "text" and product.text:
        clauses = [clause for clause in _CLAUSE.split(product.text) if _WORD.search(clause)]
        return _span(_WORD.findall(rng.choice(clauses or [product.title])), rng)
    return _span(_title_words(product, rng), rng)


def _category_query(product: Product, rng: random.Random) -> str:
    """Such as "makita power table saws"."""
    words = [word for word in _WORD.findall(product.title)[:TITLE_HEAD] if word.lower() not in _STOP_WORDS]
    narrow = product.category[-2:] if len(product.category) > 2 else product.category[-1:]
    parts = [product.brand] if rng.random() < 0.35 else []
    parts += [product.color] if rng.random() < 0.35 and len(product.color.split()) < 3 else []
    parts += [rng.choice(words)] if words and rng.random() < 0.5 else []
    return " ".join([*filter(None, parts), rng.choice(narrow)]).lower()


def _title_words(product: Product, rng: random.Random) -> list[str]:
    """The title's head, more often than not without the brand it opens with."""
    words = _WORD.findall(product.title)[:TITLE_HEAD]
    brand = [word.lower() for word in _WORD.findall(product.brand)]
    opens_with_brand = [word.lower() for word in words[: len(brand)]] == brand
    return words[len(brand) :] if opens_with_brand and rng.random() < 0.6 else words


def _span(words: list[str], rng: random.Random) -> str:
    length = rng.choice([2, 3, 3, 4, 5])
    start = rng.randrange(max(1, len(words) - length + 1))
    return " ".join(words[start : start + length]).lower() or "product"
