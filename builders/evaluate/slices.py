"""Whom a ranker serves worse: NDCG by groups of queries, each against the rest.

A slice is a name and a function that gives a query its group; :data:`SLICES` holds the kit's, and takes one of yours::

    SLICES["digits"] = lambda judged, query_id: "with" if any(map(str.isdigit, judged.queries[query_id])) else "without"

Knows nothing of how a ranking came about.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.stats
from rich.markup import escape
from rich.table import Table

from builders.data.beir import JudgedQueries, Product
from builders.evaluate.metrics import RESAMPLES, SEED, QualityError

GroupOf = Callable[[JudgedQueries, str], str]
"""(judged, query id) => the query's group."""

OTHER = "other"
"""Groups too small to judge alone, together."""
UNKNOWN = "unknown"
EXACT = 3
SHORT_WORDS, LONG_WORDS = 2, 5
"""Queries of at most so many words are short, of at least so many long."""
MIN_QUERIES = 5
CONFIDENCE = 0.95
_BATCH = 500  # resamples held at once


@dataclasses.dataclass(frozen=True)
class Slice:
    """One group of one slice.

    Attributes:
        ndcg: mean over its queries.
        difference: ``ndcg`` minus the mean over all other queries; None where there are none, or either side has too
            few queries to judge.
        low, high: bootstrap interval of the difference, 95% each for itself: of twenty groups that differ in nothing,
            one is expected to seem to. None as ``difference``.
    """

    name: str
    group: str
    queries: int
    ndcg: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def is_worse(self) -> bool:
        """Whether its interval is clear of 0, below."""
        return self.high is not None and self.high < 0

    def __str__(self) -> str:
        return f"{self.name} {self.group}: NDCG {self.ndcg:.4f} over {self.queries} queries, {self.difference_text}"

    @property
    def difference_text(self) -> str:
        """Difference and interval for a reader."""
        if self.difference is None:
            return "too few queries here or in the rest to judge"
        return f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}] from the rest"


# ---------------------------------------------------------------- groups
def query_length(judged: JudgedQueries, query_id: str) -> str:
    """By words between white space."""
    words = len(judged.queries[query_id].split())
    if words == 0:
        return "no query"
    if words <= SHORT_WORDS:
        return f"1-{SHORT_WORDS} words"
    return f"{LONG_WORDS}+ words" if words >= LONG_WORDS else f"{SHORT_WORDS + 1}-{LONG_WORDS - 1} words"


def brand_popularity(judged: JudgedQueries, query_id: str) -> str:
    """Whether at least half of the query's Exact products that have a brand are of a common one.

    Common is a brand with more products than the median product's brand has in the corpus.
    """
    grades = judged.judgements[query_id]
    brands = [judged.products[item_id].brand for item_id, grade in grades.items() if grade == EXACT]
    brands = [brand for brand in brands if brand]
    if not brands:
        return "no brand"
    common = _common_brands(_ByIdentity(judged.products))
    return "common brands" if 2 * sum(brand in common for brand in brands) >= len(brands) else "rare brands"


def country(judged: JudgedQueries, query_id: str) -> str:
    """The user's, from the raw field ``country``."""
    fields = judged.users.get(judged.request(query_id).user_id, {})
    return str(fields.get("country") or UNKNOWN)


def history(judged: JudgedQueries, query_id: str) -> str:
    """Whether the request brings a history."""
    return "warm" if judged.request(query_id).history else "cold"


SLICES: dict[str, GroupOf] = {
    "query_length": query_length,
    "brand_popularity": brand_popularity,
    "country": country,
    "history": history,
}


class _ByIdentity:
    """A mapping as a cache's key: the same object, not an equal one."""

    def __init__(self, products: Mapping[str, Product]) -> None:
        self.products = products

    def __hash__(self) -> int:
        return id(self.products)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.products is other.products


@functools.lru_cache(maxsize=2)
def _common_brands(corpus: _ByIdentity) -> frozenset[str]:
    brands = [product.brand for product in corpus.products.values() if product.brand]
    counts = collections.Counter(brands)
    usual = statistics.median(counts[brand] for brand in brands)
    return frozenset(brand for brand, count in counts.items() if count > usual)


# ---------------------------------------------------------------- figures
def slice_quality(
    judged: JudgedQueries,
    ndcg: Mapping[str, float],
    slices: Sequence[str] = tuple(SLICES),
    min_queries: int = MIN_QUERIES,
) -> list[Slice]:
    """Mean NDCG of every group of every slice, in the order of ``slices``, the worst group first.

    A group of fewer than ``min_queries`` queries goes to :data:`OTHER`. The interval is SciPy's bootstrap of the
    difference of two means (BCa, two samples resampled apart, unpaired: a query is on one side only), seeded.

    Args:
        ndcg: query id to its figure; these queries are judged.
        slices: names in :data:`SLICES`.

    Raises:
        QualityError: no such slice, a query that ``judged`` does not hold, or no query at all.
    """
    _check(judged, ndcg, slices)
    return [row for name in slices for row in _slice(judged, ndcg, name, min_queries)]


