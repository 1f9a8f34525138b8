"""A variant's gate as tables: figures with limits, and the queries that it serves worst with both rankers' lists."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from builders.compress.quantize_graph import LayerCost
from builders.compress.sensitivity import layers_table
from builders.core.recipe import Recipe
from builders.data.beir import JudgedQueries
from builders.evaluate.judge import BuiltVariant

TITLE_CHARACTERS = 50


def gate_tables(recipe: Recipe, built: BuiltVariant, data: JudgedQueries) -> list[Table]:
    """Figures; then a table for each of the worst queries. The reference has figures of its own alone."""
    report = built.figures.get("report")
    if report is None:
        return [_reference_table(recipe, built)]
    layers = [LayerCost(**layer) for layer in built.figures["layers"]]
    return [
        _figures_table(recipe, built, report),
        *([layers_table(layers, "Each layer quantized alone")] if layers else []),
        *(_query_table(one, data) for one in report["worst"]),
    ]


def _reference_table(recipe: Recipe, built: BuiltVariant) -> Table:
    table = Table("figure", "found", title=f"{recipe.model_name(built.variant)}: the reference", title_justify="left")
    table.add_row(f"NDCG@10{_sampled(built)}", f"{built.figures['ndcg_at_10']:.4f}")
    table.add_row(f"queries, {built.figures['half']}", str(built.figures["queries"]))
    return table


def _figures_table(recipe: Recipe, built: BuiltVariant, report: dict[str, Any]) -> Table:
    limits = recipe.gate_of(built.variant)
    title = f"{recipe.model_name(built.variant)}: {'passed' if built.passed else 'FAILED'}"
    table = Table("figure", "found", "reference", "limit", title=title, title_justify="left")
    for name, means in report["metrics"].items():
        table.add_row(f"{name}{_sampled(built)}", f"{means['found']:.4f}", f"{means['reference']:.4f}", "")
    judged, mean = report["judged"], report["metrics"][report["metric"]]["reference"]
    interval = f"{judged['mean_difference']:+.4f} [{judged['low']:+.4f}, {judged['high']:+.4f}]"
    half = built.figures["validation"]["half"]
    table.add_row(f"{report['metric']}, difference over {judged['queries']} queries ({half})", interval, "", "")
    low = f"{judged['low'] / mean:+.2%}" if mean else "no reference"
    table.add_row("lower end of it, of the reference", low, "", f"at least {-limits.max_judged_loss:+.2%}")
    if fidelity := report["fidelity"]:
        limit = f"at least {limits.min_fidelity_ndcg:.4f}"
        table.add_row(f"fidelity NDCG@10 over {fidelity['lists']:,} lists", f"{fidelity['ndcg']:.4f}", "", limit)
        table.add_row("top-10 overlap there", f"{fidelity['top_10_overlap']:.3f}", "", "")
    table.add_row("top-10 overlap, judged", f"{report['top_10_overlap']:.3f}", "", "")
    table.add_row("Kendall's tau, judged", f"{report['kendall_tau']:.3f}", "", "")
    table.add_row("NaN or infinite scores", str(report["not_finite"]), "", "0")
    return table


def _sampled(built: BuiltVariant) -> str:
    """How candidates were drawn, where they are not all that were judged: it changes which ranker is ahead."""
    return f" ({built.figures['sampled']})" if built.figures["sampled"] else ""


def _query_table(one: dict[str, Any], data: JudgedQueries) -> Table:
    title = f"'{one['query'] or one['query_id']}': {one['reference']:.3f} => {one['found']:.3f}"
    table = Table("", "reference", "variant", title=title, title_justify="left")
    for place, (wanted, found) in enumerate(zip(one["reference_items"], one["found_items"], strict=True), 1):
        cells = [_item(item_id, one["query_id"], data) for item_id in (wanted, found)]
        table.add_row(str(place), *cells, style=None if wanted == found else "yellow")
    return table


def _item(item_id: str, query_id: str, data: JudgedQueries) -> str:
    return f"{data.judgements[query_id].get(item_id, '-')} {data.products[item_id].title[:TITLE_CHARACTERS]}"
