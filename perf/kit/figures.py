"""Quality metrics, slices of queries, and the form in which Pareto figures are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from builders.compress.quantize_graph import LayerCost
from builders.core.recipe import SLICES_OF_DATA
from builders.data.beir import JudgedQueries
from builders.evaluate import metrics
from builders.evaluate.choose import BYTES_PER_MB, ParetoReport, VariantFigures, cost_text, pareto_folder
from builders.evaluate.metrics import Interval, Rankings, ndcg_of_rankings, paired_interval
from builders.evaluate.slices import Slice, slice_quality, worst_text
from builders.export.parity import ParityError
from builders.export.parity import check_parity as parity_report

__all__ = [
    "BYTES_PER_MB",
    "METRICS_CODE",
    "Interval",
    "LayerCost",
    "ParetoReport",
    "ParityError",
    "Rankings",
    "VariantFigures",
    "cost_text",
    "ndcg_of_rankings",
    "paired_interval",
    "pareto_folder",
    "parity_report",
    "slices_of_search",
    "worst_text",
]

METRICS_CODE = Path(metrics.__file__)
"""What computes the figures: others may come of it when it changes."""


def slices_of_search(judged: JudgedQueries, ndcg: Mapping[str, float]) -> Sequence[Slice]:
    """NDCG@10 of judged search queries by the slices that their data has."""
    return slice_quality(judged, ndcg, SLICES_OF_DATA["judged"])
