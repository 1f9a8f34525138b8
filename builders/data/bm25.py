"""The order in which a search service's first stage would hand over its candidates: BM25 over product titles."""

from __future__ import annotations

import logging

import bm25s

from builders.data.beir import JudgedQueries

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG


def first_stage(judged: JudgedQueries) -> dict[str, list[str]]:
    """Query id to its judged candidates, best first: bm25s' BM25 (Lucene's form, k1 1.5, b 0.75, English stop words).

    The index holds every title of the corpus, so term weights do not depend on the subset; ties go by item id. Requests
    without a query text keep their candidates in the order in which they are judged.
    """
    if not any(judged.queries.values()):
        return {query_id: list(grades) for query_id, grades in judged.judgements.items()}
    retriever = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    titles = [product.title for product in judged.products.values()]
    retriever.index(bm25s.tokenize(titles, stopwords="en", show_progress=False), show_progress=False)
    row_of = {item_id: row for row, item_id in enumerate(judged.products)}
    return {
        query_id: _ordered(list(judged.judgements[query_id]), retriever, text, row_of)
        for query_id, text in judged.queries.items()
    }


def _ordered(candidates: list[str], retriever: bm25s.BM25, query: str, row_of: dict[str, int]) -> list[str]:
    [tokens] = bm25s.tokenize([query], stopwords="en", return_ids=False, show_progress=False)
    if not tokens:  # nothing but stop words: every score is 0, which bm25s does not say but raises IndexError
        return sorted(candidates)
    scores = retriever.get_scores(tokens)
    return sorted(candidates, key=lambda item_id: (-scores[row_of[item_id]], item_id))
