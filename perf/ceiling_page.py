"""What ``perf ceiling`` found, as tables, as notes and as a roofline plot. Computes no figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import plotly.graph_objects as go
import plotly.io
from rich.table import Table

from perf.ceiling import CeilingReport, Counted, Reached, VariantCeiling, ceiling_json
from perf.foreign_load import FOREIGN_SHARE_LIMIT
from perf.kit.data import PROJECT, Workspace, write_atomically
from perf.kit.runtimes import RUNTIMES
from perf.peaks import Bandwidth, Peak
from perf.plots import PLOT_CONFIG, TEXT_COLOR, cycled_colors, styled
from perf.roofline import Roof, roof_of
from perf.tables import foreign_text

DASHES = ("solid", "dash", "dot", "dashdot")
MARKERS = ("circle", "diamond")
INTENSITIES = (0.1, 10_000.0)
"""Operations a byte that the plot spans at least."""


def write_ceiling(report: CeilingReport, workspace: Workspace = PROJECT) -> list[Path]:
    """``ceiling.json`` and the plot ``ceiling.html`` in ``build/report``."""
    folder = workspace.build / "report"
    written = {"ceiling.json": ceiling_json(report), "ceiling.html": ceiling_html(report)}
    for name, content in written.items():
        write_atomically(folder / name, content)
    return [folder / name for name in written]


def ceiling_html(report: CeilingReport) -> str:
    """The plot, self-contained."""
    return str(plotly.io.to_html(roofline_figure(report), config=PLOT_CONFIG))


# ---------------------------------------------------------------- tables
def peaks_table(report: CeilingReport) -> Table:
    """A row a type, runtime and number of threads, then memory."""
    table = Table(title="What this machine can do at most", title_justify="left", caption=_machine_text(report))
    table.caption_justify = "left"
    for heading in ("what", "by", "threads", "found", "best of", "at", "others"):
        justify: Literal["left", "right"] = "right" if heading in ("threads", "found", "best of") else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    for peak in report.peaks:
        table.add_row(*_peak_row(peak))
    table.add_section()
    for one in report.bandwidths:
        for row in _bandwidth_rows(one):
            table.add_row(*row)
    return table


def _peak_row(peak: Peak) -> list[str]:
    head = [f"{peak.type} products", peak.runtime, _threads_text(peak.threads)]
    if peak.gops_per_s is None or peak.shape is None:
        return [*head, "no peak of its own", "", peak.why, ""]
    shape = " x ".join(f"{size:,}" for size in peak.shape)
    return [*head, f"{peak.gops_per_s:,.1f} GOP/s", f"{peak.runs}", shape, foreign_text(peak.foreign_share)]


def _bandwidth_rows(one: Bandwidth) -> Iterator[list[str]]:
    for name, gb_per_s in (("copy", one.copy_gb_per_s), ("triad", one.triad_gb_per_s)):
        arrays = f"arrays of {one.array_bytes / 2**20:,.0f} MiB"
        head = [f"memory, {name} (STREAM)", f"torch, {one.device}", _threads_text(one.threads)]
        yield [*head, f"{gb_per_s:.1f} GB/s", f"{one.runs}", arrays, foreign_text(one.foreign_share)]


def _threads_text(threads: int) -> str:
    return str(threads) if threads else "GPU"


def _machine_text(report: CeilingReport) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in report.libraries.items())
    sets = " ".join(report.processor)
    return (
        f"{report.machine.cpu}, {report.machine.cores} cores ({sets}); {libraries}. A multiply-add is two operations.\n"
        f"others: processor time of other programs meanwhile; ! where it stayed above {FOREIGN_SHARE_LIMIT:.0%}"
    )


def ceiling_table(report: CeilingReport) -> Table:
    """Two rows a variant: its networks in this process, and its endpoint served."""
    table = Table(title="Variants as a share of that limit", title_justify="left", caption=_CAPTION)
    table.caption_justify = "left"
    for heading in (
        "variant", "MOP/request", "MB/request", "OP/byte", "where", "threads", "requests", "requests/s", "GOP/s",
        "least ms", "share", "without padding", "others",
    ):  # fmt: skip
        justify: Literal["left", "right"] = "left" if heading in ("variant", "MOP/request", "where") else "right"
        table.add_column(heading, justify=justify, overflow="fold")
    for row in report.variants:
        for number, side in enumerate(row.reached):
            table.add_row(*(_counted_cells(row) if number == 0 else [""] * 4), *_reached_cells(row.counted, side))
        table.add_section()
    return table


_CAPTION = (
    "share: of the rate at which the machine would do nothing but multiply at its peaks, or read weights, inputs and "
    "outputs, for the operations counted as served;\nwithout padding: of the same for the requests' own tokens in one "
    "run of each network. Served is at two requests an instance at once, four at least, with pre- and post-processing."
)


def _counted_cells(row: VariantCeiling) -> list[str]:
    counted = row.counted
    ops = ", ".join(f"{type_} {ops / 1e6:,.1f}" for type_, ops in counted.ops.items())
    size = (counted.weight_bytes + counted.tensor_bytes) / 1e6
    return [row.model, ops, f"{size:,.2f}", f"{counted.intensity:,.1f}"]


def _reached_cells(counted: Counted, side: Reached) -> list[str]:
    return [
        side.where,
        _threads_text(side.threads),
        f"{side.requests:,}",
        f"{side.requests_per_s:,.1f}",
        f"{_gops_per_s(counted, side):,.1f}",
        f"{side.least_ms:,.3f}",
        f"{side.share:.1%}",
        f"{side.share_without_padding:.1%}",
        foreign_text(side.foreign_share, side.measured_times),
    ]


def _gops_per_s(counted: Counted, side: Reached) -> float:
    return counted.total_ops * side.requests_per_s / 1e9


def notes(report: CeilingReport) -> Iterator[str]:
    """What a reader of the figures must know of them, and what is missing."""
    for row in report.variants:
        for type_, found in row.multiplied_in.items():
            if type_ != found:
                yield f"{row.model}: {type_} products are computed in {found} here, so their limit is {found}'s"
        if row.kernels and (missed := sorted(set(row.multiplied_in.values()) - set(row.kernels))):
            yield (
                f"{row.model}: no kernel of it multiplies in {', '.join(missed)} as its graph asks, but in "
                f"{', '.join(row.kernels)}: that part of its limit is out of reach"
            )
        if any(side.share > 1 for side in row.reached):
            yield f"{row.model}: a share above 1 is of weights that stay in the cache from run to run"
    counts = {(row.counted.requests, round(row.counted.candidates, 1)) for row in report.variants}
    for requests, candidates in sorted(counts):
        yield f"counted over {requests} requests of {candidates:g} candidates on average"
    for model, reason in report.failures.items():
        yield f"not measured: {model}: {reason}"
    yield from report.skipped


# ---------------------------------------------------------------- the plot
def roofline_figure(report: CeilingReport) -> go.Figure:
    """Operations/s over operations a byte, both logarithmic: a roof a type and number of threads, and two points a
    variant, in process (circle) and served (diamond), on the side of its own roof."""
    figure = go.Figure()
    for dash, (label, roof) in zip(DASHES * len(report.bandwidths), _roofs(report), strict=False):
        _draw_roof(figure, label, roof, dash, _span(report))
    for color, row in zip(cycled_colors(), report.variants, strict=False):
        _draw_variant(figure, row, color)
    figure.update_xaxes(title="operations a byte (weights, inputs and outputs)", type="log", dtick=1)
    figure.update_yaxes(title="10^9 operations/s (circle: in process, diamond: served)", type="log", dtick=1)
    styled(figure, height=560, legend=True)
    figure.update_layout(margin_t=40, legend={"y": -0.15, "yanchor": "top"})
    return figure


def _roofs(report: CeilingReport) -> Iterator[tuple[str, Roof]]:
    for one in report.bandwidths:
        runtime = next(each for each in RUNTIMES.values() if each.needs_gpu == (one.device != "cpu"))
        where = f"{one.threads} thread{'s' * (one.threads > 1)}" if one.threads else "GPU"
        yield where, roof_of(runtime, one.threads, report.peaks, report.bandwidths)


def _span(report: CeilingReport) -> np.ndarray:
    """float64 [points]: operations a byte, evenly spaced on the logarithmic axis."""
    found = [row.counted.intensity for row in report.variants]
    low, high = min([INTENSITIES[0], *found]), max([INTENSITIES[1], *found])
    return np.geomspace(low, high, 400)


def _draw_roof(figure: go.Figure, label: str, roof: Roof, dash: str, span: np.ndarray) -> None:
    for type_ in roof.ops_per_s:
        figure.add_scatter(
            x=span,
            y=[roof.at(intensity, type_) / 1e9 for intensity in span],
            mode="lines+text",
            name=f"limit of {type_}, {label}",
            text=[""] * (len(span) - 1) + [f"{type_}, {label}"],
            textposition="top left",
            showlegend=False,
            line={"color": TEXT_COLOR, "dash": dash, "width": 1.5},
            hovertemplate="%{y:,.1f} at %{x:.1f} operations a byte<extra>%{fullData.name}</extra>",
        )


def _draw_variant(figure: go.Figure, row: VariantCeiling, color: str) -> None:
    figure.add_scatter(
        x=[row.counted.intensity] * len(row.reached),
        y=[_gops_per_s(row.counted, side) for side in row.reached],
        mode="markers",
        name=row.model,
        marker={"color": color, "size": 11, "symbol": MARKERS[: len(row.reached)]},
        text=[
            f"{side.where}: {side.requests_per_s:,.1f} requests/s of {side.requests:,}, {side.share:.1%} of the limit"
            for side in row.reached
        ],
        hovertemplate="%{text}, %{y:,.1f} x 10^9 operations/s<extra>%{fullData.name}</extra>",
    )
