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
import plotly.io
import plotly.offline

from perf.examples import telling_queries
from perf.kit.data import GRADES, PROJECT, JudgedQueries, Workspace, write_atomically
from perf.kit.figures import slices_of_search, worst_text
from perf.kit.served import FUSED
from perf.machine import this_machine
from perf.served_quality import FIRST_STAGE, Difference, RankerQuality, ServedQuality
from perf.sweep import PerfReport, Point, read_perf
from perf.tables import interval_text, readable, speedup_text

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_ITEMS = 10
COLORS = ("#3b7dd8", "#e08a1e", "#2f9e6e", "#a05fc9", "#d1495b", "#6b7a8f")
"""Readable on white and on near black."""
TEXT_COLOR, GRID_COLOR = "#7d8796", "rgba(125, 135, 150, 0.25)"
PLOT_CONFIG = {"displayModeBar": False, "responsive": True}


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
    environment.filters.update(readable=readable, speedup=speedup_text, interval=interval_text)
    return environment.get_template("report.html.j2").render(
        judged=judged,
        found=found,
        perf=perf,
        machine=perf.machine if perf else this_machine(),
        first_stage=FIRST_STAGE,
        grades=GRADES,
        lists=example_lists(judged, found),
        slices=slices,
        worst_slice=worst_text(slices),
        shown_items=SHOWN_ITEMS,
        pairs=sum(len(judged.judgements[query_id]) for query_id in judged.queries),
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        plotly_script=plotly.offline.get_plotlyjs(),
        forest_plot=_html(forest_figure(found.differences)),
        latency_plot=_html(latency_figure(perf.points)) if perf else None,
        steps_plot=_html(steps_figure(perf.points)) if perf else None,
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
    return _styled(figure, height=110 + 48 * len(differences))


def latency_figure(points: Sequence[Point]) -> go.Figure:
    """p50 with a bar up to p99, over concurrency, an endpoint a line."""
    figure = go.Figure()
    for color, endpoint in zip(_cycled_colors(), dict.fromkeys(point.endpoint for point in points), strict=False):
        mine = sorted((point for point in points if point.endpoint == endpoint), key=lambda point: point.concurrency)
        figure.add_scatter(
            name=endpoint,
            x=[str(point.concurrency) for point in mine],
            y=[point.p50_ms for point in mine],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [point.p99_ms - point.p50_ms for point in mine],
                "arrayminus": [0 for _ in mine],
            },
            mode="lines+markers",
            line={"color": color},
            hovertemplate="%{y:.1f} ms<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title="requests at once", type="category")
    figure.update_yaxes(title="latency, ms (p50, bar to p99)", type="log", nticks=8)
    return _styled(figure, height=380, legend=True)


def steps_figure(points: Sequence[Point]) -> go.Figure:
    """Queue and compute of each composing model at the lowest concurrency, stacked."""
    lowest = min(point.concurrency for point in points)
    chosen = [point for point in points if point.concurrency == lowest and point.steps]
    figure = go.Figure()
    roles = [role for role in ROLES if any(_role_of(step.model) == role for point in chosen for step in point.steps)]
    for color, role in zip(_cycled_colors(), roles, strict=False):
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
    figure.update_xaxes(title=f"mean ms a request, {lowest} at once", nticks=5, tickangle=0)
    return _styled(figure, height=150 + 40 * len(chosen), legend=True)


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


def _cycled_colors() -> list[str]:
    return list(COLORS) * 4


def _styled(figure: go.Figure, *, height: int, legend: bool = False) -> go.Figure:
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 16, "t": 8, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": TEXT_COLOR, "family": "system-ui, sans-serif", "size": 12},
        showlegend=legend,
        legend={"orientation": "h", "traceorder": "normal", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    figure.update_xaxes(gridcolor=GRID_COLOR, zeroline=False, automargin=True, title_standoff=8)
    figure.update_yaxes(gridcolor=GRID_COLOR, zeroline=False, automargin=True)
    return figure


def _html(figure: go.Figure) -> str:
    """The figure's element and script, without plotly's own script and without markup of ours to escape."""
    return str(plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config=PLOT_CONFIG))
