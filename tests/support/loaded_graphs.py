"""Graphs as ONNX Runtime makes them when it loads them, beside those of torch's older exporter, which optimum-onnx
uses and ONNX Runtime's fusions were written for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime

from builders.rankers.base import Graph, Sample
from perf.bench_graphs import export_plainly

KINDS = {
    "products": "MatMul FusedMatMul Gemm FusedGemm",
    "normalizations": "LayerNormalization SkipLayerNormalization SimplifiedLayerNormalization",
    "softmax": "Softmax",
    "activations": "BiasGelu Gelu FastGelu QuickGelu Erf Tanh Sigmoid",
    "arithmetic": "Add Sum Sub Mul Div Pow Sqrt Reciprocal ReduceMean Where IsNaN Abs Neg Erf Tanh Sigmoid",
    "transpositions": "Transpose",
}
"""What costs time over a whole tensor; shapes and masks are small."""


def operators_as_loaded(path: Path) -> Counter[str]:
    """Operator => nodes, once every optimization is applied."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".loaded"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def check_costs_no_more(exported: Path, graph: Graph, sample: Sample) -> None:
    """Of no kind of operator more than the plain export of the same module, and nothing of ONNX Runtime's own."""
    assert {node.domain for node in onnx.load(exported).graph.node} == {""}
    inputs = {tensor.name: sample[tensor.name] for tensor in graph.contract.inputs}
    plain = operators_as_loaded(export_plainly(graph.module, inputs, exported.with_suffix(".plain")))
    check_no_more(operators_as_loaded(exported), plain)


def check_no_more(found: Counter[str], plain: Counter[str]) -> None:
    """Kind by kind."""
    more = {
        kind: (sum(found[name] for name in names.split()), sum(plain[name] for name in names.split()))
        for kind, names in KINDS.items()
    }
    assert all(ours <= theirs for ours, theirs in more.values()), f"(ours, plain): {more}; {found}; {plain}"
    assert found["SkipLayerNormalization"] == 0  # see builders.export.operators
