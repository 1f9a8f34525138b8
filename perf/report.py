"""One self-contained HTML page from the figures kept: quality, real lists, speed, checks, and what they stand on.

Plots are plotly's, with its script in the page; a content security policy in the page forbids it to fetch anything.
Computes no figure.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.offline

from perf.analyzer import GRPC
from perf.examples import telling_queries
from perf.kit.data import GRADES, PROJECT, JudgedQueries, Workspace, write_atomically
from perf.kit.figures import slices_of_search, worst_text
from perf.kit.served import FUSED
from perf.machine import this_machine
from perf.plots import GRID_COLOR, TEXT_COLOR, UnderLoad, cycled_colors, figure_html, load_figure, styled
from perf.served_quality import FIRST_STAGE, Difference, RankerQuality, ServedQuality
from perf.sweep import PerfReport, Point, read_perf
from perf.tables import foreign_text, interval_text, latency_texts, readable, speedup_text

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_ITEMS = 10


def write_report(judged: JudgedQueries, found: ServedQuality, *, workspace: Workspace = PROJECT) -> Path:
    """Write ``report.html`` beside the figures, with the speed kept last where there is one.

    Returns:
        Its path.
    """
    path = workspace.build / "report" / "report.html"
    write_atomically(path, render_report(judged, found, read_perf(workspace)))
    return path


def render_report(judged: JudgedQueries, found: ServedQuality, perf: PerfReport | None = None) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    slices = slices_of_search(judged, found.ranker(found.published).ndcg)
    environment.filters.update(readable=readable, speedup=speedup_text, interval=interval_text, latencies=latency_texts)
    return environment.get_template("report.html.j2").render(
        judged=judged,
        found=found,
        perf=perf,
        machine=perf.machine if perf else this_machine(),
        first_stage=FIRST_STAGE,
        grades=GRADES,
        lists=example_lists(judged, found),
        others=lambda point: foreign_text(point.foreign_share, disturbed=point.disturbed > 0),
        slices=slices,
        worst_slice=worst_text(slices),
        shown_items=SHOWN_ITEMS,
        pairs=sum(len(judged.judgements[query_id]) for query_id in judged.queries),
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        plotly_script=plotly.offline.get_plotlyjs(),
        forest_plot=figure_html(forest_figure(found.differences)),
        latency_plot=figure_html(latency_figure(perf.points)) if perf else None,
        steps_plot=figure_html(steps_figure(perf.points)) if perf else None,
    )


def example_lists(judged: JudgedQueries, found: ServedQuality) -> list[dict[str, Any]]:
    """Telling test queries with the first items of the first stage and of ``rank``; ``came_from``: place before."""
    before, after = found.ranker(FIRST_STAGE), found.ranker(found.published)
    of_test = {query_id: after.ndcg[query_id] for query_id in judged.subset("test").queries if query_id in after.ndcg}
    return [
        {
            "query": judged.queries[query_id],
            "why": why,
            "candidates": len(before.rankings[query_id]),
            "columns": [_column(judged, query_id, row, before) for row in (before, after)],
        }
        for query_id, why in telling_queries(before.ndcg, of_test).items()
    ]


def forest_figure(differences: Sequence[Difference]) -> go.Figure:
    """Paired differences of NDCG@10 with their intervals, a line at zero."""
    labels = [f"{each.found}<br>− {readable(each.reference)}" for each in differences]
    intervals = [each.interval for each in differences]
    figure = go.Figure(
        go.Scatter(
            x=[interval.mean_difference for interval in intervals],
            y=labels,
            mode="markers",
            marker={"size": 10, "color": [_verdict_color(interval.low, interval.high) for interval in intervals]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [interval.high - interval.mean_difference for interval in intervals],
                "arrayminus": [interval.mean_difference - interval.low for interval in intervals],
                "color": TEXT_COLOR,
                "thickness": 2,
            },
            hovertemplate="%{x:+.4f}<extra></extra>",
        )
    )
    figure.add_vline(x=0, line={"color": TEXT_COLOR, "dash": "dot"})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title="difference of NDCG@10, > 0 is better", nticks=5, tickangle=0)
    return styled(figure, height=110 + 48 * len(differences))


def latency_figure(points: Sequence[Point]) -> go.Figure:
    """Latency, and its queue and compute, over the rate that was reached, an endpoint and kind of load a line."""
    return load_figure([_under_load(point) for point in points], "p99")


def _under_load(point: Point) -> UnderLoad:
    kind = "closed loop" if point.rate_per_s is None else "open loop"
    transport = "" if point.transport == GRPC else f", {point.transport}"
    return UnderLoad(
        series=f"{point.endpoint}, {kind}{transport}",
        requests_per_s=point.requests_per_s,
        requests=point.requests,
        p50_ms=point.p50_ms,
        high_ms=point.p99_ms,
        queue_ms=sum(step.queue_ms for step in point.steps) if point.steps else None,
        compute_ms=sum(step.compute_ms for step in point.steps) if point.steps else None,
        label=str(point.load),
    )


def steps_figure(points: Sequence[Point]) -> go.Figure:
    """Queue and compute of each composing model under the first load, stacked."""
    lowest = points[0].load
    chosen = [point for point in points if point.load == lowest and point.steps]
    figure = go.Figure()
    roles = [role for role in ROLES if any(_role_of(step.model) == role for point in chosen for step in point.steps)]
    for color, role in zip(cycled_colors(), roles, strict=False):
        figure.add_bar(
            name=f"{role}: compute",
            orientation="h",
            y=[point.endpoint for point in chosen],
            x=[sum(step.compute_ms for step in point.steps if _role_of(step.model) == role) for point in chosen],
            marker={"color": color},
            hovertemplate="%{x:.2f} ms<extra>%{fullData.name}</extra>",
        )
    figure.add_bar(
        name="queues of all steps",
        orientation="h",
        y=[point.endpoint for point in chosen],
        x=[sum(step.queue_ms for step in point.steps) for point in chosen],
        marker={"color": GRID_COLOR},
        hovertemplate="%{x:.2f} ms<extra>%{fullData.name}</extra>",
    )
    figure.update_layout(barmode="stack")
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title=f"mean ms a request, {lowest}", nticks=5, tickangle=0)
    return styled(figure, height=150 + 40 * len(chosen), legend=True)


ROLES = ("pre-processing", "scoring", "post-processing", "all in one process")


def _role_of(model: str) -> str:
    if model.endswith("_preprocess"):
        return ROLES[0]
    if model.endswith(FUSED):
        return ROLES[3]
    return ROLES[2] if model == "postprocess" else ROLES[1]


def _column(judged: JudgedQueries, query_id: str, row: RankerQuality, before: RankerQuality) -> dict[str, Any]:
    place_before = {item_id: place for place, item_id in enumerate(before.rankings[query_id], start=1)}
    return {
        "name": readable(row.name),
        "ndcg": row.ndcg[query_id],
        "items": [
            {
                "title": judged.products[item_id].title,
                "grade": judged.judgements[query_id][item_id],
                "came_from": place_before[item_id],
            }
            for item_id in row.rankings[query_id][:SHOWN_ITEMS]
        ],
    }


def _verdict_color(low: float, high: float) -> str:
    """Green: the interval lies above zero; red: below; grey: it holds zero."""
    return "#2f9e6e" if low > 0 else "#d1495b" if high < 0 else TEXT_COLOR
