"""The checks of what is served, and the figures kept. No server: tests/builders and the README's test run one."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.core.workspace import Workspace
from perf.served_quality import (
    FIRST_STAGE,
    RankerQuality,
    check_ndcg,
    check_parity,
    inputs_fingerprint,
    paired_differences,
    quality_file,
    read_quality,
    write_quality,
)
from tests.support.figures import served_quality, small_endpoints

WANTED = {"q1": {"a": 0.5, "b": 0.25}}


def test_equal_scores_pass_with_the_largest_difference() -> None:
    check = check_parity("small", "torch's", {"q1": {"b": 0.25, "a": 0.50005}}, WANTED, 1e-4)
    assert check.passed
    assert "5.0e-05 over 2 scores" in check.detail


@pytest.mark.parametrize(
    "served",
    [
        {"q1": {"a": 0.5, "b": 0.2502}},
        {"q1": {"a": 0.5, "b": float("nan")}},
        {"q1": {"a": 0.5}},
        {"q1": {"a": 0.5, "b": 0.25, "c": 0.1}},
        {"q1": {"a": 0.5, "b": -3.4028234663852886e38}},
    ],
    ids=["off", "nan", "missing", "stranger", "unscored"],
)
def test_a_score_that_is_off_fails_and_names_the_query(served: dict[str, dict[str, float]]) -> None:
    check = check_parity("small", "torch's", served, WANTED, 1e-4)
    assert not check.passed
    assert "q1" in check.detail
    assert str(check).startswith("FAIL  small: scores equal torch's")


def test_ndcg_is_compared_over_the_queries_served() -> None:
    offline = {"q1": 0.5, "q2": 0.9}
    assert check_ndcg("small", {"q1": 0.5009}, offline).passed
    assert not check_ndcg("small", {"q1": 0.502}, offline).passed


def test_ndcg_without_an_offline_figure_says_what_to_run() -> None:
    check = check_ndcg("small", {"q3": 0.5}, {"q1": 0.5})
    assert not check.passed
    assert "make quality" in check.detail


def test_differences_are_over_the_queries_that_both_may_be_judged_on() -> None:
    all_queries, test_queries = {"q1": 0.1, "q2": 0.2, "q3": 0.9}, {"q1": 0.2, "q2": 0.4}
    rows = [
        RankerQuality(FIRST_STAGE, "all", all_queries, {}),
        RankerQuality("small_fp32_onnx", "test", test_queries, {}),
        RankerQuality("small_int8_onnx", "test", test_queries, {}),
        RankerQuality("plain_fp32_onnx", "all", all_queries, {}),
    ]
    found = {(each.found, each.reference): each.interval for each in paired_differences(rows, small_endpoints())}
    assert set(found) == {
        ("small_fp32_onnx", FIRST_STAGE),
        ("small_fp32_onnx", "plain_fp32_onnx"),
        ("small_int8_onnx", FIRST_STAGE),
        ("small_int8_onnx", "plain_fp32_onnx"),
        ("small_int8_onnx", "small_fp32_onnx"),
        ("plain_fp32_onnx", FIRST_STAGE),
    }
    assert found["small_fp32_onnx", "plain_fp32_onnx"].queries == 2
    assert found["small_fp32_onnx", "plain_fp32_onnx"].mean_difference == pytest.approx(0.15)
    assert found["plain_fp32_onnx", FIRST_STAGE].queries == 3


def test_kept_figures_are_read_back(tmp_path: Path) -> None:
    workspace = Workspace(build=tmp_path)
    write_quality(served_quality(), workspace)
    assert read_quality(workspace) == served_quality()


def test_figures_of_another_form_count_as_none(tmp_path: Path) -> None:
    workspace = Workspace(build=tmp_path)
    assert read_quality(workspace) is None
    quality_file(workspace).parent.mkdir()
    quality_file(workspace).write_text('{"inputs": "0"}')
    assert read_quality(workspace) is None


def test_the_fingerprint_changes_with_models_and_judgements(tmp_path: Path) -> None:
    workspace = Workspace(build=tmp_path / "build", repository=tmp_path / "repository")
    data, manifest = tmp_path / "data", workspace.repository / "manifest.json"
    for folder in (data, workspace.repository):
        folder.mkdir()
    (data / "corpus.jsonl").write_text("")
    seen = [inputs_fingerprint(data, workspace)]
    manifest.write_text("{}")
    seen.append(inputs_fingerprint(data, workspace))
    (data / "qrels.tsv").write_text("x")
    seen.append(inputs_fingerprint(data, workspace))
    assert len(set(seen)) == 3
    assert inputs_fingerprint(data, workspace) == seen[-1]
