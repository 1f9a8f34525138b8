"""Whether a variant may be shipped: its judged quality and its fidelity against the reference variant, and why not.

Judged queries are few, so what they cannot tell is told by lists that nobody judged: how well the variant keeps the
reference's own order. Metrics and intervals are those of :mod:`builders.evaluate.metrics`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydantic
import sklearn.metrics

from builders.core.recipe import Gate
from builders.data.beir import JudgedQueries
from builders.evaluate import metrics
from builders.evaluate.metrics import GateFailed, Interval, Rankings

METRICS_OF_DATA = {"judged": ("ndcg",), "purchases": ("ndcg", "hit_rate", "auc"), "categories": ("accuracy", "f1")}
"""What is told of a ranker judged on this data, besides the gate's own metric."""
WORST_QUERIES = 10


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How well the reference's own order is kept, over unjudged lists.

    Attributes:
        ndcg: NDCG@10 with the reference's first item worth 10, its second 9, ... its tenth 1.
        top_10_overlap: share of the reference's first ten among the variant's.
    """

    lists: int
    ndcg: float
    top_10_overlap: float


@dataclasses.dataclass(frozen=True)
class Worst:
    """One query with both rankers' first items."""

    query_id: str
    query: str
    reference: float
    found: float
    reference_items: tuple[str, ...]
    found_items: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class GateReport:
    """A variant against its reference.

    Attributes:
        metric: the one whose interval is judged.
        metrics: name => {"reference": mean, "found": mean}.
        judged: the difference found minus reference of ``metric``.
        fidelity: None where no unjudged list could be made.
        top_10_overlap, kendall_tau: over the judged lists.
        not_finite: scores that are NaN or infinite, of judged and unjudged lists.
        worst: queries that lost most.
    """

    metric: str
    metrics: Mapping[str, Mapping[str, float]]
    judged: Interval
    fidelity: Fidelity | None
    top_10_overlap: float
    kendall_tau: float
    not_finite: int
    worst: tuple[Worst, ...]

    @property
    def relative_low(self) -> float:
        """The interval's lower end as a share of the reference's mean; -inf where that is 0: it judges nothing."""
        mean = self.metrics[self.metric]["reference"]
        return self.judged.low / mean if mean else -math.inf


def report_from_json(kept: Mapping[str, Any]) -> GateReport:
    """What ``dataclasses.asdict`` and JSON made of a report. Raises: pydantic.ValidationError: not of this version."""
    return pydantic.TypeAdapter(GateReport).validate_python(kept)


def gate_report(
    data: JudgedQueries,
    kind: str,
    found: Rankings,
    reference: Rankings,
    limits: Gate,
    fidelity: Fidelity | None,
    not_finite: int,
) -> GateReport:
    """Judge.

    Args:
        kind: a recipe's ``data``.
        found, reference: rankings of every judged query by the variant and by the reference.

    Raises:
        QualityError: as :func:`builders.evaluate.metrics.compare`.
    """
    comparison = metrics.compare(data, found, reference)
    per_query, of_reference = (metric_by_query(data, limits.metric, rankings) for rankings in (found, reference))
    names = dict.fromkeys([limits.metric, *METRICS_OF_DATA[kind]])
    return GateReport(
        metric=limits.metric,
        metrics={
            name: {"reference": mean_metric(data, name, reference), "found": mean_metric(data, name, found)}
            for name in names
        },
        judged=metrics.paired_interval(per_query, of_reference),
        fidelity=fidelity,
        top_10_overlap=comparison.top_k_overlap,
        kendall_tau=comparison.kendall_tau,
        not_finite=not_finite,
        worst=_worst(data, per_query, of_reference, found, reference),
    )


def verdict(variant: str, report: GateReport, limits: Gate) -> str:
    """A line that says that the variant passed.

    Raises:
        GateFailed: it did not; the message names every limit that it broke, by how much, and what to do.
    """
    figures = _figures(report)
    faults = list(_faults(report, limits))
    if faults:
        worst = ", ".join(f"'{one.query or one.query_id}' {one.found - one.reference:+.3f}" for one in report.worst[:3])
        raise GateFailed(
            f"{variant}: {'; '.join(faults)}. {figures}. Not published. Its worst queries: {worst}. See them by "
            f"'python -m builders gate {variant}'; compress it less, tune it longer, or, if this loss is "
            "acceptable, say so in the recipe: gate = { max_judged_loss = ..., min_fidelity_ndcg = ... }"
        )
    return f"{variant}: {figures}: passed"


