"""Metrics against values worked out by hand, intervals, parity and the gate."""

from __future__ import annotations

import math

import numpy as np
import pytest

from builders.data import find as datasets
from builders.data.beir import JudgedQueries, Product
from builders.data.bm25 import first_stage
from builders.evaluate.metrics import (
    QualityError,
    compare,
    mean_of,
    ndcg_of_rankings,
    paired_interval,
    rankings_from_scores,
)
from builders.export.parity import NameMismatch, ParityError, ShapeMismatch, ValueMismatch, check_parity

JUDGED = JudgedQueries(
    queries={"q1": "red mug", "q2": "blue lamp"},
    products={item_id: Product(item_id, item_id) for item_id in "abcd"},
    judgements={"q1": {"a": 3, "b": 2, "c": 1, "d": 0}, "q2": {"a": 0, "b": 3}},
)
IDEAL = {"q1": ["a", "b", "c", "d"], "q2": ["b", "a"]}
REVERSED = {"q1": ["d", "c", "b", "a"], "q2": ["a", "b"]}


@pytest.fixture(scope="module")
def real() -> JudgedQueries:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(datasets.OFFLINE_VARIABLE, "1")
        return datasets.load_judged(datasets.find_data().folder)


# ---------------------------------------------------------------- NDCG
def test_ndcg_is_gain_over_log2_of_rank_plus_one_against_the_ideal() -> None:
    ideal = 1 / math.log2(2) + 0.1 / math.log2(3) + 0.01 / math.log2(4)
    backwards = 0.01 / math.log2(3) + 0.1 / math.log2(4) + 1 / math.log2(5)
    assert ndcg_of_rankings(JUDGED, IDEAL) == pytest.approx({"q1": 1.0, "q2": 1.0})
    assert ndcg_of_rankings(JUDGED, REVERSED) == pytest.approx({"q1": backwards / ideal, "q2": 1 / math.log2(3)})


def test_ndcg_looks_at_the_first_k_only() -> None:
    ideal = 1 / math.log2(2) + 0.1 / math.log2(3)
    assert ndcg_of_rankings(JUDGED, REVERSED, k=2)["q1"] == pytest.approx(0.01 / math.log2(3) / ideal)


@pytest.mark.parametrize(("grade", "wanted"), [(3, 1.0), (0, 0.0)])
def test_a_query_with_one_candidate_is_ideal_if_it_has_any_gain(grade: int, wanted: float) -> None:
    judged = JudgedQueries({"q": "mug"}, {"a": Product("a", "mug")}, {"q": {"a": grade}})
    assert ndcg_of_rankings(judged, {"q": ["a"]}) == {"q": wanted}


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        (["a", "b", "c"], "a ranking of 3 ids, {wanted} (missing 'd', not judged none)"),
        (["a", "b", "c", "x"], "a ranking of 4 ids, {wanted} (missing 'd', not judged 'x')"),
        (["a", "a", "b", "c", "d"], "a ranking of 5 ids, {wanted} (missing none, not judged none)"),
    ],
)
def test_a_ranking_that_is_not_an_order_of_the_candidates_is_refused(ranking: list[str], message: str) -> None:
    with pytest.raises(QualityError) as refusal:
        ndcg_of_rankings(JUDGED, {**IDEAL, "q1": ranking})
    wanted = "wanted each of its 4 judged candidates once"
    assert str(refusal.value) == "query 'q1': " + message.format(wanted=wanted)


def test_a_query_without_ranking_is_refused() -> None:
    with pytest.raises(QualityError, match="query 'q2': no ranking, wanted one of its 2 judged candidates"):
        ndcg_of_rankings(JUDGED, {"q1": IDEAL["q1"]})


def test_bm25_beats_the_reversed_order_on_the_data_by_a_clear_interval(real: JudgedQueries) -> None:
    bm25 = first_stage(real)
    comparison = compare(real, bm25, {query_id: order[::-1] for query_id, order in bm25.items()})
    assert comparison.interval.low > 0
    assert comparison.kendall_tau == pytest.approx(-1.0)


