"""Explanations shown: a table in a terminal, a page of plots."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table
from rich.text import Text

from builders.core.files import write_atomically
from builders.evaluate.explain.explanation import SHOWN_CONTRIBUTIONS, Explanation, ItemExplanation

COLORS = ("#2f9e6e", "#d1495b")
"""Raises and lowers a score; readable on white."""
ROW_PIXELS, ITEM_PIXELS = 26, 90
TITLE_LENGTH = 80


def print_explanation(console: Console, explanation: Explanation, count: int = SHOWN_CONTRIBUTIONS) -> None:
    """One table: each item with its strongest contributions."""
    table = Table(title=Text(f"{explanation.ranker}: {explanation.asked}"), title_justify="left", expand=True)
    table.add_column("item", ratio=2)
    table.add_column("score = baseline + contributions", justify="right", no_wrap=True)
    table.add_column("strongest contributions", ratio=3)
    for item in explanation.items:
        sums = f"{item.score:.3f} = {item.baseline_score:.3f} {item.score - item.baseline_score:+.3f}"
        table.add_row(Text(f"{item.title}\n{item.item_id}"), sums, _contribution_text(item, count))
        table.add_section()
    console.print(table)
    console.print(f"contributions add up to within {explanation.completeness_error:.1e} of the score difference")
    if explanation.kept:
        console.print(f"kept as they are, since they pass no embedding layer: {', '.join(explanation.kept)}")


def _contribution_text(item: ItemExplanation, count: int) -> Text:
    parts = Text()
    for label, value in item.strongest(count):
        parts.append(f"{value:+.3f} ", "green" if value > 0 else "red").append(f"{label}   ")
    return parts


def explanation_figure(explanation: Explanation, count: int = SHOWN_CONTRIBUTIONS) -> go.Figure:
    """A bar chart an item, the best item first, on one scale."""
    shown = [item.strongest(count) for item in explanation.items]
    titles = [_chart_title(place, item) for place, item in enumerate(explanation.items, start=1)]
    height = sum(ITEM_PIXELS + ROW_PIXELS * len(parts) for parts in shown)
    figure = make_subplots(
        rows=len(shown),
        shared_xaxes="all",
        subplot_titles=titles,
        row_heights=[len(parts) for parts in shown],
        vertical_spacing=min(ITEM_PIXELS / height, 0.9 / max(len(shown) - 1, 1)),
    )
    for row, parts in enumerate(shown, start=1):
        figure.add_trace(_bars(parts), row=row, col=1)
    figure.update_yaxes(autorange="reversed", showticklabels=False, fixedrange=True)
    figure.update_xaxes(zeroline=True, zerolinecolor="#7d8796", showticklabels=True)
    figure.update_annotations(x=0, xanchor="left", font_size=14)
    title = f"{html.escape(explanation.ranker)}: {html.escape(explanation.asked)}"
    figure.update_layout(
        title=title, height=height + ITEM_PIXELS, showlegend=False, template="plotly_white", margin={"l": 40, "r": 40}
    )
    return figure


def write_explanation_html(path: Path, explanation: Explanation) -> None:
    """One page with plotly's script in it; it fetches nothing."""
    page = explanation_figure(explanation).to_html(include_plotlyjs=True, config={"displayModeBar": False})
    write_atomically(path, page)


def _chart_title(place: int, item: ItemExplanation) -> str:
    short = item.title if len(item.title) <= TITLE_LENGTH else f"{item.title[:TITLE_LENGTH]}…"
    sums = f"score {item.score:.3f} = baseline {item.baseline_score:.3f} {item.score - item.baseline_score:+.3f}"
    return f"<b>{place}. {html.escape(short or item.item_id)}</b>  {sums}"


def _bars(parts: Sequence[tuple[str, float]]) -> go.Bar:
    """Bars by position, as two contributions may have the same label."""
    values = [value for _, value in parts]
    labels = [html.escape(label) for label, _ in parts]
    return go.Bar(
        x=values,
        y=list(range(len(parts))),
        orientation="h",
        text=[f"{label}  {value:+.3f}" for label, value in zip(labels, values, strict=True)],
        textposition="outside",
        cliponaxis=False,
        marker_color=[COLORS[value < 0] for value in values],
        hovertemplate="%{text}<extra></extra>",
    )
