"""The TensorRT variants of recipes: their gated ONNX graphs => engines, and where a graph departs from FP32.

Knows nothing of how an engine is built (:mod:`builders.engines.build`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from builders.compress.bisect import bisect
from builders.compress.chain import variant_files
from builders.compress.context import BuildContext, Say, build_context, calibration_samples
from builders.core.recipe import Recipe, RecipeError, Variant
from builders.core.runtimes import ONNX, runtime_of
from builders.core.workspace import PROJECT, Workspace
from builders.data.beir import JudgedQueries
from builders.data.evaluation import evaluation_data
from builders.engines.build import BuildOptions, Precision
from builders.engines.build_all import WantedEngine, build_engines
from builders.engines.parity import check_engine
from builders.engines.profiles import profiles_of
from builders.rankers.base import Graph
from builders.rankers.load import load_ranker

BISECT_SAMPLES = 4


def build_plans(
    recipes: Sequence[Recipe],
    data: Path,
    say: Say,
    workspace: Workspace = PROJECT,
    *,
    require: bool = False,
    options: BuildOptions | None = None,
) -> dict[str, Path]:
    """Model name => plan, of every TensorRT variant; none on a machine that cannot build engines.

    Args:
        data: folder, as :func:`builders.data.find.find_data` found it.
        require, options: as for :func:`builders.engines.build_all.build_engines`; a machine without cuBLAS and cuDNN
            leaves them out of the options' ``tactic_sources``.

    Raises:
        TensorRTMissing, EngineError, StoreLocked: as :func:`builders.engines.build_all.build_engines`; a plan that
            computes something else than its graph is an EngineError, too.
    """
    wanted = [engine for recipe in recipes for engine in _wanted(recipe, data, say, workspace)]
    built = build_engines(wanted, workspace.build / "engines", say, require=require, options=options)
    return {model: engine.plan for model, engine in built.items()}


def bisect_variant(
    recipe: Recipe, variant: Variant, data: JudgedQueries, say: Say, workspace: Workspace = PROJECT
) -> str:
    """The layers at which the variant's ONNX graphs depart from the reference's, on real requests; the most first.

    Raises:
        RecipeError: the variant's graphs are not ONNX, or have other layers than the reference's.
    """
    if variant.runtime.converts is not None or variant.network_steps[:-1] or variant.exact:
        raise RecipeError(
            f"{recipe.model_name(variant)}: wanted an ONNX or TensorRT variant that changes nothing but types; "
            "bisect int8_onnx, say, in its place"
        )
    context = build_context(recipe, load_ranker(recipe), data, say, workspace)
    reference, found = variant_files(context, recipe.variants[0]), variant_files(context, variant)
    texts = [
        bisect(reference[graph.name].path, found[graph.name].path,
               calibration_samples(context, context.ranker, graph, BISECT_SAMPLES))
        for graph in context.ranker.graphs
        if found[graph.name].path != reference[graph.name].path
    ]  # fmt: skip
    return "\n".join(texts)


def _wanted(recipe: Recipe, data: Path, say: Say, workspace: Workspace) -> Iterator[WantedEngine]:
    context = build_context(recipe, load_ranker(recipe), evaluation_data(recipe.data, data), say, workspace)
    for variant in recipe.variants:
        if variant.runtime.needs_gpu:
            yield from _engines_of(context, variant)


def _engines_of(context: BuildContext, variant: Variant) -> Iterator[WantedEngine]:
    fallback = context.recipe.variants[0].name
    for graph in context.ranker.graphs:
        made = variant_files(context, variant)[graph.name]
        if made.model.endswith(variant.name) and runtime_of(made.path) is ONNX:
            precision = precision_of(variant)
            check = functools.partial(_check, context, graph, made.path, precision)
            yield WantedEngine(made.model, graph, made.path, precision, f"{graph.name}_{fallback}", check)


def _check(context: BuildContext, graph: Graph, onnx_file: Path, precision: Precision, plan: Path) -> None:
    """Torch, ONNX Runtime and TensorRT on a real request. Raises: ValueMismatch."""
    sample, *_ = calibration_samples(context, context.ranker, graph, 1)
    found = check_engine(graph, onnx_file, plan, profiles_of(graph), sample, precision)
    worst = max(found, key=lambda one: one.from_onnx)
    context.say(
        f"{onnx_file.stem}: parity at {len(found)} shapes, largest difference from ONNX Runtime {worst.from_onnx:.1e}, "
        f"from torch in FP32 {max(one.from_torch for one in found):.1e}"
    )


def precision_of(variant: Variant) -> Precision:
    """What its engines must turn out to be."""
    if variant.quantized:
        return "int8"
    return "fp16" if variant.precision == "fp16" else "fp32"
