"""In the machine's own Python: the same networks in torch, eager and compiled, FP16, by perf.gpu_figures."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

from builders.rankers.base import Graph
from deploy.airgap.stages.common import (
    NO_GPU,
    PROJECT,
    Results,
    graph_of,
    latency_ms,
    networks,
    shapes_to_measure,
    sized,
)
from perf.gpu_figures import measured_peak, torch_run

COLUMNS: dict[str, dict[str, bool]] = {
    "eager fp16": {"half": True},
    "compiled fp16": {"half": True, "compiled": True},
}
FLOPS_PER_TFLOP = 1e12
NOT_OF_THE_CONFIG = ("model_type", "transformers_version", "torch_dtype", "dtype")


def main() -> None:
    """Every network; no figure without a GPU."""
    results = Results("torch")
    results.put("torch", torch.__version__)
    if not torch.cuda.is_available():
        results.put("no GPU", f"torch {torch.__version__} sees no CUDA GPU")
        sys.exit(NO_GPU)
    results.require_gpu()
    with results.part("peak"):
        results.put("peak fp16 TFLOP/s", measured_peak("cuda") / FLOPS_PER_TFLOP)
    for facts in networks():
        with results.part(facts["recipe"]):
            graph = Graph(**vars(graph_of(facts, module_of(facts))))
            for column in COLUMNS:
                with results.part(f"{facts['graph']} {column}"):
                    measure(results, facts, graph, column)
    results.put("done", True)


def measure(results: Results, facts: dict[str, Any], graph: Graph, column: str) -> None:
    """Put down one network's figures in one mode."""
    run = torch_run(graph, "cuda", **COLUMNS[column])
    for rows, length in shapes_to_measure(facts):
        inputs = sized(facts, rows, length)
        results.put(f"{facts['graph']} {column} {rows}x{length}", latency_ms(lambda inputs=inputs: run(inputs)))


def module_of(facts: dict[str, Any]) -> torch.nn.Module:
    """As workload.torch_network says."""
    made = facts["torch"]
    if made["kind"] == "checkpoint":
        from builders.rankers.feature_ranker import FeatureRanker

        file, name = made["module"].rsplit(":", 1)
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        ranker = FeatureRanker.load(facts["recipe"], getattr(module, name), PROJECT / made["checkpoint"], None)
        return ranker.graphs[-1].module
    from transformers import BertConfig, BertModel

    from builders.rankers.cross_encoder import CrossEncoder

    config = BertConfig(**{name: value for name, value in made["config"].items() if name not in NOT_OF_THE_CONFIG})
    config._attn_implementation = "sdpa"
    backbone = BertModel(config, add_pooling_layer=False)
    return CrossEncoder(backbone, config, tuple(made["specials"]), made["separator"]).eval()


if __name__ == "__main__":
    main()
