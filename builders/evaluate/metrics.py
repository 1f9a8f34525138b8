"""Ranking metrics of two rankers query by query: NDCG, paired bootstrap intervals, rank correlation.

NDCG is scikit-learn's, intervals are SciPy's bootstrap, rank correlation is SciPy's Kendall tau. Knows nothing of how
a ranking came about: in process and served ones are judged alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats
import sklearn.metrics

from builders.core.errors import GATE_FAILED, BuilderError, listed
from builders.data.beir import GAINS, JudgedQueries

TOP_K = 10
RESAMPLES = 10_000
SEED = 0
WORST_QUERIES = 5

Rankings = Mapping[str, Sequence[str]]
"""Query id to the ids of all its judged candidates, best first."""


class QualityError(BuilderError):
    """Rankings, scores or figures that cannot be judged, or do not pass."""


class GateFailed(QualityError):
    """A variant is worse than its recipe allows."""

    exit_code = GATE_FAILED


@dataclasses.dataclass(frozen=True)
class Interval:
    """A paired difference over queries, found minus reference, with its bootstrap interval.

    Attributes:
        relative: the mean difference as a share of the reference's mean; None where that is 0.
        confidence: of the interval from ``low`` to ``high``.
        queries: how many were compared.
    """

    mean_difference: float
    low: float
    high: float
    relative: float | None
    confidence: float
    queries: int

    def __str__(self) -> str:
        return (
            f"{self.mean_difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}] "
            f"({self.confidence:.0%}, {self.queries} queries)"
        )


@dataclasses.dataclass(frozen=True)
class QueryDifference:
    """One query's NDCG@k under two rankers; ``difference`` is found minus reference."""

    query_id: str
    query: str
    reference: float
    found: float

    @property
    def difference(self) -> float:
        """Below 0 where the found ranker is worse."""
        return self.found - self.reference


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A ranker against a reference over the same queries.

    Attributes:
        reference_ndcg, found_ndcg: NDCG@k, means over queries.
        interval: of the NDCG difference.
        top_k_overlap: share of the reference's first k that are among the found first k, mean over queries.
        kendall_tau: agreement of the two orders from -1 to 1, mean over queries.
        worst: queries that lost most, the worst first.
    """

    reference_ndcg: float
    found_ndcg: float
    interval: Interval
    top_k_overlap: float
    kendall_tau: float
    worst: tuple[QueryDifference, ...]


def rankings_from_scores(first_stage: Rankings, scores: Mapping[str, Mapping[str, float]]) -> dict[str, list[str]]:
    """Orders each query's candidates by score, highest first, ties in first-stage order, as ``postprocess`` does.

    Raises:
        QualityError: a query or candidate has no score, or one that is NaN or infinite.
    """
    return {
        query_id: _ranked(query_id, candidates, scores.get(query_id, {}))
        for query_id, candidates in first_stage.items()
    }


def ndcg_of_rankings(judged: JudgedQueries, rankings: Rankings, k: int = TOP_K) -> dict[str, float]:
    """NDCG@k of every query of ``judged`` with ESCI's gains; the ideal is made of the same candidates.

    Raises:
        QualityError: a ranking is missing or is not an order of exactly the query's judged candidates.
    """
    return {
        query_id: _ndcg(grades, _checked_ranking(query_id, grades, rankings), k)
        for query_id, grades in judged.judgements.items()
    }


def paired_interval(found: Mapping[str, float], reference: Mapping[str, float], confidence: float = 0.95) -> Interval:
    """The mean over queries of ``found`` minus ``reference``, with a bias-corrected bootstrap interval (BCa, seeded).

    Args:
        found, reference: query id to its metric, the same ids in both.
        confidence: 0 to 1.

    Raises:
        QualityError: the ids differ, there are fewer than two, or a figure is NaN or infinite.
    """
    differences = _paired_differences(found, reference)
    mean = float(differences.mean())
    low, high = _bootstrap_interval(differences, confidence)
    reference_mean = mean_of(reference)
    return Interval(
        mean_difference=mean,
        low=low,
        high=high,
        relative=mean / reference_mean if reference_mean else None,
        confidence=confidence,
        queries=len(differences),
    )


def compare(judged: JudgedQueries, found: Rankings, reference: Rankings, k: int = TOP_K) -> Comparison:
    """Compares two rankers over the queries of ``judged``.

    Raises:
        QualityError: as :func:`ndcg_of_rankings` and :func:`paired_interval`.
    """
    found_ndcg = ndcg_of_rankings(judged, found, k)
    reference_ndcg = ndcg_of_rankings(judged, reference, k)
    query_ids = list(judged.queries)
    differences = [
        QueryDifference(query_id, judged.queries[query_id], reference_ndcg[query_id], found_ndcg[query_id])
        for query_id in query_ids
    ]
    return Comparison(
        reference_ndcg=mean_of(reference_ndcg),
        found_ndcg=mean_of(found_ndcg),
        interval=paired_interval(found_ndcg, reference_ndcg),
        top_k_overlap=mean_of({one: _overlap(found[one], reference[one], k) for one in query_ids}),
        kendall_tau=mean_of({one: _kendall_tau(found[one], reference[one]) for one in query_ids}),
        worst=tuple(sorted(differences, key=lambda query: query.difference)[:WORST_QUERIES]),
    )


def _ranked(query_id: str, candidates: Sequence[str], scores: Mapping[str, float]) -> list[str]:
    missing = [item_id for item_id in candidates if item_id not in scores]
    if missing:
        raise QualityError(f"query '{query_id}': no score of {listed(missing)}, wanted one of every candidate")
    bad = [item_id for item_id in candidates if not np.isfinite(scores[item_id])]
    if bad:
        raise QualityError(f"query '{query_id}': the score of {listed(bad)} is NaN or infinite, wanted a finite one")
    return sorted(candidates, key=lambda item_id: -scores[item_id])  # stable, so ties keep first-stage order


def _checked_ranking(query_id: str, grades: Mapping[str, int], rankings: Rankings) -> Sequence[str]:
    if query_id not in rankings:
        raise QualityError(f"query '{query_id}': no ranking, wanted one of its {len(grades)} judged candidates")
    ranking = rankings[query_id]
    if sorted(ranking) != sorted(grades):
        missing, extra = sorted(set(grades) - set(ranking)), sorted(set(ranking) - set(grades))
        raise QualityError(
            f"query '{query_id}': a ranking of {len(ranking)} ids, wanted each of its {len(grades)} judged candidates "
            f"once (missing {listed(missing)}, not judged {listed(extra)})"
        )
    return ranking


def _ndcg(grades: Mapping[str, int], ranking: Sequence[str], k: int) -> float:
    gains = [GAINS[grades[item_id]] for item_id in ranking]
    if len(gains) == 1:  # scikit-learn refuses it: any order of one is ideal
        return float(gains[0] > 0)
    descending = np.arange(len(gains), 0, -1)
    return float(sklearn.metrics.ndcg_score([gains], [descending], k=k))


def _overlap(found: Sequence[str], reference: Sequence[str], k: int) -> float:
    return len(set(found[:k]) & set(reference[:k])) / len(reference[:k])


def _kendall_tau(found: Sequence[str], reference: Sequence[str]) -> float:
    if len(reference) == 1:  # SciPy gives NaN
        return 1.0
    place = {item_id: index for index, item_id in enumerate(found)}
    return float(scipy.stats.kendalltau(range(len(reference)), [place[item_id] for item_id in reference]).statistic)


def _paired_differences(found: Mapping[str, float], reference: Mapping[str, float]) -> np.ndarray:
    """float64 [queries], in the reference's order."""
    if set(found) != set(reference):
        odd = sorted(set(found) ^ set(reference))
        raise QualityError(f"queries {listed(odd)} have a figure on one side only, wanted the same queries on both")
    if len(reference) < 2:
        raise QualityError(f"{len(reference)} queries, wanted at least 2 for an interval")
    differences = np.array([found[query_id] - reference[query_id] for query_id in reference])
    if not np.isfinite(differences).all():
        raise QualityError("a figure is NaN or infinite, wanted finite ones")
    return differences


def _bootstrap_interval(differences: np.ndarray, confidence: float) -> tuple[float, float]:
    if np.ptp(differences) == 0:  # BCa has no interval for equal differences, SciPy gives NaN
        return float(differences[0]), float(differences[0])
    for method in ("BCa", "percentile"):  # BCa gives NaN where no resampled mean lies on one side of the mean
        interval = scipy.stats.bootstrap(
            (differences,), np.mean, n_resamples=RESAMPLES, confidence_level=confidence, method=method, rng=SEED
        ).confidence_interval
        if np.isfinite(interval).all():
            break
    return float(interval.low), float(interval.high)


def mean_of(figures: Mapping[str, float]) -> float:
    """The mean over queries. Raises: QualityError: there is none, or a figure is NaN or infinite."""
    if not figures:
        raise QualityError("a mean over 0 queries, wanted at least one judged query; name other data with --data")
    broken = [query_id for query_id, figure in figures.items() if not np.isfinite(figure)]
    if broken:
        raise QualityError(f"the figure of query {listed(broken)} is NaN or infinite, wanted finite ones")
    return float(np.mean(list(figures.values())))
