"""Unjudged queries made from products, each with candidates that are hard to tell apart: what distillation reads.

A query is a few words of a product's title, of one of its bullet points, or its category with a brand, colour or title
word. Its candidates are the product itself and what BM25 and the two-tower put near it. Judged queries are not read.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from builders.data.beir import Product
from builders.data.bm25 import TextIndex
from builders.data.unlabeled import query_text
from builders.features.text import Tokenizer, item_texts
from builders.rankers.two_tower import TwoTower

NEAREST, NEAR = 20, 200
"""Candidates are drawn from a first stage's first 20 and, fewer, from its first 200."""


@dataclasses.dataclass(frozen=True)
class PseudoQuery:
    """A made-up query, row numbers of its candidates (its own product first), and the two-tower's cosine with each."""

    text: str
    candidates: tuple[int, ...]
    cosines: tuple[float, ...]


def pseudo_queries(
    products: Sequence[Product], teacher: TwoTower, tokenizer: Tokenizer, count: int, seed: int
) -> list[PseudoQuery]:
    """At most one query a product, ``count`` in all, seeded; 5 to 8 candidates each."""
    rng = random.Random(seed)
    sources = rng.sample(range(len(products)), min(count, len(products)))
    texts = [query_text(products[source], rng) for source in sources]
    of_items = item_texts(products)
    item_vectors = teacher.encode_texts(tokenizer, of_items)
    query_vectors = teacher.encode_texts(tokenizer, texts)
    index = TextIndex(of_items)
    found = []
    for source, text, vector in zip(sources, texts, query_vectors, strict=True):
        cosines = item_vectors @ vector  # [products]
        candidates = _candidates(source, cosines, index.scores(text), rng)
        found.append(PseudoQuery(text, candidates, tuple(float(cosines[row]) for row in candidates)))
    return found


def _candidates(source: int, cosines: np.ndarray, bm25_scores: np.ndarray, rng: random.Random) -> tuple[int, ...]:
    by_cosine = np.argsort(-cosines, kind="stable")[:NEAR].tolist()
    by_bm25 = np.argsort(-bm25_scores, kind="stable")[:NEAREST].tolist()
    drawn = [
        *_sample(by_cosine[:NEAREST], 3, rng),
        *_sample(by_bm25, 2, rng),
        *_sample(by_cosine[NEAREST:], 2, rng),
    ]
    return tuple(dict.fromkeys([source, *drawn]))


def _sample(rows: list[int], count: int, rng: random.Random) -> list[int]:
    return rng.sample(rows, min(count, len(rows)))