# ---------------------------------------------------------------- scores to rankings
def test_ties_keep_first_stage_order() -> None:
    assert rankings_from_scores({"q": ["c", "a", "b"]}, {"q": {"a": 0.5, "b": 0.9, "c": 0.5}}) == {"q": ["b", "c", "a"]}


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(score: float) -> None:
    with pytest.raises(QualityError, match="query 'q': the score of 'b' is NaN or infinite, wanted a finite one"):
        rankings_from_scores({"q": ["a", "b"]}, {"q": {"a": 0.5, "b": score}})


def test_a_candidate_without_score_is_refused() -> None:
    with pytest.raises(QualityError, match="query 'q': no score of 'b', wanted one of every candidate"):
        rankings_from_scores({"q": ["a", "b"]}, {"q": {"a": 0.5}})


# ---------------------------------------------------------------- paired interval
def _figures(values: np.ndarray) -> dict[str, float]:
    return {f"q{index}": float(value) for index, value in enumerate(values)}


def test_the_interval_is_of_found_minus_reference() -> None:
    draw = np.random.default_rng(1)
    reference = draw.uniform(0.2, 0.8, 50)
    better = reference + draw.normal(0.1, 0.05, 50)
    interval = paired_interval(_figures(better), _figures(reference))
    assert 0 < interval.low < interval.mean_difference < interval.high
    assert interval.mean_difference == pytest.approx((better - reference).mean())
    assert interval.relative == pytest.approx(better.mean() / reference.mean() - 1)
    assert interval.queries == 50
    swapped = paired_interval(_figures(reference), _figures(better))
    assert swapped.low < swapped.mean_difference < swapped.high < 0


def test_the_interval_is_near_the_normal_one_for_many_queries() -> None:
    differences = np.random.default_rng(2).normal(0.0, 1.0, 2000)
    interval = paired_interval(_figures(differences), _figures(np.zeros(2000)))
    half_width = 1.96 * differences.std(ddof=1) / math.sqrt(2000)
    assert interval.low == pytest.approx(differences.mean() - half_width, abs=0.002)
    assert interval.high == pytest.approx(differences.mean() + half_width, abs=0.002)
    assert interval.relative is None


def test_pairing_goes_by_query_id_and_not_by_position() -> None:
    figures = _figures(np.linspace(0, 1, 20))
    interval = paired_interval(dict(reversed(figures.items())), figures)
    assert (interval.low, interval.mean_difference, interval.high) == (0.0, 0.0, 0.0)


def test_the_same_figures_give_the_same_interval() -> None:
    figures = np.random.default_rng(3).normal(size=(2, 30))
    intervals = [paired_interval(_figures(figures[0]), _figures(figures[1])) for _ in range(2)]
    assert intervals[0] == intervals[1]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"q0": 0.5}, "queries 'q1' have a figure on one side only, wanted the same queries on both"),
        ({"q0": 0.5, "q1": math.nan}, "a figure is NaN or infinite, wanted finite ones"),
    ],
)
def test_figures_that_cannot_be_paired_are_refused(found: dict[str, float], message: str) -> None:
    with pytest.raises(QualityError, match=message):
        paired_interval(found, {"q0": 0.5, "q1": 0.5})


def test_one_query_has_no_interval() -> None:
    with pytest.raises(QualityError, match="1 queries, wanted at least 2 for an interval"):
        paired_interval({"q0": 0.5}, {"q0": 0.5})


# ---------------------------------------------------------------- comparison and gate
def test_a_ranker_compared_with_itself_loses_nothing() -> None:
    comparison = compare(JUDGED, IDEAL, IDEAL)
    assert (comparison.top_k_overlap, comparison.kendall_tau) == pytest.approx((1.0, 1.0))
    assert comparison.found_ndcg == pytest.approx(comparison.reference_ndcg)
    assert comparison.interval.mean_difference == 0.0


def test_a_comparison_counts_overlap_agreement_and_worst_queries() -> None:
    found = {"q1": ["a", "b", "d", "c"], "q2": ["a", "b"]}
    comparison = compare(JUDGED, found, IDEAL, k=1)
    assert comparison.top_k_overlap == pytest.approx((1 + 0) / 2)
    assert comparison.kendall_tau == pytest.approx(((5 - 1) / 6 + -1) / 2)  # one of six pairs swapped, then all of one
    assert [query.query for query in comparison.worst] == ["blue lamp", "red mug"]
    assert comparison.worst[0].difference == pytest.approx(-1.0)
    assert comparison.found_ndcg == pytest.approx(0.5 * comparison.reference_ndcg)


