"""What the tests of small text networks share: parity at small, usual and largest requests, and padding by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from builders.data.beir import JudgedQueries, Product, Request
from builders.export.onnx import PARITY_ATOL, check_onnx, onnx_from_ranker
from builders.rankers.base import Graph, Sample
from builders.rankers.feature_ranker import FeatureRanker

REQUEST_SIZES = (1, 40, 1024)


def check_parity_at_all_sizes(ranker: FeatureRanker, request: Request, pool: Sequence[Product], folder: Path) -> None:
    """Exports every graph of the ranker from a request of 40 and compares torch with ONNX Runtime at each size."""
    for graph in ranker.graphs:
        samples = [ranker.sample(request, pool[:size])[graph.name] for size in REQUEST_SIZES]
        path = folder / f"{graph.name}.onnx"
        onnx_from_ranker(graph, _two_rows(graph, samples[1]), path)
        reports = check_onnx(graph, path, [*samples, _two_rows(graph, samples[1])])
        assert len(reports) == len(REQUEST_SIZES) + 1
        assert all(0 <= report.max_abs_difference[graph.contract.outputs[0].name] <= PARITY_ATOL for report in reports)


def many_products(judged: JudgedQueries) -> list[Product]:
    """As many as the largest request; a small catalogue is repeated."""
    products = list(judged.products.values())
    return (products * -(-REQUEST_SIZES[-1] // len(products)))[: REQUEST_SIZES[-1]]


def padded(ids: Tensor, further: int) -> Tensor:
    """int32 [rows, length + further]."""
    return torch.nn.functional.pad(ids, (0, further))


def _two_rows(graph: Graph, sample: Sample) -> Sample:
    """The exporter takes a free dimension of size 1 for a constant."""
    return {name: np.repeat(array, 2, axis=0) for name, array in sample.items()} if graph.batches else sample
