"""The Pareto front of a recipe's variants: measuring and going on after a cut, figures, files, the page."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from builders.compress.quantize_graph import LayerCost
from builders.core.contract import RANK
from builders.core.files import write_atomically
from builders.core.recipe import Recipe, Variant
from builders.core.workspace import REPOSITORY_ROOT, Workspace
from builders.evaluate.choose import read_report
from builders.evaluate.judge import BuiltRanker, BuiltVariant
from builders.rankers.base import Ranker
from perf import pareto
from perf.analyzer import AnalyzerError, Measurement
from perf.errors import PerfError
from perf.pareto import (
    Load,
    cost_per_million,
    measure_missing,
    pareto_front,
    rows_of,
    run_pareto,
    step_lines,
    with_front,
    write_pareto,
)
from perf.pareto_page import LINE_PX, axis_of, free_places, hover_text, render_pareto
from perf.pareto_text import table_cells
from tests.support.small_repository import ENDPOINTS, small_load, write_endpoint
from tests.support.variant_figures import pareto_report, reference_row, variant_row
from tests.support.waiting import wait_until

REFERENCE, INT8, BF16 = ENDPOINTS
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RECIPE = Recipe.model_validate(
    {
        "ranker": "small",
        "module": "none.py:None",
        "machine": {"price_per_hour": 0.36, "currency": "EUR"},
        "variants": [
            {"name": "fp32_onnx"},
            {"name": "int8_onnx", "steps": [{"step": "int8"}]},
            {"name": "bf16_openvino", "steps": [{"step": "bf16"}], "experimental": True},
        ],
    }
)


# ---------------------------------------------------------------- the front
def test_a_point_that_another_beats_in_one_cost_and_equals_in_the_rest_is_dominated() -> None:
    costs = np.array([[1.0, 5.0, 2.0], [1.0, 5.0, 3.0], [2.0, 1.0, 9.0], [0.5, 9.0, 9.0]])
    assert pareto_front(costs).tolist() == [True, False, True, True]


def test_equal_points_stand_or_fall_together() -> None:
    assert pareto_front(np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0], [2.0, 2.0]])).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_a_variant_that_failed_its_gate_neither_is_on_the_front_nor_dominates() -> None:
    best = variant_row("int8_onnx", quality=0.7, p99_ms=1.0, cost_per_million=1e-6, gate_passed=False)
    reference, failed = with_front([reference_row(), best])
    assert (reference.on_front, failed.on_front) == (True, False)


# ---------------------------------------------------------------- going on after a cut, without a server
@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Three endpoints, two rounds."""
    for name in ENDPOINTS:
        write_endpoint(tmp_path / "models", name)
    return small_load(tmp_path, rounds=2)


class Recorded:
    """Stands for the server and perf_analyzer: notes who was measured, fails where told, counts rates up."""

    def __init__(self, fails: Mapping[int, Exception] | None = None, broken: str = "") -> None:
        self.names: list[str] = []
        self.fails, self.broken = dict(fails or {}), broken

    def __call__(self, load: Load, name: str) -> tuple[Measurement, int, int]:
        self.names.append(name)
        if error := self.fails.get(len(self.names)):
            raise error
        if name == self.broken:
            raise AnalyzerError("too slow")
        return Measurement(np.array([1.0]), 10.0 * len(self.names), ()), 3, 2


def measured(monkeypatch: pytest.MonkeyPatch, load: Load, **settings: Any) -> Recorded:
    recorded = Recorded(**settings)
    monkeypatch.setattr(pareto, "measure_alone", recorded)
    measure_missing(load)
    return recorded


