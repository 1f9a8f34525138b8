"""The figures of ``make scale`` as one self-contained HTML page. Computes no figure."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2
import plotly.graph_objects as go
import plotly.io
import plotly.offline

from perf.kit.data import write_atomically
from perf.plots import COLORS, GRID_COLOR, PLOT_CONFIG, TEXT_COLOR, bars_above
from perf.report import TEMPLATES
from perf.scale import BESIDE_WRITER, PREPROCESS, RANK, SIMILAR, ScalePoint, ScaleReport, bends


def write_scale(report: ScaleReport, folder: Path) -> list[Path]:
    """``scale.json`` and the page ``scale.html``."""
    figures = json.dumps(dataclasses.asdict(report), indent=1) + "\n"
    written = {"scale.json": figures, "scale.html": render_scale(report)}
    for name, content in written.items():
        write_atomically(folder / name, content)
    return [folder / name for name in written]


def render_scale(report: ScaleReport) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    plots = [_html(figure) for figure in (by_items(report), by_candidates(report), by_concurrency(report))]
    return environment.get_template("scale.html.j2").render(
        report=report,
        sentences=bends(report),
        plots=plots,
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        plotly_script=plotly.offline.get_plotlyjs(),
    )


def by_items(report: ScaleReport) -> go.Figure:
    """p50 with a bar to p99 over the catalogue's items, one request at a time."""
    lines = {
        what: [one for one in report.of(what) if one.load == type(one.load)(what)]
        for what in (PREPROCESS, RANK, SIMILAR, BESIDE_WRITER)
    }
    return _lines(lines, lambda one: one.items, "items of the catalogue")


def by_candidates(report: ScaleReport) -> go.Figure:
    """The same over the candidates of a request, a catalogue a line."""
    alone = [one for one in report.of(RANK) if one.load.concurrency == 1]
    lines = {f"rank, {each.items:,} items": _of_items(alone, each.items) for each in report.catalogues}
    return _lines(lines, lambda one: one.load.candidates, "candidates of a request")


def by_concurrency(report: ScaleReport) -> go.Figure:
    """The same over requests at once, of the largest catalogue."""
    largest = report.catalogues[-1].items
    lines = {
        f"{what}, {count} server{'s' * (count > 1)}": [
            one for one in _of_items(report.of(what, processes=count), largest) if one.load.candidates == 40
        ]
        for what in (RANK, SIMILAR)
        for count in dict.fromkeys(point.processes for point in report.points)
    }
    return _lines(lines, lambda one: one.load.concurrency, f"requests at once, {largest:,} items")


def _of_items(points: Sequence[ScalePoint], items: int) -> list[ScalePoint]:
    return [point for point in points if point.items == items]


def _lines(lines: dict[str, list[ScalePoint]], place: Callable[[ScalePoint], int], title: str) -> go.Figure:
    figure = go.Figure()
    for color, (name, points) in zip(COLORS * 4, lines.items(), strict=False):
        ordered = sorted(points, key=place)
        figure.add_scatter(
            name=name,
            x=[place(point) for point in ordered],
            y=[point.p50_ms for point in ordered],
            error_y=bars_above([point.p99_ms - point.p50_ms for point in ordered]),
            text=[f"n {point.answered:,}" for point in ordered],
            mode="lines+markers",
            line={"color": color},
            hovertemplate="p50 %{y:.2f} ms, %{text}<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title=title, type="log", gridcolor=GRID_COLOR)
    figure.update_yaxes(title="ms (p50, bar to p99)", type="log", gridcolor=GRID_COLOR)
    figure.update_layout(
        height=380,
        margin={"l": 8, "r": 16, "t": 8, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": TEXT_COLOR, "family": "system-ui, sans-serif", "size": 12},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure


def _html(figure: go.Figure) -> str:
    return str(plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config=PLOT_CONFIG))
