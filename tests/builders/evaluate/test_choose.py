"""Choosing a variant: what is chosen, what is said of the others, what to relax."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from builders.core.files import write_atomically
from builders.core.workspace import REPOSITORY_ROOT, Workspace
from builders.data.beir import JudgedQueries, Product, load_judged, write_judged
from builders.evaluate.choose import ChoiceError, choose, chosen_variant, pareto_folder, read_choice, run_choose
from tests.support.variant_figures import pareto_report, reference_row, variant_row


# ---------------------------------------------------------------- one is chosen
def test_the_cheapest_that_keeps_all_limits_is_chosen_and_the_dearer_are_told_by_how_much() -> None:
    choice = choose([reference_row(), variant_row("int8_onnx"), variant_row("bf16_openvino", cost_per_million=0.008)],
                    slo_p99_ms=50, min_ndcg_ratio=0.995)  # fmt: skip
    assert choice.chosen is not None
    assert choice.chosen.variant == "bf16_openvino"
    assert choice.others == {
        "small_fp32_onnx": "small_fp32_onnx keeps all limits and is 150.0% dearer: 0.02 USD per million candidates.",
        "small_int8_onnx": "small_int8_onnx keeps all limits and is 25.0% dearer: 0.01 USD per million candidates.",
    }


def test_equal_costs_go_by_quality() -> None:
    rows = [variant_row("int8_onnx", quality=0.599), variant_row("int8_openvino", quality=0.6)]
    choice = choose(rows, slo_p99_ms=50, min_ndcg_ratio=0.99)
    assert choice.chosen is rows[1]
    assert choice.others["small_int8_onnx"] == (
        "small_int8_onnx keeps all limits and costs the same, with NDCG@10 0.5990 against 0.6000 and p99 20 ms against "
        "20 ms."
    )


def test_a_variant_that_failed_its_gate_is_never_chosen_however_cheap() -> None:
    gate = (
        "small_int8_onnx: fidelity NDCG 0.9712, limit 0.9900. ndcg 0.59 against 0.60. Not published. Compress it less"
    )
    failed = variant_row("int8_onnx", cost_per_million=1e-6, gate_passed=False, gate=gate)
    choice = choose([reference_row(), failed], slo_p99_ms=50, min_ndcg_ratio=0.1)
    assert choice.chosen is not None
    assert choice.chosen.is_reference
    assert choice.others["small_int8_onnx"] == ("small_int8_onnx failed its gate: fidelity NDCG 0.9712, limit 0.9900.")


def test_every_limit_that_is_not_kept_is_named_with_its_numbers_and_units() -> None:
    row = variant_row(
        "l3_onnx", quality=0.57, p99_ms=61.234, size_bytes=12_340_000, candidates_per_s=812.5, cost_per_million=0.001
    )
    choice = choose([reference_row(), row], 50, 0.995, max_size_mb=10, min_rate=1000)
    assert choice.others["small_l3_onnx"] == (
        "small_l3_onnx fell out: NDCG@10 of 0.95 times the reference's is below the limit of 0.995, and p99 of 61.23 "
        "ms is above the limit of 50, and size of 12.34 MB is above the limit of 10, and rate of 812.5 candidates/s is "
        "below the limit of 1000."
    )


def test_a_value_at_its_limit_keeps_it() -> None:
    row = reference_row(p99_ms=50.0, size_bytes=10_000_000, candidates_per_s=1000.0)
    assert choose([row], 50, 1.0, max_size_mb=10, min_rate=1000).chosen is row


def test_a_quality_that_is_no_number_keeps_no_limit() -> None:
    choice = choose([variant_row("int8_onnx", quality_ratio=float("nan"))], 50, 0.1)
    assert choice.chosen is None
    assert choice.relax == "No limit that gives way would admit a variant: its figures are not finite."


# ---------------------------------------------------------------- none is
def test_where_none_keeps_all_the_smallest_single_relaxation_is_named() -> None:
    rows = [reference_row(p99_ms=61.234), variant_row("int8_onnx", quality=0.591)]
    choice = choose(rows, slo_p99_ms=50, min_ndcg_ratio=0.995)
    assert choice.chosen is None
    assert choice.relax == "Relax --min-ndcg-ratio from 0.995 to 0.985 (-1.0%): that admits small_int8_onnx."


def test_the_relaxed_limit_admits_the_variant() -> None:
    rows = [reference_row(p99_ms=61.23456, candidates_per_s=99.98765)]
    assert choose(rows, 50, 0.995).relax == "Relax --slo-p99-ms from 50 to 61.24 (+22.5%): that admits small_fp32_onnx."
    assert choose(rows, 61.24, 0.995).chosen is rows[0]
    assert "--min-rate from 200 to 99.98 (-50.0%)" in choose(rows, 100, 0.995, min_rate=200).relax
    assert choose(rows, 100, 0.995, min_rate=99.98).chosen is rows[0]


def test_where_no_single_relaxation_helps_that_is_said() -> None:
    rows = [
        reference_row(p99_ms=100.0, size_bytes=80_000_000),
        variant_row("int8_onnx", quality=0.57, p99_ms=55.0),
    ]
    choice = choose(rows, 50, 0.995, max_size_mb=10)
    assert choice.chosen is None
    assert choice.relax == (
        "No single limit that gives way admits a variant: the lines above say which limits each breaks."
    )
    assert "NDCG@10 of 0.95" in choice.others["small_int8_onnx"] and "p99 of 55 ms" in choice.others["small_int8_onnx"]


def test_relaxing_is_never_proposed_for_a_variant_that_failed_its_gate() -> None:
    rows = [variant_row("int8_onnx", gate_passed=False, gate="no"), reference_row(p99_ms=500.0)]
    assert "admits small_fp32_onnx" in choose(rows, 50, 0.995).relax
    assert "[gate] of the recipe" in choose(rows[:1], 50, 0.995).relax


# ---------------------------------------------------------------- files
@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """With figures of two variants of ncf."""
    keep_report(Workspace(build=tmp_path), "ncf", reference_row(), variant_row("int8_onnx"))
    return Workspace(build=tmp_path)


def keep_report(workspace: Workspace, ranker: str, *rows: object) -> None:
    report = pareto_report(*rows, ranker=ranker, recipe=Path(f"recipes/{ranker}.toml"))  # type: ignore[arg-type]
    write_atomically(pareto_folder(workspace) / f"{ranker}.json", report.model_dump_json())


def test_the_last_choice_is_kept_with_what_was_asked(workspace: Workspace) -> None:
    run_choose(None, 50, 0.995, workspace=workspace)
    assert chosen_variant(workspace) == "small_int8_onnx"
    keep_report(workspace, "two_tower", reference_row())
    _, lines = run_choose(REPOSITORY_ROOT / "recipes" / "two_tower.toml", 50, 0.995, min_rate=10, workspace=workspace)
    chosen = read_choice(workspace)
    assert (chosen.model, chosen.recipe) == ("small_fp32_onnx", Path("recipes/two_tower.toml"))
    assert chosen.limits == {"slo_p99_ms": 50, "min_ndcg_ratio": 0.995, "min_rate": 10}
    assert lines[-2] == (
        "small_fp32_onnx is the cheapest that keeps all limits: 0.02 USD per million candidates, p99 20 ms over "
        "300 requests, NDCG@10 "
        "0.6000 (100.0% of the reference's) over 49 queries, 8 MB, 1,000 candidates/s."
    )


def test_without_a_choice_none_is_kept_and_what_was_not_measured_is_told(workspace: Workspace) -> None:
    report = pareto_report(reference_row(p99_ms=60.0), ranker="ncf", failures={"ncf_int8_trt": "no GPU"})
    write_atomically(pareto_folder(workspace) / "ncf.json", report.model_dump_json())
    choice, lines = run_choose(None, 50, 0.995, workspace=workspace)
    assert choice.chosen is None
    assert lines[-2:] == [
        "ncf_int8_trt was not measured: no GPU",
        "No variant of ncf keeps all limits. Relax --slo-p99-ms from 50 to 60 (+20.0%): that admits small_fp32_onnx.",
    ]
    with pytest.raises(ChoiceError, match=r"no choice at .*builders choose"):
        chosen_variant(workspace)


def test_without_measurements_make_pareto_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChoiceError, match="no measurements yet; run 'make pareto'"):
        run_choose(None, 50, 0.995, workspace=Workspace(build=tmp_path))
    with pytest.raises(ChoiceError, match=r"no measurements of ncf .*; run 'make pareto RECIPES=recipes/ncf\.toml'"):
        run_choose(REPOSITORY_ROOT / "recipes" / "ncf.toml", 50, 0.995, workspace=Workspace(build=tmp_path))


def test_with_several_rankers_measured_one_must_be_named(workspace: Workspace) -> None:
    keep_report(workspace, "two_tower", reference_row())
    with pytest.raises(ChoiceError, match=r"measured are ncf, two_tower, wanted one; say --recipe recipes/ncf\.toml"):
        run_choose(None, 50, 0.995, workspace=workspace)


def test_figures_of_another_version_are_refused(workspace: Workspace) -> None:
    write_atomically(pareto_folder(workspace) / "ncf.json", '{"ranker": "ncf"}')
    with pytest.raises(ChoiceError, match=r"fields are not as this version writes them; run 'make pareto"):
        run_choose(None, 50, 0.995, workspace=workspace)


# ---------------------------------------------------------------- the data
def test_figures_of_other_data_than_there_is_now_choose_nothing(tmp_path: Path) -> None:
    data = JudgedQueries({"q1": "mug"}, {"a": Product("a", "mug")}, {"q1": {"a": 3}})
    write_judged(data, tmp_path)
    workspace = Workspace(build=tmp_path / "build")
    report = pareto_report(
        rows=(reference_row(),), data_kind="judged", data_folder=tmp_path, data_digest=load_judged(tmp_path).digest
    )
    write_atomically(pareto_folder(workspace) / f"{report.ranker}.json", report.model_dump_json())
    assert run_choose(None, 50, 0.1, workspace=workspace)[0].chosen is not None

    write_judged(dataclasses.replace(data, products={"a": Product("a", "another title")}), tmp_path)
    with pytest.raises(ChoiceError, match=r"has changed since .* was measured .*; run 'make pareto RECIPES="):
        run_choose(None, 50, 0.1, workspace=workspace)
