"""The order in which a search service's first stage would hand over its candidates: BM25 over product titles.

A word is two letters or digits and more, and none of the English stop words. A query or a title without one (emoji, an
empty title, "the") scores 0 everywhere: its candidates then stand in the order of their ids.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import bm25s
import numpy as np

from builders.data.beir import JudgedQueries

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG


class TextIndex:
    """bm25s' BM25 (Lucene's form, k1 1.5, b 0.75, English stop words) over texts; it never raises for lack of words."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._size = len(texts)
        tokens = bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
        self.without_word = sum(not words for words in tokens.ids)
        """How many texts can be found by no query."""
        self._retriever: bm25s.BM25 | None = None
        if self.without_word < self._size:  # bm25s makes no index of nothing
            self._retriever = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
            self._retriever.index(tokens, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """float32 [texts]; zeros where the query, or every text, is without a word."""
        words = _words(query)
        if not words or self._retriever is None:
            return np.zeros(self._size, dtype=np.float32)
        scores: np.ndarray = self._retriever.get_scores(words)
        return scores


def first_stage(judged: JudgedQueries) -> dict[str, list[str]]:
    """Query id to its judged candidates, best first by :class:`TextIndex`.

    The index holds every title of the corpus, so term weights do not depend on the subset; ties go by item id. Requests
    without a query text keep their candidates in the order in which they are judged.
    """
    if not any(judged.queries.values()):
        return {query_id: list(grades) for query_id, grades in judged.judgements.items()}
    index = TextIndex([product.title for product in judged.products.values()])
    row_of = {item_id: row for row, item_id in enumerate(judged.products)}
    return {
        query_id: _ordered(list(judged.judgements[query_id]), index.scores(text), row_of)
        for query_id, text in judged.queries.items()
    }


def told_without_word(judged: JudgedQueries) -> str:
    """One line: how many queries and titles have no word to search by; "" where all have, or no query has a text."""
    if not any(judged.queries.values()):
        return ""
    queries = sum(not _words(text) for text in judged.queries.values())
    titles = TextIndex([product.title for product in judged.products.values()]).without_word
    if not queries and not titles:
        return ""
    return (
        f"{queries} of {len(judged.queries)} queries and {titles} of {len(judged.products)} titles have no word that "
        "BM25 can search by: the first stage orders such candidates by id"
    )


def _words(text: str) -> list[str]:
    [words] = bm25s.tokenize([text], stopwords="en", return_ids=False, show_progress=False)
    return list(words)


def _ordered(candidates: list[str], scores: np.ndarray, row_of: dict[str, int]) -> list[str]:
    return sorted(candidates, key=lambda item_id: (-scores[row_of[item_id]], item_id))
