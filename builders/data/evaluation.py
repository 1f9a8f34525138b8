"""What a recipe's variants are judged on: requests with judged candidates, from the data that it names.

judged      search queries with graded products (ESCI): :mod:`builders.data.beir`
purchases   a shop's customers, one item that they bought next among sampled ones: :mod:`builders.data.purchase_log`
categories  search queries with their category: :mod:`builders.data.categories`
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from builders.core.recipe import Recipe
from builders.data.beir import GAINS, DatasetError, JudgedQueries, load_judged


@functools.lru_cache(maxsize=8)
def evaluation_data(kind: str, folder: Path) -> JudgedQueries:
    """Requests, candidates with grades, items and users.

    Args:
        kind: a recipe's ``data``.
        folder: as :func:`builders.data.find.find_data` found it.

    Raises:
        DatasetError: the folder does not hold that data, or a file of it is broken.
    """
    if kind == "purchases":
        from builders.data.purchase_log import evaluation_lists, purchase_log

        return evaluation_lists(purchase_log(folder))
    if kind == "categories":
        from builders.data.categories import category_lists

        return category_lists(load_judged(folder))
    return load_judged(folder)


def judging_queries(recipe: Recipe, data: JudgedQueries) -> JudgedQueries:
    """Those that may judge the recipe's ranker: the test queries where it was trained on judgements.

    Raises:
        DatasetError: there is none, or none of them has a relevant candidate.
    """
    judging = data.subset("test" if recipe.trained_on_judgements else "all")
    if not any(_is_answerable(grades) for grades in judging.judgements.values()):
        wanted = "test queries" if recipe.trained_on_judgements else "queries"
        raise DatasetError(
            f"{recipe.ranker}: nothing to judge it by, the data has {told_counts(data)}; wanted {wanted} with a judged "
            "candidate of grade 1 or more. A query without its own split is a test query by the SHA-1 of its text, "
            "about one of three: add judged queries, or name other data with --data"
        )
    return judging


def told_counts(data: JudgedQueries) -> str:
    """Queries by split, judged pairs, and in how many queries a candidate is relevant."""
    parts = []
    for split in ("train", "test"):
        part = data.subset(split)
        pairs = sum(map(len, part.judgements.values()))
        answerable = sum(map(_is_answerable, part.judgements.values()))
        parts.append(f"{len(part.queries)} {split} queries ({pairs} judged pairs, {answerable} with a relevant one)")
    return " and ".join(parts)


def told_unanswerable(judging: JudgedQueries) -> str:
    """One line: how many queries no order can serve well; "" for none."""
    without = sum(not _is_answerable(grades) for grades in judging.judgements.values())
    if not without:
        return ""
    return f"{without} of {len(judging.queries)} judged queries have no relevant candidate: they count as NDCG 0"


def _is_answerable(grades: Mapping[str, int]) -> bool:
    return any(GAINS[grade] > 0 for grade in grades.values())