# ---------------------------------------------------------------- parity
SCORE = np.array([[0.5], [1.0]], np.float32)


def test_parity_reports_the_largest_difference_of_each_tensor() -> None:
    found = {"score": SCORE + np.float32(2**-12), "ids": np.array([1, 2])}
    report = check_parity({"ids": np.array([1, 2]), "score": SCORE}, found, atol=1e-3)
    assert report.max_abs_difference == {"ids": 0.0, "score": 2**-12}
    assert report.atol == 1e-3


def test_a_difference_of_exactly_the_tolerance_passes() -> None:
    assert check_parity({"score": np.array([1.0])}, {"score": np.array([1.5])}, atol=0.5).atol == 0.5


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        (
            {"scores": SCORE},
            NameMismatch,
            "found tensors 'scores', wanted 'score', at least one. "
            "If a contract changed after the export, run 'make export'",
        ),
        (
            {"score": SCORE[:, 0]},
            ShapeMismatch,
            "'score' has shape [2], wanted [2, 1], not empty. "
            "If a contract changed after the export, run 'make export'",
        ),
        (
            {"score": SCORE + np.array([[0.0], [0.25]])},
            ValueMismatch,
            "'score' differs by 0.25 at [1, 0] (found 1.25, wanted 1), tolerance 0.0001. "
            "If the checkpoint changed after the export, run 'make export'",
        ),
        (
            {"score": np.array([[math.nan], [1.0]], np.float32)},
            ValueMismatch,
            "found 'score' holds 1 values that are NaN or infinite, wanted none. "
            "If the checkpoint changed after the export, run 'make export'",
        ),
    ],
)
def test_names_shapes_and_values_fail_apart(
    found: dict[str, np.ndarray], error: type[ParityError], message: str
) -> None:
    with pytest.raises(ParityError) as failure:
        check_parity({"score": SCORE}, found, atol=1e-4)
    assert type(failure.value) is error
    assert str(failure.value) == message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_fail_even_where_both_sides_have_them(value: float) -> None:
    bad = {"score": np.array([value, 1.0])}
    with pytest.raises(ValueMismatch, match=r"found 'score' holds 1 .* reference 'score' holds 1 values"):
        check_parity(bad, bad, atol=math.inf)


def test_every_tensor_at_fault_is_named_at_once() -> None:
    reference = {"a": np.zeros(2), "b": np.zeros(3), "c": np.zeros(4)}
    found = {"a": np.zeros(2), "b": np.zeros(2), "c": np.zeros((4, 1))}
    with pytest.raises(ShapeMismatch, match=r"'b' has shape \[2\].*'c' has shape \[4, 1\]") as failure:
        check_parity(reference, found, atol=1.0)
    assert "'a'" not in str(failure.value)


def test_nothing_to_compare_is_no_parity() -> None:
    with pytest.raises(NameMismatch, match="found tensors none, wanted none, at least one"):
        check_parity({}, {}, atol=1.0)
    with pytest.raises(ShapeMismatch, match=r"'score' has shape \[0, 1\], wanted \[0, 1\], not empty"):
        check_parity({"score": SCORE[:0]}, {"score": SCORE[:0]}, atol=1.0)


def test_unsigned_and_half_tensors_are_subtracted_without_wrapping_or_overflow() -> None:
    with pytest.raises(ValueMismatch, match="differs by 1 at"):
        check_parity({"ids": np.array([1], np.uint8)}, {"ids": np.array([0], np.uint8)}, atol=0.5)
    half = {"score": np.array([60000.0], np.float16)}
    with pytest.raises(ValueMismatch, match=r"differs by 1\.2e\+05 at"):
        check_parity(half, {"score": -half["score"]}, atol=0.5)


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({}, "a mean over 0 queries, wanted at least one"),
        ({"q": math.nan}, "the figure of query 'q' is NaN or infinite"),
    ],
)
def test_a_mean_is_never_nan(figures: dict[str, float], message: str) -> None:
    with pytest.raises(QualityError, match=message):
        mean_of(figures)


def test_an_interval_is_never_nan() -> None:
    found = {f"q{number}": 0.0 for number in range(200)} | {"q0": 1e-9}
    interval = paired_interval(found, dict.fromkeys(found, 0.0))
    assert math.isfinite(interval.low) and math.isfinite(interval.high)
