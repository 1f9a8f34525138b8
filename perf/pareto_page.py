"""A recipe's variants as one self-contained HTML page: quality against cost and against p99, and all figures.

Plots are plotly's, with its script in the page; a content security policy forbids the page to fetch anything. Computes
no figure.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jinja2
import plotly.graph_objects as go
import plotly.io
import plotly.offline
from plotly.subplots import make_subplots

from perf.kit.figures import BYTES_PER_MB, ParetoReport, VariantFigures, cost_text
from perf.pareto_text import interval_text, layer_text, table_cells, table_headings

TEMPLATES = Path(__file__).parent / "templates"
INK, GRID = "#7d8796", "rgba(125, 135, 150, 0.25)"
"""Readable on white and on near black."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Points drawn alike."""

    name: str
    color: str
    symbol: str
    size: int


FRONT = Group("on the Pareto front", "#3b7dd8", "circle", 13)
DOMINATED = Group("dominated", "#a3abb6", "circle", 10)
FAILED = Group("failed its gate", "#d1495b", "x-thin", 10)
REFERENCE = Group("the reference", FRONT.color, "diamond-open-dot", 14)
REFERENCE_DOMINATED = dataclasses.replace(REFERENCE, name="the reference, dominated", color=DOMINATED.color)
PAGE_WIDTH, PAGE_HEIGHT = 1180, 560
MARGIN = {"l": 76, "r": 16, "t": 44, "b": 64}
GAP = 0.05
"""Between the two panels, share of the width inside the margins."""
LOG_FROM = 5.0
"""Largest over smallest value from which an axis is logarithmic."""
PAD = 0.14
"""Of an axis' span, beyond its first and last point."""
LABEL_SIZE, CHARACTER_PX, LINE_PX = 11, 6.3, 15
MARKER_PX = 9
HOVER_COLUMNS = 96


def render_pareto(report: ParetoReport) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    figure = pareto_figure(report)
    return environment.get_template("pareto.html.j2").render(
        report=report,
        headings=table_headings(report),
        rows=[(row, table_cells(row)) for row in report.rows],
        layer_text=layer_text,
        plotly_script=plotly.offline.get_plotlyjs(),
        plot=plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config={"displayModeBar": False}),
    )


def pareto_figure(report: ParetoReport) -> go.Figure:
    """Quality over cost (left) and over p99 (right), every variant in both; better is up and to the left."""
    rows = report.rows
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=GAP)
    y_axis = axis_of(_ends(rows), log=False)
    panels = [
        ([row.cost_per_million for row in rows], f"cost, {report.currency} per million candidates"),
        ([row.p99_ms for row in rows], f"p99 latency, ms, {report.concurrency} requests at once"),
    ]
    for column, (values, title) in enumerate(panels, start=1):
        x_axis = axis_of(values)
        for group, members in grouped(rows):
            figure.add_trace(
                _points(group, [(row, values[rows.index(row)]) for row in members], column == 1), 1, column
            )
        for label in placed_labels(rows, values, x_axis, y_axis):
            figure.add_annotation(label, row=1, col=column)
        figure.update_xaxes(
            title=f"{title} (log)" if x_axis.log else title,
            type="log" if x_axis.log else "linear",
            range=[x_axis.low, x_axis.high],
            tickvals=x_axis.ticks() if x_axis.log else None,
            nticks=7,
            col=column,
        )
    figure.update_yaxes(range=[y_axis.low, y_axis.high], tickformat=".3f", nticks=9, gridcolor=GRID, zeroline=False)
    figure.update_yaxes(
        title=f"{rows[0].metric_name}, mean of {rows[0].queries} judged requests{rows[0].half_text}", col=1
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, tickangle=0, exponentformat="none")
    figure.update_layout(
        width=PAGE_WIDTH - 42,
        height=PAGE_HEIGHT,
        margin=MARGIN,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "family": "system-ui, sans-serif", "size": 12},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={
            "align": "left",
            "bgcolor": "#1d2530",
            "font": {"color": "#e4e8ee", "family": "ui-monospace, Menlo, Consolas, monospace", "size": 11},
        },
    )
    return figure


