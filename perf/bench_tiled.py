"""What it gains to compute a request's own part once: a ranker as it is served against the same network on N copies.

Both forms are ONNX files of the same weights, run in this process by ONNX Runtime with the threads of the recipe, in
turn, on a real customer's history and N items of the shop.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from perf.errors import PerfError
from perf.kit.data import JudgedQueries, Product, Recipe, Request
from perf.kit.rankers import (
    REQUEST_VECTOR,
    Contract,
    FeatureRanker,
    Graph,
    Sample,
    Tensor,
    load_ranker,
    onnx_from_ranker,
    run_onnx,
)

CANDIDATES = 512
PAIRS = 7


class Repeated(nn.Module):
    """The whole network on every row: what the request has once arrives as often as there are candidates."""

    def __init__(self, ranker: FeatureRanker) -> None:
        super().__init__()
        self.network = ranker.module
        self.per_candidate = [feature.per_candidate for feature in ranker.features]
        self.encodes_request = ranker.encodes_request

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """[candidates, ...] each => float32 [candidates, heads]."""
        if not self.encodes_request:
            scores: torch.Tensor = torch.vmap(self._row)(*tensors)
            return scores
        pairs = list(zip(tensors, self.per_candidate, strict=True))
        vectors = self.network.encode_request(*(tensor for tensor, own in pairs if not own))  # type: ignore[operator]
        # All rows are equal: their mean is any of them, and no exporter can tell.
        vector = vectors.mean(dim=0, keepdim=True)
        candidates = (tensor for tensor, own in pairs if own)
        return self.network.score_candidates(vector, *candidates)  # type: ignore[operator]

    def _row(self, *tensors: torch.Tensor) -> torch.Tensor:
        """[...] each => float32 [heads]: a request of one candidate, with all that the request has."""
        score: torch.Tensor = self.network(*(tensor.unsqueeze(0) for tensor in tensors))
        return score[0]


def gain_of_computing_once(recipe: Recipe, data: JudgedQueries, candidates: int = CANDIDATES) -> np.ndarray:
    """float64 [PAIRS, 2]: seconds as served and repeated, in turn, for one request.

    Raises:
        PerfError: the ranker has no per-request part, or the two forms do not score alike.
    """
    ranker = load_ranker(recipe)
    if not isinstance(ranker, FeatureRanker) or all(feature.per_candidate for feature in ranker.features):
        raise PerfError(f"{recipe.ranker}: nothing in it is computed per request; wanted a ranker that reads a history")
    request, products = _longest_history(data), list(data.products.values())[:candidates]
    with tempfile.TemporaryDirectory(prefix="tritonrank_perf_") as folder:
        served = _sessions(ranker.graphs, ranker.sample(request, products), Path(folder), recipe.serving.threads)
        whole = _repeated_graph(ranker, len(products))
        repeated_sample = _repeated_sample(ranker, request, products)
        repeated = _sessions([whole], {whole.name: repeated_sample}, Path(folder), recipe.serving.threads)
        samples = ranker.sample(request, products)
        runs = (lambda: _run(served, samples), lambda: _run(repeated, {whole.name: repeated_sample}))
        if not np.allclose(runs[0](), runs[1](), atol=1e-3):
            raise PerfError(f"{recipe.ranker}: repeated rows score otherwise; look at score_candidates")
        return np.array([[_seconds(run) for run in runs] for _ in range(PAIRS)])


def _longest_history(data: JudgedQueries) -> Request:
    return max((data.request(query_id) for query_id in data.queries), key=lambda request: len(request.history))


def _repeated_graph(ranker: FeatureRanker, rows: int) -> Graph:
    """For just so many candidates: what ``vmap`` maps over has a size for the exporter."""
    of_features = {
        tensor.name: tensor
        for graph in ranker.graphs
        for tensor in graph.contract.inputs
        if tensor.name != REQUEST_VECTOR
    }
    inputs = tuple(_with_rows(of_features[feature.name], rows) for feature in ranker.features)
    outputs = tuple(_with_rows(tensor, rows) for tensor in ranker.graphs[-1].contract.outputs)
    name = f"{ranker.name}_repeated"
    return Graph(name, Repeated(ranker), Contract(name, inputs, outputs), batches=False)


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    return Tensor(tensor.name, tensor.dtype, (rows, *tensor.dims[1:]), tensor.meaning, "per_candidate")


def _repeated_sample(ranker: FeatureRanker, request: Request, products: Sequence[Product]) -> Sample:
    tensors = ranker.tensors(request, products)
    rows = len(products)
    return {
        feature.name: np.ascontiguousarray(
            np.broadcast_to(tensors[feature.name], (rows, *tensors[feature.name].shape[1:]))
        )
        for feature in ranker.features
    }


def _sessions(
    graphs: Sequence[Graph], samples: dict[str, Sample], folder: Path, threads: int
) -> list[tuple[str, onnxruntime.InferenceSession]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    sessions = []
    for graph in graphs:
        path = folder / f"{graph.name}.onnx"
        example = samples[graph.name]
        if graph.batches:  # the exporter takes a dimension of 1 for a constant
            example = {name: np.concatenate([array, array]) for name, array in example.items()}
        onnx_from_ranker(graph, example, path)
        sessions.append((graph.name, onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])))
    return sessions


def _run(sessions: Sequence[tuple[str, onnxruntime.InferenceSession]], samples: dict[str, Sample]) -> np.ndarray:
    outputs: Sample = {}
    for name, session in sessions:
        outputs = run_onnx(session, {**samples[name], **outputs})
    return next(iter(outputs.values()))


def _seconds(run: object) -> float:
    start_s = time.perf_counter()
    run()  # type: ignore[operator]
    return time.perf_counter() - start_s
