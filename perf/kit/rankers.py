"""Rankers in this process: loaded, built and gated, published, and run by torch and by ONNX Runtime. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from builders.build import build_ranker, build_variants
from builders.core.contract import Contract, Tensor
from builders.core.recipe import Recipe, Variant
from builders.core.runtimes import Session
from builders.core.versions import OPSET
from builders.core.workspace import Workspace
from builders.data.beir import JudgedQueries, Product, Request
from builders.data.evaluation import judging_queries
from builders.evaluate import judge
from builders.evaluate.judge import BuiltRanker, BuiltVariant, Scores, runs_of, runs_without_padding
from builders.export.onnx import onnx_from_ranker, run_onnx
from builders.features.encoder import Feature, dense, history, sparse
from builders.features.prompts import padded_sequences, split_sequences
from builders.publish import catalogue, endpoints
from builders.rankers.backbone import packaged_backbone
from builders.rankers.base import Graph, Ranker, Sample
from builders.rankers.dcn_v2 import DCNv2
from builders.rankers.feature_ranker import REQUEST_VECTOR, FeatureRanker
from builders.rankers.imported.causal_graphs import prefix_graphs, whole_graph
from builders.rankers.imported.causal_network import CausalScorer
from builders.rankers.load import load_ranker

__all__ = [
    "OPSET",
    "REQUEST_VECTOR",
    "BuiltRanker",
    "BuiltVariant",
    "CausalScorer",
    "Contract",
    "DCNv2",
    "Feature",
    "FeatureRanker",
    "Graph",
    "Ranker",
    "Sample",
    "Scores",
    "Session",
    "Tensor",
    "build_ranker",
    "build_variants_of",
    "dense",
    "fill_store",
    "history",
    "in_process_score",
    "load_ranker",
    "onnx_from_ranker",
    "packaged_backbone",
    "padded_sequences",
    "prefix_graphs",
    "publish",
    "run_onnx",
    "runs_of",
    "runs_without_padding",
    "sessions_of",
    "sparse",
    "split_sequences",
    "torch_scores",
    "whole_graph",
]

Say = Callable[[str], None]
"""Takes a line for the user."""


def build_variants_of(
    recipe: Recipe,
    ranker: Ranker,
    data: JudgedQueries,
    say: Say,
    workspace: Workspace,
    *,
    fidelity_lists: int | None = None,
) -> BuiltRanker:
    """A ranker that is in this process already, with the variants of ``recipe``, judged on ``data``.

    Args:
        fidelity_lists: of the gate, in place of the recipe's.
    """
    variants = build_variants(recipe, ranker, data, say, workspace, fidelity_lists=fidelity_lists)
    return BuiltRanker(recipe, ranker, variants, data)


def fill_store(ranker: Ranker, recipe: Recipe, data: JudgedQueries, say: Say, workspace: Workspace) -> None:
    """Store what the ranker needs of the items and users that are not in the store yet."""
    catalogue.fill_item_store([BuiltRanker(recipe, ranker, (), data)], say, workspace)


def publish(
    rankers: Sequence[BuiltRanker],
    note: str,
    say: Say,
    workspace: Workspace,
    *,
    serves: Mapping[str, str] | None = None,
    gated: bool = True,
) -> None:
    """Fill the item store, write models and endpoints.

    Args:
        note: on the data, for the manifest.
        serves: endpoint => variant that its short name serves; what is not named goes on as it is.
        gated: leave out what failed its gate.
    """
    catalogue.fill_item_store(rankers, say, workspace)
    endpoints.publish_rankers(rankers, serves or {}, note, say, workspace, gated=gated)


def torch_scores(recipe: Recipe, ranker: Ranker, data: JudgedQueries, say: Say, workspace: Workspace) -> Scores:
    """Query id => item id => the torch module's own score, for all of ``data`` that may judge the ranker."""
    return judge.torch_scores(recipe, ranker, judging_queries(recipe, data), say, workspace)


def sessions_of(recipe: Recipe, variant: Variant, ranker: Ranker, files: Sequence[Path]) -> dict[str, Session]:
    """Graph name => session on its file, with the threads that the recipe gives the server.

    Args:
        files: of the ranker's graphs, in their order.
    """
    models = {graph.name: ("", path) for graph, path in zip(ranker.graphs, files, strict=True)}
    return judge.open_sessions(recipe, variant, models, ranker.graphs)


def in_process_score(
    recipe: Recipe, ranker: Ranker, sessions: Mapping[str, Session], request: Request, products: Sequence[Product]
) -> np.ndarray:
    """FP32 [candidates]: what the server orders by, computed by these sessions."""
    scores = judge.score_in_process(ranker, sessions, request, products)
    return judge.as_served(recipe, ranker, request, products, scores)
