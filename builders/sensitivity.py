"""Which layers a variant's static INT8 costs most: each quantized alone, on calibration's own requests."""

from __future__ import annotations

from rich.table import Table

from builders.beir import JudgedQueries
from builders.build import PROJECT, Places, chain_of, load_ranker
from builders.quantize import sensitivity
from builders.recipe import Recipe, RecipeError, Variant
from builders.steps import Int8
from builders.variants import Say, calibration_samples, compressed, exported


def sensitivity_table(
    recipe: Recipe, variant: Variant, data: JudgedQueries, say: Say, places: Places = PROJECT
) -> Table:
    """A row a layer, the most costly first.

    Raises:
        RecipeError: the variant has no static int8 step.
    """
    step = next((step for step in variant.graph_steps if isinstance(step, Int8)), None)
    if step is None:
        raise RecipeError(f"{recipe.model_name(variant)}: no static int8 step, whose layers could be told apart")
    chain = chain_of(recipe, load_ranker(recipe), data, say, places)
    ranker, _, _ = compressed(chain, variant.network_steps)
    table = Table("graph", "layer", "change of the score, of its deviation", title=recipe.model_name(variant))
    for graph in ranker.graphs:
        if not graph.precise:
            made = exported(chain, variant.network_steps, graph, f"{graph.name}_{recipe.variants[0].name}")
            samples = calibration_samples(chain, ranker, graph, step.calibration_queries)
            for node, cost in sensitivity(made.path, samples, step).items():
                table.add_row(graph.name, node, f"{cost:.4f}", style="yellow" if node in step.keep_fp32 else None)
    return table
