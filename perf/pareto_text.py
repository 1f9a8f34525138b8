"""A Pareto report's figures as text for a reader: the terminal's table and the page share it. Computes no figure."""

from __future__ import annotations

from rich.table import Table

from perf.kit.figures import BYTES_PER_MB, LayerCost, ParetoReport, VariantFigures


def pareto_table(report: ParetoReport) -> Table:
    """All figures of the variants."""
    title = (
        f"{report.ranker}: {report.concurrency} requests at once of {report.candidates:.0f} candidates on average, "
        f"{report.rounds} rounds, {report.price_per_hour:g} {report.currency} a machine-hour; * = Pareto front"
    )
    table = Table(title=title, title_justify="left")
    for heading in table_headings(report):
        table.add_column(heading, justify="left" if heading in ("variant", "gate") else "right")
    for row in report.rows:
        table.add_row(*table_cells(row), style="" if row.gate_passed else "dim")
    return table


def table_headings(report: ParetoReport) -> list[str]:
    """Of :func:`table_cells`."""
    return [
        *("variant", report.rows[0].metric_name, "minus reference", "fidelity", "gate", "requests", "p50 ms", "p99 ms"),
        *("candidates/s", "× reference", "MB on disk", "RSS MB", "PSS MB", "build s", f"{report.currency}/million"),
    ]


def table_cells(row: VariantFigures) -> list[str]:
    """One row for a reader, in the order of :func:`table_headings`."""
    return [
        f"{'* ' if row.on_front else '  '}{row.variant}",
        f"{row.quality:.4f}",
        interval_text(row),
        "" if row.fidelity_ndcg is None else f"{row.fidelity_ndcg:.4f}",
        _gate_text(row),
        f"{row.requests:,}{' ! disturbed' if row.disturbed_rounds else ''}",
        f"{row.p50_ms:.1f}",
        f"{row.p99_ms:.1f}",
        f"{row.candidates_per_s:,.0f}",
        f"{row.ratio:.2f} ({row.ratio_low:.2f}-{row.ratio_high:.2f})",
        f"{row.size_bytes / BYTES_PER_MB:.2f}",
        f"{row.memory_rss_bytes / BYTES_PER_MB:,.0f}",
        f"{row.memory_pss_bytes / BYTES_PER_MB:,.0f}",
        f"{row.build_s:.1f}",
        f"{row.cost_per_million:.3g}",
    ]


def layer_text(layer: LayerCost) -> str:
    """A layer with its cost, for a reader."""
    return f"{layer.node} {layer.cost:.2%}{' (kept in FP32)' if layer.kept_fp32 else ''}"


def _gate_text(row: VariantFigures) -> str:
    if row.is_reference:
        return "reference"
    return ("own limits" if row.own_limits else "passed") if row.gate_passed else "FAILED"


def interval_text(row: VariantFigures) -> str:
    """Of the quality minus the reference's, and that as a share; empty for the reference."""
    if row.difference_low is None or row.difference_high is None:
        return ""
    return f"{row.quality_ratio - 1:+.1%} [{row.difference_low:+.4f}, {row.difference_high:+.4f}]"