def _faults(report: GateReport, limits: Gate) -> Sequence[str]:
    faults = []
    if report.not_finite:
        faults.append(f"{report.not_finite} scores are NaN or infinite, wanted none")
    if not report.relative_low >= -limits.max_judged_loss:  # written so that NaN fails
        faults.append(
            f"lower end of the judged {report.metric} interval {report.relative_low:+.2%} of the reference, "
            f"limit {-limits.max_judged_loss:+.2%}"
        )
    if report.fidelity is not None and not report.fidelity.ndcg >= limits.min_fidelity_ndcg:
        faults.append(f"fidelity NDCG {report.fidelity.ndcg:.4f}, limit {limits.min_fidelity_ndcg:.4f}")
    return faults


def _figures(report: GateReport) -> str:
    of_metric = report.metrics[report.metric]
    judged = (
        f"{report.metric} {of_metric['found']:.4f} against {of_metric['reference']:.4f}, difference {report.judged}, "
        f"lower end {report.relative_low:+.2%}"
    )
    if report.fidelity is None:
        return judged
    return (
        f"{judged}; fidelity NDCG {report.fidelity.ndcg:.4f}, top-10 overlap {report.fidelity.top_10_overlap:.3f} over "
        f"{report.fidelity.lists:,} lists"
    )


# ---------------------------------------------------------------- metrics
def metric_by_query(data: JudgedQueries, metric: str, rankings: Rankings) -> dict[str, float]:
    """Query id => NDCG@10, hit rate@10 (0 or 1), AUC, or accuracy of the first item (0 or 1)."""
    if metric == "ndcg":
        return metrics.ndcg_of_rankings(data, rankings)
    of_query = {"hit_rate": _hit, "auc": _auc, "accuracy": _accuracy}[metric]
    return {query_id: of_query(rankings[query_id], grades) for query_id, grades in data.judgements.items()}


def mean_metric(data: JudgedQueries, metric: str, rankings: Rankings) -> float:
    """The mean over queries; of "f1" the macro mean over the labels, an item being a label."""
    if metric == "f1":
        wanted = [max(grades, key=lambda item: grades[item]) for grades in data.judgements.values()]
        return float(
            sklearn.metrics.f1_score(wanted, [rankings[query][0] for query in data.judgements], average="macro")
        )
    return metrics.mean_of(metric_by_query(data, metric, rankings))


def _hit(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    best = max(grades.values())
    return float(any(grades[item] == best for item in ranking[: metrics.TOP_K]))


def _accuracy(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    return float(grades[ranking[0]] == max(grades.values()))


def _auc(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    best = max(grades.values())
    labels = [grades[item] == best for item in ranking]
    if all(labels):
        return 1.0
    return float(sklearn.metrics.roc_auc_score(labels, np.arange(len(labels), 0, -1)))


def fidelity_of(found: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> Fidelity | None:
    """Of lists of scores, the same candidates in the same order in both; None for no lists."""
    if not reference:
        return None
    pairs = [(np.nan_to_num(np.asarray(mine), nan=-np.inf), np.asarray(theirs)) for mine, theirs in
             zip(found, reference, strict=True)]  # fmt: skip
    ndcgs = [_fidelity_ndcg(mine, theirs) for mine, theirs in pairs]
    overlaps = [
        len(set(_order(mine)[: metrics.TOP_K]) & set(_order(theirs)[: metrics.TOP_K])) / min(metrics.TOP_K, len(theirs))
        for mine, theirs in pairs
    ]
    return Fidelity(len(pairs), float(np.mean(ndcgs)), float(np.mean(overlaps)))


def _fidelity_ndcg(found: np.ndarray, reference: np.ndarray) -> float:
    gains = np.zeros(len(reference))
    best = _order(reference)[: metrics.TOP_K]
    gains[best] = metrics.TOP_K - np.arange(len(best))
    places = np.empty(len(found))
    places[_order(found)] = np.arange(len(found), 0, -1)
    return float(sklearn.metrics.ndcg_score([gains], [places], k=metrics.TOP_K))


def _order(scores: np.ndarray) -> list[int]:
    return list(np.argsort(-scores, kind="stable"))


def _worst(
    data: JudgedQueries,
    found: Mapping[str, float],
    reference: Mapping[str, float],
    rankings: Rankings,
    reference_rankings: Rankings,
) -> tuple[Worst, ...]:
    lost = sorted(data.queries, key=lambda query_id: found[query_id] - reference[query_id])[:WORST_QUERIES]
    return tuple(
        Worst(
            query_id,
            data.queries[query_id],
            reference[query_id],
            found[query_id],
            tuple(reference_rankings[query_id][: metrics.TOP_K]),
            tuple(rankings[query_id][: metrics.TOP_K]),
        )
        for query_id in lost
    )
