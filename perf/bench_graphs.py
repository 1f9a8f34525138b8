"""What an exported graph costs beside a plain export of its network, in CPU time of ONNX Runtime.

Plain is torch's older exporter with attention spelt out (``eager``): what optimum-onnx writes, and what ONNX Runtime's
fusions were written for. Both run in this process on one thread, in turn, on one real request.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from perf.bench_base import Bench, Figure, paired_ms
from perf.kit.data import USUAL_CANDIDATES, load_recipes
from perf.kit.rankers import OPSET, Graph, Ranker, Sample, load_ranker, onnx_from_ranker, run_onnx

OPENINGS, PAIRS = 10, 4
"""Where a session's weights come to lie alone makes 5 % of difference: both are opened anew, in turn."""
COST_LIMIT = 1.03


class FirstToken(nn.Module):
    """An encoder whose score is a layer on the first token, the usual cross-encoder's."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = nn.Linear(backbone.config.hidden_size, 1)

    def forward(self, *tensors: Tensor) -> Tensor:
        """int32 [rows, length] each, in the library's order of arguments => float32 [rows, 1]."""
        score: Tensor = self.score(self.backbone(*tensors).last_hidden_state[:, 0])
        return score


def bench_graphs(bench: Bench) -> list[Figure]:
    """The median of our graph over the plain one: of the cross-encoder, head and all, and of the two-tower's query."""
    recipes = load_recipes()
    query, ids = next(bench.requests(USUAL_CANDIDATES))
    products = [bench.judged.products[item] for item in ids]
    figures = []
    for name, head in (("cross_encoder", True), ("two_tower", False)):
        ranker = load_ranker(recipes[name])
        graph = ranker.graphs[0]
        sample = ranker.sample(query, products)[graph.name]
        plain = plain_network(ranker, first_token=head)
        spans_ms = spans_of(graph, plain, sample, bench.track(range(OPENINGS), name))
        figures.append(figure_of(graph.name, sample, spans_ms))
    return figures


def plain_network(ranker: Ranker, *, first_token: bool) -> nn.Module:
    """The ranker's network with attention spelt out; with ``first_token`` its encoder, with a plain head."""
    network: Any = copy.deepcopy(ranker.network)
    network.backbone.set_attn_implementation("eager")
    return FirstToken(network.backbone).eval() if first_token else network


def spans_of(graph: Graph, plain: nn.Module, sample: Sample, openings: Iterable[int]) -> np.ndarray:
    """float64 [openings * PAIRS, 2]: milliseconds of CPU time of our graph, and of the plain one."""
    with tempfile.TemporaryDirectory(prefix="tritonrank_perf_") as folder:
        onnx_from_ranker(graph, sample, Path(folder) / "ours.onnx")
        export_plainly(plain, sample, Path(folder) / "plain.onnx")
        files = [Path(folder) / "ours.onnx", Path(folder) / "plain.onnx"]
        return np.concatenate([_spans_ms(files, sample, swap=bool(opening % 2)) for opening in openings])


def _spans_ms(files: Sequence[Path], sample: Sample, *, swap: bool) -> np.ndarray:
    """float64 [PAIRS, 2]. swap: the second file is opened and run first."""
    sessions = {file: _opened(file) for file in (reversed(files) if swap else files)}
    first, second = (lambda: run_onnx(sessions[files[0]], sample)), (lambda: run_onnx(sessions[files[1]], sample))
    paired_ms(first, second, swap=swap)  # the first run takes up memory
    spans = [paired_ms(first, second, swap=swap ^ bool(pair % 2), clock=time.process_time) for pair in range(PAIRS)]
    return np.array(spans)


def export_plainly(module: nn.Module, sample: Sample, path: Path) -> Path:
    """By torch's older exporter; the inputs' dimensions 0 and 1 are free."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(torch.from_numpy(np.concatenate([array, array])) for array in sample.values()),
            path,
            dynamo=False,
            input_names=list(sample),
            dynamic_axes={name: {0: "rows", 1: "length"} for name in sample},
            opset_version=OPSET,
        )
    return path


def _opened(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def figure_of(name: str, sample: Sample, spans_ms: np.ndarray) -> Figure:
    """The median of the pairs' ratios. spans_ms: float64 [pairs, 2], of our graph and of the plain one."""
    costs = spans_ms[:, 0] / spans_ms[:, 1]
    low, high = np.percentile(costs, [10, 90])
    ours_ms, plain_ms = np.median(spans_ms, axis=0)
    rows, length = next(iter(sample.values())).shape
    detail = f"{ours_ms:.1f} over {plain_ms:.1f} ms, 10th to 90th percentile {low:.3f} to {high:.3f}, n {len(costs)}"
    label = f"{name}: CPU time over the plain export's, {rows} rows of {length} tokens"
    return Figure(label, float(np.median(costs)), "x", COST_LIMIT, detail=detail)