def grouped(rows: Sequence[VariantFigures]) -> Iterator[tuple[Group, list[VariantFigures]]]:
    """Groups that have members."""
    for group in (DOMINATED, FAILED, REFERENCE_DOMINATED, REFERENCE, FRONT):
        if members := [row for row in rows if group_of(row) is group]:
            yield group, members


def group_of(row: VariantFigures) -> Group:
    """How it is drawn."""
    if row.is_reference:
        return REFERENCE if row.on_front else REFERENCE_DOMINATED
    return FRONT if row.on_front else DOMINATED if row.gate_passed else FAILED


def hover_text(row: VariantFigures) -> str:
    """The recipe's steps and all figures, line by line; HTML as plotly takes it."""
    steps = [f"  {step}" for step in row.steps] or ["  none: as trained, FP32"]
    kept = [f"kept in FP32: {', '.join(layer.node for layer in row.layers if layer.kept_fp32)}"] if row.layers else []
    megabytes = [size / BYTES_PER_MB for size in (row.size_bytes, row.memory_rss_bytes, row.memory_pss_bytes)]
    lines = [
        *(f'name = "{row.variant}"', "steps:", *steps, *kept, ""),
        f"{row.metric_name} {row.quality:.4f} over {row.queries}{row.half_text} {interval_text(row)}",
        *_agreement(row),
        f"p50 {row.p50_ms:.1f} ms, p99 {row.p99_ms:.1f} ms over {row.requests:,} requests"
        + (f", {row.disturbed_rounds} rounds disturbed by other programs" if row.disturbed_rounds else ""),
        f"{row.candidates_per_s:,.0f} candidates/s, {row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f}) x "
        "the reference's",
        f"{cost_text(row)}; built in {row.build_s:.1f} s",
        f"{megabytes[0]:.2f} MB on disk; server {megabytes[1]:,.0f} MB RSS, {megabytes[2]:,.0f} MB PSS",
        *("", f"gate: {row.gate}"),
    ]
    return "<br>".join(html.escape(part, quote=False) for line in lines for part in _wrapped(line))


def _agreement(row: VariantFigures) -> list[str]:
    lines = []
    if row.fidelity_ndcg is not None:
        overlap = f"{row.fidelity_top_10_overlap:.1%}"
        lines.append(
            f"fidelity NDCG {row.fidelity_ndcg:.4f}, top 10 {overlap} over {row.fidelity_lists} unjudged lists"
        )
    if row.kendall_tau is not None:
        lines.append(f"judged lists: top 10 {row.top_10_overlap:.1%}, Kendall's tau {row.kendall_tau:.3f}")
    return lines


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, HOVER_COLUMNS, subsequent_indent="    ", replace_whitespace=False) or [""]


def _points(group: Group, points: Sequence[tuple[VariantFigures, float]], in_legend: bool) -> go.Scatter:
    rows = [row for row, _ in points]
    ends = [_interval(row) for row in rows]
    return go.Scatter(
        x=[value for _, value in points],
        y=[row.quality for row in rows],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [high - row.quality for row, (_, high) in zip(rows, ends, strict=True)],
            "arrayminus": [row.quality - low for row, (low, _) in zip(rows, ends, strict=True)],
            "color": GRID,
            "thickness": 1.5,
            "width": 3,
        },
        mode="markers",
        name=group.name,
        legendgroup=group.name,
        showlegend=in_legend,
        marker={
            "color": group.color,
            "size": group.size,
            "symbol": group.symbol,
            "line": {"color": group.color, "width": 2},
        },
        text=[hover_text(row) for row in rows],
        hovertemplate="%{text}<extra></extra>",
    )


def _interval(row: VariantFigures) -> tuple[float, float]:
    """Ends of the interval against the reference, around the variant's own quality; none for the reference."""
    if row.difference_low is None or row.difference_high is None:
        return row.quality, row.quality
    reference = row.quality / row.quality_ratio if row.quality_ratio else row.quality
    return reference + row.difference_low, reference + row.difference_high


