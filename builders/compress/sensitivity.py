"""Which layers a variant's static INT8 costs most: each quantized alone, on calibration's own requests."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from builders.compress.chain import compressed, exported
from builders.compress.context import Say, build_context, calibration_samples
from builders.compress.quantize_graph import LayerCost, layer_costs
from builders.core.recipe import Recipe, RecipeError, Variant
from builders.core.steps import Int8
from builders.core.workspace import PROJECT, Workspace
from builders.data.beir import JudgedQueries
from builders.rankers.load import load_ranker


def sensitivity_table(
    recipe: Recipe, variant: Variant, data: JudgedQueries, say: Say, workspace: Workspace = PROJECT
) -> Table:
    """A row a layer, the most costly first.

    Raises:
        RecipeError: the variant has no static int8 step.
    """
    step = next((step for step in variant.graph_steps if isinstance(step, Int8)), None)
    if step is None:
        raise RecipeError(f"{recipe.model_name(variant)}: no static int8 step, whose layers could be told apart")
    context = build_context(recipe, load_ranker(recipe), data, say, workspace)
    ranker = compressed(context, variant.network_steps).ranker
    layers: list[LayerCost] = []
    for graph in ranker.graphs:
        if not graph.keep_fp32:
            made = exported(context, variant.network_steps, graph)
            samples = calibration_samples(context, ranker, graph, step.calibration_queries)
            layers.extend(layer_costs(made.path, samples, step, graph.name))
    return layers_table(layers, recipe.model_name(variant))


def layers_table(layers: Sequence[LayerCost], title: str) -> Table:
    """As they come."""
    table = Table("graph", "layer", "change of the score, of its deviation", "", title=title, title_justify="left")
    for layer in layers:
        kept = "kept in FP32" if layer.kept_fp32 else ""
        table.add_row(layer.graph, layer.node, f"{layer.cost:.4f}", kept)
    return table