def worst_slice(slices: Sequence[Slice]) -> Slice | None:
    """The group furthest below the rest: among those whose interval is clear of 0, else among all judged.

    Returns:
        None where no group could be judged, or none is below the rest.
    """
    below = [row for row in slices if row.difference is not None and row.difference < 0]
    candidates = [row for row in below if row.is_worse] or below
    return min(candidates, key=lambda row: row.difference or 0.0, default=None)


def worst_text(slices: Sequence[Slice]) -> str:
    """One line that names the worst slice, and whether it may be chance."""
    worst = worst_slice(slices)
    if worst is None:
        return "worst slice: none, no group that can be judged is below the rest"
    return f"worst slice: {worst}" + ("" if worst.is_worse else "; the interval holds 0, so it may be chance")


def slice_table(slices: Sequence[Slice], title: str = "NDCG@10 by slice") -> Table:
    """For a terminal; the worst slice in red."""
    table = Table(title=title, title_justify="left", caption=worst_text(slices), caption_justify="left")
    for heading in ("slice", "group"):
        table.add_column(heading)
    for heading in ("queries", "NDCG@10", "minus the rest, 95% interval"):
        table.add_column(heading, justify="right")
    worst = worst_slice(slices)
    for previous, row in zip([None, *slices], slices, strict=False):
        if previous and previous.name != row.name:
            table.add_section()
        name, group = escape(row.name), escape(row.group)
        figures = (str(row.queries), f"{row.ndcg:.4f}", row.difference_text.removesuffix(" from the rest"))
        table.add_row(name, group, *figures, style="red" if row == worst else None)
    return table


def _check(judged: JudgedQueries, ndcg: Mapping[str, float], slices: Sequence[str]) -> None:
    unknown = [name for name in slices if name not in SLICES]
    if unknown:
        raise QualityError(f"slices {', '.join(unknown)}: wanted of {', '.join(SLICES)}, or added to SLICES")
    strangers = [query_id for query_id in ndcg if query_id not in judged.judgements]
    if strangers or not ndcg:
        found = f"'{strangers[0]}' is not judged" if strangers else "no query"
        raise QualityError(f"NDCG of {len(ndcg)} queries: {found}; wanted those of the judged queries")


def _slice(judged: JudgedQueries, ndcg: Mapping[str, float], name: str, min_queries: int) -> list[Slice]:
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for query_id in ndcg:
        groups[SLICES[name](judged, query_id)].append(query_id)
    rows = [_row(name, group, ndcg, members, min_queries) for group, members in _merged(groups, min_queries).items()]
    return sorted(rows, key=lambda row: row.ndcg)


def _merged(groups: Mapping[str, list[str]], min_queries: int) -> dict[str, list[str]]:
    small = [group for group, members in groups.items() if len(members) < min_queries]
    if len(small) < 2:  # one small group alone keeps its name
        return dict(groups)
    kept = {group: list(members) for group, members in groups.items() if group not in small}
    together = [query_id for group in small for query_id in groups[group]]
    return {**kept, OTHER: [*kept.get(OTHER, []), *together]}


def _row(name: str, group: str, ndcg: Mapping[str, float], members: Sequence[str], min_queries: int) -> Slice:
    inside = set(members)
    own = np.array([ndcg[query_id] for query_id in members])
    rest = np.array([value for query_id, value in ndcg.items() if query_id not in inside])
    mean = float(own.mean())
    if min(len(own), len(rest)) < max(min_queries, 2):
        return Slice(name, group, len(own), mean)
    return Slice(name, group, len(own), mean, mean - float(rest.mean()), *_interval(own, rest))


def _interval(own: np.ndarray, rest: np.ndarray) -> tuple[float, float]:
    """Of the difference of the means."""
    if np.ptp(own) == 0 and np.ptp(rest) == 0:  # BCa has no interval for equal figures, SciPy gives NaN
        difference = float(own[0] - rest[0])
        return difference, difference
    interval = scipy.stats.bootstrap(
        (own, rest), _mean_difference, n_resamples=RESAMPLES, batch=_BATCH, confidence_level=CONFIDENCE, rng=SEED
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _mean_difference(own: np.ndarray, rest: np.ndarray, axis: int) -> np.ndarray:
    difference: np.ndarray = own.mean(axis=axis) - rest.mean(axis=axis)
    return difference