def _ends(rows: Iterable[VariantFigures]) -> list[float]:
    return [value for row in rows for value in (*_interval(row), row.quality)]


# ---------------------------------------------------------------- axes and labels
@dataclasses.dataclass(frozen=True)
class Axis:
    """``low`` and ``high`` are powers of ten where ``log``, as plotly takes them."""

    low: float
    high: float
    log: bool

    def ticks(self) -> list[float]:
        """1, 2 and 5 of every power of ten between the ends of a logarithmic axis."""
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        values = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
        return [value for value in values if self.low <= math.log10(value) <= self.high]

    def share(self, value: float) -> float:
        """Where a value lies, 0 to 1."""
        return ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)


def axis_of(values: Sequence[float], log: bool | None = None) -> Axis:
    """Wide enough for all; logarithmic where they are ``LOG_FROM`` times apart, if ``log`` does not say."""
    log = min(values) > 0 and max(values) / min(values) >= LOG_FROM if log is None else log
    low, high = (math.log10(end) if log else end for end in (min(values), max(values)))
    pad = (high - low) * PAD or abs(high) * PAD or 1.0
    return Axis(low - pad, high + pad, log)


Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels; y grows downwards."""
PANEL_WIDTH = (PAGE_WIDTH - 42 - MARGIN["l"] - MARGIN["r"]) * (1 - GAP) / 2
PANEL_HEIGHT = PAGE_HEIGHT - MARGIN["t"] - MARGIN["b"]


def placed_labels(
    rows: Sequence[VariantFigures], values: Sequence[float], x: Axis, y: Axis
) -> Iterator[go.layout.Annotation]:
    """A name beside each point, tied to it by a thin line."""
    points = [
        (x.share(value) * PANEL_WIDTH, (1 - y.share(row.quality)) * PANEL_HEIGHT)
        for row, value in zip(rows, values, strict=True)
    ]
    widths = [len(row.variant) * CHARACTER_PX for row in rows]
    for row, value, (dx, dy) in zip(rows, values, free_places(points, widths), strict=True):
        yield go.layout.Annotation(
            x=math.log10(value) if x.log else value,
            y=row.quality,
            text=row.variant,
            ax=dx,
            ay=dy,
            showarrow=True,
            arrowhead=0,
            arrowwidth=0.8,
            arrowcolor=INK,
            standoff=6,
            font={"size": LABEL_SIZE, "color": FRONT.color if row.on_front else INK},
        )


def free_places(points: Sequence[tuple[float, float]], widths: Sequence[float]) -> list[tuple[float, float]]:
    """Offset of each label's centre from its point, where it covers no other label and no point, if there is such."""
    taken = [_box(point, 2 * MARKER_PX, 2 * MARKER_PX) for point in points]
    found = []
    for (px, py), width in zip(points, widths, strict=True):
        choices = [((dx, dy), _box((px + dx, py + dy), width, LINE_PX)) for dx, dy in _offsets(width / 2)]
        offset, box = min(choices, key=lambda choice: _covered(choice[1], taken))
        taken.append(box)
        found.append(offset)
    return found


def _box(centre: tuple[float, float], width: float, height: float) -> Box:
    x, y = centre
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _offsets(half: float) -> Iterator[tuple[float, float]]:
    """Of a label's centre from its point, the nearest first."""
    for radius, (side, rise) in itertools.product(
        range(1, 7), ((0, -1), (0, 1), (1, 0), (-1, 0), (1, -1), (-1, -1), (1, 1), (-1, 1))
    ):
        yield side * (half + 6 + 8 * radius), rise * (LINE_PX * radius + 3)


def _covered(box: Box, taken: Sequence[Box]) -> float:
    """Pixels of a label that lie on another thing or outside the panel; ``min`` takes the first of equals."""
    own = _overlap(box, box)
    return own - _overlap(box, (0, 0, PANEL_WIDTH, PANEL_HEIGHT)) + sum(_overlap(box, other) for other in taken)


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