def test_a_round_goes_through_all_variants_before_the_next(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    assert measured(monkeypatch, load).names == [*ENDPOINTS, *ENDPOINTS]
    assert load.kept(BF16).rounds[1].reference_per_s == 40.0  # the fourth measurement: its own round's
    assert load.missing() == []


def test_a_cut_round_is_completed_with_the_reference_once_more_and_nothing_else_is_repeated(
    monkeypatch: pytest.MonkeyPatch, load: Load
) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(monkeypatch, load, fails={6: KeyboardInterrupt()})  # within the second round's last
    first = [load.kept(name) for name in (REFERENCE, INT8)]
    assert measured(monkeypatch, load).names == [REFERENCE, BF16]
    assert [load.kept(name) for name in (REFERENCE, INT8)] == first
    assert load.kept(BF16).rounds[1].reference_per_s == 10.0  # of the second run


def test_more_rounds_add_to_those_that_are_there(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    measured(monkeypatch, load)
    assert measured(monkeypatch, dataclasses.replace(load, rounds=3)).names == list(ENDPOINTS)


def test_a_variant_that_is_served_differently_is_measured_again_and_the_others_are_not(
    monkeypatch: pytest.MonkeyPatch, load: Load, tmp_path: Path
) -> None:
    measured(monkeypatch, load)
    write_atomically(tmp_path / "models" / "small_int8_onnx" / "1" / "model.py", "# quicker")
    assert measured(monkeypatch, small_load(tmp_path, rounds=2)).names == [REFERENCE, INT8, REFERENCE, INT8]


def test_a_variant_that_fails_is_left_out_of_the_rounds_after(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    assert measured(monkeypatch, load, broken=INT8).names == [*ENDPOINTS, REFERENCE, BF16]
    assert measured(monkeypatch, load, broken=INT8).names == [REFERENCE, INT8]  # once more, then no longer
    assert measured(monkeypatch, load).names == [REFERENCE, INT8, REFERENCE, INT8]


def test_without_the_reference_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    with pytest.raises(PerfError, match=r"the reference rank_small_fp32_onnx cannot be measured.*too slow"):
        measured(monkeypatch, load, broken=REFERENCE)


# ---------------------------------------------------------------- going on after a cut, for real
@pytest.mark.server
@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINTS:
        write_endpoint(tmp_path / "models", name)
    (tmp_path / "store").mkdir()
    load = small_load(tmp_path)
    run = subprocess.Popen([sys.executable, "-m", "tests.support.small_repository", str(tmp_path)], cwd=REPOSITORY_ROOT)
    wait_until(lambda: 0 in load.kept(INT8).rounds or run.poll() is not None, timeout_s=300)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = [load.kept(name) for name in (REFERENCE, INT8)]
    assert [name for name in ENDPOINTS if load.kept(name).rounds] == [REFERENCE, INT8]

    repeated: list[str] = []
    real = pareto.measure_alone
    monkeypatch.setattr(pareto, "measure_alone", lambda load, name: (repeated.append(name), real(load, name))[1])
    assert measure_missing(load) == {}
    assert repeated == [REFERENCE, BF16]
    assert [load.kept(name) for name in (REFERENCE, INT8)] == before
    found = load.kept(BF16).rounds[0]
    assert found.reference_per_s not in (0, before[0].rounds[0].requests_per_s)  # of its own time
    assert found.rss_bytes > found.pss_bytes > 20e6  # a Triton and its Python stub


# ---------------------------------------------------------------- figures
def built_small() -> BuiltRanker:
    """Figures as a build leaves them; of a ranker no more than its endpoint is asked for."""
    report = {
        "metrics": {"ndcg": {"reference": 0.6, "found": 0.591}},
        "judged": {"mean_difference": -0.009, "low": -0.02, "high": 0.002, "relative": -0.015, "confidence": 0.95,
                   "queries": 49},
        "fidelity": {"lists": 2000, "ndcg": 0.993, "top_10_overlap": 0.97},
        "kendall_tau": 0.91, "top_10_overlap": 0.95, "not_finite": 0,
    }  # fmt: skip
    figures = {
        "half": "validation and test",
        "ndcg_at_10": 0.6,
        "queries": 49,
        "validation": {"half": "validation and test", "ndcg_at_10": 0.6, "queries": 49},
        "sampled": "",
        "gate": "the reference",
        "build_s": 3.5,
        "size_bytes": 8_000_000,
        "layers": [],
    }
    variants = [
        BuiltVariant(variant, {}, figures if index == 0 else {**figures, "gate": "ok", "report": report}, True)
        for index, variant in enumerate(RECIPE.variants)
    ]
    ranker = cast(Ranker, type("OfAnEndpoint", (), {"endpoint": RANK}))
    return BuiltRanker(RECIPE, ranker, variants, data=None)  # type: ignore[arg-type]


def test_rates_are_over_the_references_of_the_same_round(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    measured(monkeypatch, load)  # 10, 20, 30; then 40, 50, 60 requests/s, of two candidates each
    reference, int8, bf16 = rows_of(built_small(), load, {})
    assert (reference.ratio, reference.ratio_low, reference.ratio_high) == (1, 1, 1)
    assert (int8.ratio, int8.ratio_low, int8.ratio_high) == (pytest.approx(1.625), 1.25, 2.0)
    assert bf16.candidates_per_s == 2 * 45
    assert bf16.experimental and not int8.experimental


def test_quality_is_the_gates_metric_with_its_interval(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    measured(monkeypatch, load)
    reference, int8, _ = rows_of(built_small(), load, {})
    assert (reference.metric_name, reference.quality, reference.quality_ratio) == ("NDCG@10", 0.6, 1.0)
    assert (int8.quality, int8.quality_ratio) == (0.591, pytest.approx(0.985))
    assert (int8.difference_low, int8.difference_high, int8.fidelity_ndcg) == (-0.02, 0.002, 0.993)


def test_a_million_candidates_cost_the_machines_time() -> None:
    assert cost_per_million(price_per_hour=0.36, candidates_per_s=1000) == pytest.approx(0.1)


def test_the_recipes_price_is_used(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    measured(monkeypatch, load)
    reference, *_ = rows_of(built_small(), load, {})
    assert (reference.cost_per_million, reference.currency) == (pytest.approx(0.36 / 3600 / 50 * 1e6), "EUR")


def test_a_variant_that_was_not_measured_has_no_row(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    measured(monkeypatch, load, broken=INT8)
    assert [row.variant for row in rows_of(built_small(), load, {INT8: "too slow"})] == ["fp32_onnx", "bf16_openvino"]


def test_steps_are_written_as_the_recipe_writes_them() -> None:
    steps = [
        {"step": "prune_layers", "keep": [0, 2, 5]},
        {
            "step": "distill",
            "teachers": [{"recipe": "two_tower"}, {}],
            "hidden": {"layers.1": "layers.3"},
            "learning_rate": 1e-5,
        },
        {"step": "int8", "keep_fp32": ['*"quoted"*']},
    ]
    variant = Variant.model_validate({"name": "l3_int8_onnx", "steps": steps})
    written = tomllib.loads(f"steps = [{', '.join(step_lines(variant))}]")
    assert written["steps"] == steps


def test_an_unknown_variant_is_named_with_those_there_are() -> None:
    with pytest.raises(PerfError, match="recipe of ncf: no variant int9_onnx; wanted of fp32_onnx"):
        run_pareto(REPOSITORY_ROOT / "recipes" / "ncf.toml", only=["int9_onnx"])


# ---------------------------------------------------------------- files and the page
ROWS = with_front(
    [
        reference_row(p99_ms=400.0),
        variant_row("int8_onnx", quality=0.598, p99_ms=41.5),
        variant_row("dynamic_int8_onnx", quality=0.597, p99_ms=45.0, cost_per_million=0.011),
        variant_row("bf16_openvino", quality=0.57, gate_passed=False, gate="interval's low end <b>-8.3%</b> & worse"),
    ]
)
REPORT = pareto_report(*ROWS, failures={"small_int8_trt": "no such <device>"})


def test_written_figures_are_read_back_and_the_csv_has_a_row_a_variant(tmp_path: Path) -> None:
    workspace = Workspace(build=tmp_path)
    _, table, _ = write_pareto(REPORT, workspace)
    assert read_report("small", workspace) == REPORT
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["on_front"]) for row in rows] == [
        ("fp32_onnx", "True"), ("int8_onnx", "True"), ("dynamic_int8_onnx", "False"), ("bf16_openvino", "False"),
    ]  # fmt: skip
    assert rows[1]["p99_ms"] == "41.5"


def test_the_page_holds_the_figures_escaped_and_fetches_nothing() -> None:
    page = render_pareto(REPORT)
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    for figure in ("41.5", "-0.3% [-0.0120, +0.0080]", "0.9950", "low end &lt;b&gt;-8.3%&lt;/b&gt; &amp; worse",
                   "no such &lt;device&gt;", "step = &#34;int8&#34;"):  # fmt: skip
        assert figure in markup
    assert "low end <b>" not in page
    assert "default-src 'none'; script-src 'unsafe-inline'" in page
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", markup)


def test_hover_shows_the_recipes_steps_as_they_are_written_and_all_figures() -> None:
    lines = hover_text(ROWS[3]).split("<br>")
    assert lines[:3] == ['name = "bf16_openvino"', "steps:", '  { step = "int8", method = "minmax" }']
    assert lines[-1] == "gate: interval's low end &lt;b&gt;-8.3%&lt;/b&gt; &amp; worse"
    for figure in ("p50 10.0 ms, p99 20.0 ms over 300 requests", "0.01 USD per million candidates; built in 12.5 s",
                   "2.00 MB on disk; server 400 MB RSS, 300 MB PSS"):  # fmt: skip
        assert figure in lines


def test_layers_are_told_with_their_costs_in_all_files(tmp_path: Path) -> None:
    layers = (LayerCost("small", "MatMul_<7>", 0.12, kept_fp32=True), LayerCost("small", "MatMul_3", 0.009))
    report = pareto_report(*ROWS, variant_row("int8_mixed_onnx", layers=layers))
    _, table, page = write_pareto(report, Workspace(build=tmp_path))
    assert read_report("small", Workspace(build=tmp_path)).rows[-1].layers == layers
    assert "MatMul_<7> 12.00% (kept in FP32); MatMul_3 0.90%" in table.read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert "<code>MatMul_&lt;7&gt; 12.00% (kept in FP32)</code>; <code>MatMul_3 0.90%</code>" in text
    assert "kept in FP32: MatMul_&lt;7&gt;" in hover_text(report.rows[-1]).split("<br>")


def test_a_variant_that_passed_by_limits_of_its_own_is_told_apart() -> None:
    own = {"own_limits": {"min_fidelity_ndcg": 0.9}}
    rows = [variant_row("a_onnx"), variant_row("b_onnx", **own), variant_row("c_onnx", gate_passed=False, **own)]
    assert [table_cells(row)[4] for row in rows] == ["passed", "own limits", "FAILED"]


def test_generated_data_brings_a_banner() -> None:
    assert "the quality figures on this page mean nothing" in render_pareto(pareto_report(*ROWS, generated=True))
    assert "mean nothing" not in render_pareto(REPORT)


def test_an_axis_is_logarithmic_where_its_values_are_far_apart() -> None:
    assert axis_of([10.0, 400.0]).log and not axis_of([10.0, 20.0]).log
    assert axis_of([10.0, 400.0]).ticks() == [10.0, 20.0, 50.0, 100.0, 200.0, 500.0]
    assert axis_of([3.0]).low < 3.0 < axis_of([3.0]).high


def test_names_of_crowded_points_cover_neither_one_another_nor_a_point() -> None:
    points = [(250.0 + 4 * index, 200.0 + 3 * (index % 4)) for index in range(12)]
    offsets = free_places(points, [120.0] * len(points))
    names = [(px + dx, py + dy) for (px, py), (dx, dy) in zip(points, offsets, strict=True)]
    for (ax, ay), (bx, by) in itertools.combinations(names, 2):
        assert abs(ax - bx) >= 120 or abs(ay - by) >= LINE_PX
    for (ax, ay), (px, py) in itertools.product(names, points):
        assert abs(ax - px) >= 60 or abs(ay - py) >= LINE_PX / 2


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_a_browser_draws_a_point_and_a_name_for_every_variant_in_both_panels(tmp_path: Path) -> None:
    [_, _, page] = write_pareto(REPORT, Workspace(build=tmp_path))
    drawn = subprocess.run(
        [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            *("--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"),
            *("--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=50,
    ).stdout
    assert len(re.findall(r'<path class="point"', drawn)) == 2 * len(ROWS)
    for row in ROWS:
        assert len(re.findall(rf"<text[^>]*>{row.variant}</text>", drawn)) == 2
    for title in (
        "cost, USD per million candidates",
        "p99 latency, ms, 2 requests at once (log)",
        "NDCG@10, mean of 49",
    ):
        assert re.search(rf"<text[^>]*>{re.escape(title)}", drawn)
