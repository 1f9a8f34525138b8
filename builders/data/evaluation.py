"""What a recipe's variants are judged on: requests with judged candidates, from the data that it names.

judged      search queries with graded products (ESCI): :mod:`builders.data.beir`
purchases   a shop's customers, one item that they bought next among sampled ones: :mod:`builders.data.purchase_log`
categories  search queries with their category: :mod:`builders.data.categories`
"""

from __future__ import annotations

import functools
from pathlib import Path

from builders.core.recipe import Recipe
from builders.data.beir import JudgedQueries, load_judged


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
    """Those that may judge the recipe's ranker: the test queries where it was trained on judgements."""
    return data.subset("test" if recipe.trained_on_judgements else "all")
