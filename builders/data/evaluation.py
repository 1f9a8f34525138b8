"""What a recipe's variants are judged on: requests with judged candidates, from the data that it names.

judged      search queries with graded products (ESCI): :mod:`builders.data.beir`
purchases   a shop's customers, one item that they bought next among sampled ones: :mod:`builders.data.purchase_log`
categories  search queries with their category: :mod:`builders.data.categories`
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from builders.core.recipe import Recipe
from builders.data.beir import CORPUS, QRELS, QUERIES, JudgedQueries, is_generated, judged_folder, load_judged
from builders.data.purchase_columns import COLUMNS_FILE
from builders.data.purchases import purchases_path

State = tuple[tuple[str, int, int], ...]
"""Name, size and time of change of each file."""


def evaluation_data(kind: str, folder: Path) -> JudgedQueries:
    """Requests, candidates with grades, items and users.

    Args:
        kind: a recipe's ``data``.
        folder: as :func:`builders.data.find.find_data` found it.

    Raises:
        DatasetError: the folder does not hold that data, or a file of it is broken.
    """
    return _evaluation_data(kind, folder, _state(folder))


@functools.lru_cache(maxsize=8)
def _evaluation_data(kind: str, folder: Path, state: State) -> JudgedQueries:
    """Read once, as long as no file changes."""
    return dataclasses.replace(_read(kind, folder), generated=is_generated(folder))


def _state(folder: Path) -> State:
    judged, purchases = judged_folder(folder), purchases_path(folder)
    files = [judged / name for name in (CORPUS, QUERIES, QRELS)] if judged else []
    files += [purchases, purchases.with_name(COLUMNS_FILE)] if purchases else []
    states = [(str(path), path.stat()) for path in files if path.is_file()]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def _read(kind: str, folder: Path) -> JudgedQueries:
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
