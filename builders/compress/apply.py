"""Which function performs each step: settings => what is done. One line a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from builders.compress import low_rank, prune, quantize_graph
from builders.compress.context import BuildContext, calibration_samples, importance_samples
from builders.compress.fp16 import fp16_from_onnx
from builders.compress.quantize_graph import LayerCost
from builders.core.steps import (
    CompressionStep,
    Distill,
    DynamicInt8,
    Fp16,
    GraphStep,
    HashRows,
    Int8,
    Int8Embeddings,
    Int8Network,
    LowRank,
    NetworkStep,
    PruneChannels,
    PruneHeads,
    PruneLayers,
    PruneMagnitude,
    PruneRows,
    ShareLayers,
    Sparse24,
)
from builders.rankers.base import Graph, Ranker

FP16_SAMPLES = EMBEDDING_SAMPLES = 8


# ---------------------------------------------------------------- the network
def _prune_layers(context: BuildContext, ranker: Ranker, step: PruneLayers) -> nn.Module:
    return prune.keep_layers(ranker.network, step.keep)


def _prune_heads(context: BuildContext, ranker: Ranker, step: PruneHeads) -> nn.Module:
    return prune.prune_heads(ranker, importance_samples(context, ranker, step.lists), step.amount)


def _prune_channels(context: BuildContext, ranker: Ranker, step: PruneChannels) -> nn.Module:
    return prune.prune_channels(ranker, importance_samples(context, ranker, step.lists), step.amount)


def _prune_rows(context: BuildContext, ranker: Ranker, step: PruneRows) -> nn.Module:
    return prune.keep_rows(ranker, importance_samples(context, ranker, step.lists), step.amount, step.min_rows)


def _prune_magnitude(context: BuildContext, ranker: Ranker, step: PruneMagnitude) -> nn.Module:
    return prune.zero_smallest(ranker.network, step.amount)


def _sparse_2_4(context: BuildContext, ranker: Ranker, step: Sparse24) -> nn.Module:
    return prune.zero_two_of_four(ranker, importance_samples(context, ranker, step.lists), step.method)


def _share_layers(context: BuildContext, ranker: Ranker, step: ShareLayers) -> nn.Module:
    return low_rank.share_layers(ranker.network, step.groups)


def _low_rank(context: BuildContext, ranker: Ranker, step: LowRank) -> nn.Module:
    return low_rank.factorize(ranker.network, step.rank, step.min_rows)


def _hash_rows(context: BuildContext, ranker: Ranker, step: HashRows) -> nn.Module:
    return low_rank.hash_rows(ranker.network, step.rows, step.min_rows)


def _distill(context: BuildContext, ranker: Ranker, step: Distill) -> nn.Module:
    from builders.compress.distill import distill

    teachers = [
        (context.load_ranker(one.recipe) if one.recipe else context.ranker, one.weight) for one in step.teachers
    ]
    return distill(ranker, teachers, context.data, step, context.say)


def _int8_network(context: BuildContext, ranker: Ranker, step: Int8Network) -> nn.Module:
    from builders.compress.quantize_network import quantized_network

    return quantized_network(ranker, context.data, step, context.say)


NETWORK_STEPS: Mapping[type[NetworkStep], Callable[[BuildContext, Ranker, Any], nn.Module]] = {
    PruneLayers: _prune_layers,
    PruneHeads: _prune_heads,
    PruneChannels: _prune_channels,
    PruneRows: _prune_rows,
    PruneMagnitude: _prune_magnitude,
    Sparse24: _sparse_2_4,
    ShareLayers: _share_layers,
    LowRank: _low_rank,
    HashRows: _hash_rows,
    Distill: _distill,
    Int8Network: _int8_network,
}
"""Step => (context, ranker whose network may be changed in place, settings) => network."""


# ---------------------------------------------------------------- the exported graph
Layers = tuple[LayerCost, ...]


def _int8(context: BuildContext, ranker: Ranker, graph: Graph, step: Int8, source: Path, target: Path) -> Layers:
    samples = calibration_samples(context, ranker, graph, step.calibration_queries)
    named, layers = quantize_graph.sensitive_named(source, samples, step, graph.name)
    quantize_graph.int8_from_onnx(source, target, samples, named)
    return layers


def _dynamic_int8(
    context: BuildContext, ranker: Ranker, graph: Graph, step: DynamicInt8, source: Path, target: Path
) -> Layers:
    quantize_graph.dynamic_int8_from_onnx(source, target)
    return ()


def _int8_embeddings(
    context: BuildContext, ranker: Ranker, graph: Graph, step: Int8Embeddings, source: Path, target: Path
) -> Layers:
    samples = calibration_samples(context, ranker, graph, EMBEDDING_SAMPLES)
    quantize_graph.int8_embeddings_from_onnx(source, target, samples, step)
    return ()


def _fp16(context: BuildContext, ranker: Ranker, graph: Graph, step: Fp16, source: Path, target: Path) -> Layers:
    fp16_from_onnx(source, target, calibration_samples(context, ranker, graph, FP16_SAMPLES), step.keep_fp32)
    return ()


GRAPH_STEPS: Mapping[type[GraphStep], Callable[[BuildContext, Ranker, Graph, Any, Path, Path], Layers]] = {
    Int8: _int8,
    DynamicInt8: _dynamic_int8,
    Int8Embeddings: _int8_embeddings,
    Fp16: _fp16,
}
"""Step => (context, ranker, graph, settings, ONNX, ONNX to write) => what quantizing each layer costs, where it was
measured. A step that leaves the graph as it is (bf16) is performed by the runtime."""


def performed(step: CompressionStep, steps: Mapping[type[Any], Callable[..., Any]]) -> Callable[..., Any]:
    """The function of a step. Raises: TypeError: none is named above."""
    if type(step) not in steps:
        raise TypeError(f"{type(step).__name__} has no function in builders/compress/apply.py")
    return steps[type(step)]
