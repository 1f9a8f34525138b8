"""What plots of figures share: how they look, and latency against load. Computes no figure."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import plotly.graph_objects as go
import plotly.io
from plotly.subplots import make_subplots

COLORS = ("#3b7dd8", "#e08a1e", "#2f9e6e", "#a05fc9", "#d1495b", "#6b7a8f")
"""Readable on white and on near black."""
TEXT_COLOR, GRID_COLOR = "#7d8796", "rgba(125, 135, 150, 0.25)"
PLOT_CONFIG = {"displayModeBar": False, "responsive": True}


@dataclasses.dataclass(frozen=True)
class UnderLoad:
    """What a plot of latency against load draws of one measurement.

    Attributes:
        series: points of one line.
        high_ms: end of the bar above p50.
        queue_ms, compute_ms: of all steps, means; None = not known.
    """

    series: str
    requests_per_s: float
    requests: int
    p50_ms: float
    high_ms: float
    queue_ms: float | None
    compute_ms: float | None
    label: str


def load_figure(found: Sequence[UnderLoad], high: str) -> go.Figure:
    """p50 with a bar up to a high percentile (left), queue and compute (right), both over requests/s.

    Args:
        high: name of the high percentile.
    """
    panels = ("latency", "where it goes: compute, and queue dashed")
    figure = make_subplots(cols=2, horizontal_spacing=0.1, subplot_titles=panels)
    for color, series in zip(cycled_colors(), dict.fromkeys(each.series for each in found), strict=False):
        mine = sorted((each for each in found if each.series == series), key=lambda each: each.requests_per_s)
        line = {"name": series, "legendgroup": series, "x": [each.requests_per_s for each in mine]}
        figure.add_scatter(
            **line,
            y=[each.p50_ms for each in mine],
            error_y=bars_above([each.high_ms - each.p50_ms for each in mine]),
            mode="lines+markers",
            line={"color": color},
            text=[
                f"{each.label}: p50 {each.p50_ms:.1f} ms, {high} {each.high_ms:.1f} ms of {each.requests:,} requests"
                for each in mine
            ],
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            row=1,
            col=1,
        )
        for name, dash in (("compute", "solid"), ("queue", "dash")):
            figure.add_scatter(
                **line,
                y=[getattr(each, f"{name}_ms") for each in mine],
                mode="lines+markers",
                line={"color": color, "dash": dash},
                showlegend=False,
                hovertemplate=f"{name} %{{y:.2f}} ms at %{{x:.1f}}/s<extra>%{{fullData.name}}</extra>",
                row=1,
                col=2,
            )
    figure.update_xaxes(title="requests/s", rangemode="tozero")
    figure.update_yaxes(title=f"ms (p50, bar to {high})", type="log", nticks=8, col=1)
    figure.update_yaxes(title="mean ms a request", rangemode="tozero", col=2)
    styled(figure, height=420, legend=True)
    figure.update_layout(margin_t=40, legend={"y": -0.2, "yanchor": "top"})
    return figure


def bars_above(heights: Sequence[float]) -> go.scatter.ErrorY:
    """Bars from each point up by its height, and none down."""
    return go.scatter.ErrorY(type="data", symmetric=False, array=heights, arrayminus=[0 for _ in heights])


def cycled_colors() -> Iterator[str]:
    """Without end."""
    return itertools.cycle(COLORS)


def styled(figure: go.Figure, *, height: int, legend: bool = False) -> go.Figure:
    """In the colours of the page around it."""
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


def figure_html(figure: go.Figure) -> str:
    """The figure's element and script, without plotly's own script and without markup of ours to escape."""
    return str(plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config=PLOT_CONFIG))
