"""What a recipe's variants are judged on: requests with judged candidates, from the data that it names.

judged      search queries with graded products (ESCI): :mod:`builders.data.beir`
purchases   a shop's customers, one item that they bought next among sampled ones: :mod:`builders.data.purchase_log`
categories  search queries with their category: :mod:`builders.data.categories`
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from builders.core.recipe import Recipe
from builders.data.beir import (
    CORPUS,
    GAINS,
    QRELS,
    QUERIES,
    SPLITS,
    DatasetError,
    JudgedQueries,
    is_generated,
    judged_folder,
    load_judged,
)
from builders.data.purchase_columns import COLUMNS_FILE
from builders.data.purchases import purchases_path

LEAST_PARTED: Final = 500
"""Queries from which on they are parted: of fewer, a half's interval is as wide as what a gate allows to be lost."""
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
    """Those that may judge the recipe's ranker: the ones that are not for training where it was trained on judgements.

    Raises:
        DatasetError: there is none, or none of them has a relevant candidate, in either half.
    """
    judging = data
    if recipe.trained_on_judgements:
        judging = data.only(query_id for query_id in data.queries if data.split_of(query_id) != "train")
    parts = halves(judging)
    if not all(any(map(_is_answerable, part.judgements.values())) for part in (parts.validation, parts.test)):
        wanted = "test queries" if recipe.trained_on_judgements else "queries"
        raise DatasetError(
            f"{recipe.ranker}: nothing to judge it by, the data has {told_counts(data)}; wanted {wanted} with a judged "
            "candidate of grade 1 or more. A query without its own split is a test query by the SHA-1 of its text, "
            "about one of three: add judged queries, or name other data with --data"
        )
    return judging


@dataclasses.dataclass(frozen=True)
class Halves:
    """What may judge a ranker, judged apart: one half chooses, the other reports.

    Attributes:
        validation: gates variants, and what is chosen is chosen by it.
        test: is reported, and nothing is decided by it.
        apart: whether they are two; few queries are both.
    """

    validation: JudgedQueries
    test: JudgedQueries
    apart: bool

    @property
    def names(self) -> tuple[str, str]:
        """Of validation and test, for tables."""
        return ("validation", "test") if self.apart else ("validation and test",) * 2

    def told(self) -> str:
        """One line."""
        if self.apart:
            gating, reported = len(self.validation.queries), len(self.test.queries)
            return f"variants are gated by {gating} validation queries, NDCG@10 is of {reported} test queries"
        same = f"the same {len(self.test.queries)} queries"
        return f"variants are gated by, and NDCG@10 is of, {same}: fewer than {LEAST_PARTED}"


def halves(judging: JudgedQueries) -> Halves:
    """By the data's own names where it has test queries and others; else by the SHA-1 of the query's id, so that a
    query stays in its half when others come, and only from :data:`LEAST_PARTED` queries on."""
    if "test" in judging.splits.values():
        in_test = [query_id for query_id in judging.queries if judging.splits[query_id] == "test"]
        if 0 < len(in_test) < len(judging.queries):
            return _parted(judging, in_test)
    if len(judging.queries) < LEAST_PARTED:
        return Halves(judging, judging, apart=False)
    return _parted(judging, [query_id for query_id in judging.queries if _is_in_test_half(query_id)])


def _parted(judging: JudgedQueries, in_test: Sequence[str]) -> Halves:
    test = set(in_test)
    validation = judging.only(query_id for query_id in judging.queries if query_id not in test)
    return Halves(validation, judging.only(in_test), apart=True)


def _is_in_test_half(query_id: str) -> bool:
    return int(hashlib.sha1(query_id.encode()).hexdigest(), 16) % 2 == 0


def told_counts(data: JudgedQueries) -> str:
    """Queries by split, judged pairs, and in how many queries a candidate is relevant."""
    parts = []
    named = "validation" in data.splits.values()
    for split in SPLITS:
        if split == "validation" and not named:
            continue
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
