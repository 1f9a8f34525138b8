"""What stands in a table can be told apart on a narrow terminal: nothing is cut."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console
from rich.table import Table

from perf.bench_base import Figure, figures_table
from perf.served_quality import ServedQuality
from perf.tables import differences_table, perf_table, quality_table, side_by_side, steps_table
from tests.support.figures import judged_queries, perf_report, served_quality

LONG = {"small_fp32_onnx": "cross_encoder_int8_onnx", "small_int8_onnx": "cross_encoder_int8_openvino"}
"""Two names that differ in their last letters only."""


def long_named() -> ServedQuality:
    """Figures of two variants as the kit calls them."""
    found = served_quality()
    return dataclasses.replace(
        found,
        published=LONG.get(found.published, found.published),
        rankers=[dataclasses.replace(row, name=LONG.get(row.name, row.name)) for row in found.rankers],
        differences=[
            dataclasses.replace(
                each, found=LONG.get(each.found, each.found), reference=LONG.get(each.reference, each.reference)
            )
            for each in found.differences
        ],
    )


def rendered(table: Table, width: int) -> str:
    """As a terminal of so many columns shows it."""
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    return text.getvalue()


@pytest.mark.parametrize("width", [80, 60])
def test_names_of_variants_stand_whole_in_the_tables_of_quality(width: int) -> None:
    found = long_named()
    quality = rendered(quality_table(found), width)
    for row in found.rankers[1:]:
        assert row.name in quality
    assert "= rank" in quality
    differences = rendered(differences_table(found), width)
    for each in found.differences:
        assert each.found in quality
        if each.reference in LONG.values():
            assert each.found in differences and f"- {each.reference}" in differences
    assert "…" not in quality + differences


@pytest.mark.parametrize("width", [80, 60])
def test_titles_that_differ_at_their_end_alone_are_told_apart(width: int) -> None:
    judged, found = judged_queries(), long_named()
    title = "Womens running shoe with a breathable mesh and a cushioned sole for road and track, size "
    products = {name: dataclasses.replace(judged.products[name], title=title + name) for name in judged.products}
    rows = [dataclasses.replace(row, rankings={"q1": list(products)}) for row in found.rankers[:2]]
    shown = rendered(
        side_by_side(dataclasses.replace(judged, products=products), "q1", *rows, "+0.100, the greatest gain"), width
    )
    assert "…" not in shown
    assert LONG["small_fp32_onnx"] in shown
    cells = "".join(line.split("│")[1].strip() + " " for line in shown.splitlines() if line.startswith("│"))
    assert all(f"size {name}" in cells for name in products)


@pytest.mark.parametrize("width", [80, 60])
def test_no_table_of_speed_cuts_a_figure_or_a_name(width: int) -> None:
    report = perf_report()
    figures = [Figure("cross_encoder_int8_openvino: requests/s over fp32", 2.0, "x", 1.8, True, "5 rounds 1.9 to 2.1")]
    for table in (perf_table(report), steps_table(report), figures_table(figures)):
        assert "…" not in rendered(table, width)
