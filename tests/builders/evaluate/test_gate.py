"""The gate's verdict, every fault with its figure and its limit, and its metrics against values worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from builders.core.recipe import Gate
from builders.data.beir import JudgedQueries, Product
from builders.evaluate.gate import (
    WORST_QUERIES,
    Fidelity,
    GateReport,
    Worst,
    fidelity_of,
    gate_report,
    mean_metric,
    metric_by_query,
    verdict,
)
from builders.evaluate.metrics import GateFailed, Interval, QualityError

LIMITS = Gate(max_judged_loss=0.02, min_fidelity_ndcg=0.99)
GOOD = GateReport(
    metric="ndcg",
    metrics={"ndcg": {"reference": 0.5, "found": 0.499}},
    judged=Interval(-0.001, -0.009, 0.004, -0.002, 0.95, 40),
    fidelity=Fidelity(2000, 0.9951, 0.97),
    top_10_overlap=0.98,
    kendall_tau=0.95,
    not_finite=0,
    worst=(Worst("q7", "red mug", 0.9, 0.7, ("a", "b"), ("b", "a")), Worst("q8", "", 0.5, 0.4, ("a",), ("c",))),
)


def low(end: float) -> Interval:
    return dataclasses.replace(GOOD.judged, low=end)


# ---------------------------------------------------------------- verdict
def test_a_variant_within_all_limits_passes_and_its_figures_are_told() -> None:
    assert verdict("ce_int8_onnx", GOOD, LIMITS) == (
        "ce_int8_onnx: ndcg 0.4990 against 0.5000, difference -0.0010 [-0.0090, +0.0040] (95%, 40 queries), "
        "lower end -1.80%; fidelity NDCG 0.9951, top-10 overlap 0.970 over 2,000 lists: passed"
    )


def test_a_variant_without_unjudged_lists_is_judged_by_its_queries_alone() -> None:
    assert verdict("v", dataclasses.replace(GOOD, fidelity=None), LIMITS).endswith("lower end -1.80%: passed")


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        (
            {"judged": low(-0.0101)},
            "lower end of the judged ndcg interval -2.02% of the reference, limit -2.00%",
        ),
        ({"fidelity": Fidelity(2000, 0.9899, 0.9)}, "fidelity NDCG 0.9899, limit 0.9900"),
        ({"fidelity": Fidelity(2000, math.nan, 0.9)}, "fidelity NDCG nan, limit 0.9900"),
        ({"not_finite": 3}, "3 scores are NaN or infinite, wanted none"),
        ({"judged": low(math.nan)}, "lower end of the judged ndcg interval +nan% of the reference"),
        (
            {"metrics": {"ndcg": {"reference": math.nan, "found": 0.5}}},
            "lower end of the judged ndcg interval +nan% of the reference",
        ),
        (
            {"metrics": {"ndcg": {"reference": 0.0, "found": 0.5}}},
            "lower end of the judged ndcg interval -inf% of the reference",
        ),
    ],
)
def test_each_fault_is_named_with_its_figure_and_its_limit(changed: dict[str, object], fault: str) -> None:
    with pytest.raises(GateFailed) as failed:
        verdict("v", dataclasses.replace(GOOD, **changed), LIMITS)  # type: ignore[arg-type]
    assert str(failed.value).startswith(f"v: {fault}")
    assert str(failed.value).count("limit") + str(failed.value).count("wanted") == 1


def test_all_faults_are_told_at_once_with_the_worst_queries_and_the_next_step() -> None:
    bad = dataclasses.replace(GOOD, not_finite=2, judged=low(-0.1), fidelity=Fidelity(5, 0.5, 0.4))
    with pytest.raises(GateFailed) as failed:
        verdict("ce_int8_onnx", bad, LIMITS)
    message = str(failed.value)
    assert "2 scores are NaN" in message
    assert "-20.00% of the reference, limit -2.00%" in message
    assert "fidelity NDCG 0.5000, limit 0.9900" in message
    assert "Not published. Its worst queries: 'red mug' -0.200, 'q8' -0.100." in message
    assert "python -m builders gate ce_int8_onnx" in message


@pytest.mark.parametrize(("end", "ndcg"), [(-0.01, 0.9951), (0.0, 0.99)])
def test_a_figure_at_its_limit_passes(end: float, ndcg: float) -> None:
    report = dataclasses.replace(GOOD, judged=low(end), fidelity=Fidelity(2000, ndcg, 0.9))
    assert verdict("v", report, LIMITS).endswith("passed")


# ---------------------------------------------------------------- fidelity
def test_fidelity_is_1_for_the_same_order_whatever_the_scores() -> None:
    reference = [np.linspace(1, 0, 12), np.array([0.1, 0.3, 0.2])]
    found = fidelity_of([100 * scores - 7 for scores in reference], reference)
    assert found == Fidelity(2, pytest.approx(1.0), 1.0)


def test_fidelity_of_the_first_two_exchanged_is_as_by_hand() -> None:
    reference = np.arange(12, 0, -1.0)
    swapped = reference.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    gains = [10 - place for place in range(10)]
    ideal = sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
    wanted = (ideal - 10 - 9 / math.log2(3) + 9 + 10 / math.log2(3)) / ideal
    assert fidelity_of([swapped], [reference]) == Fidelity(1, pytest.approx(wanted), 1.0)


def test_an_item_that_falls_out_of_the_first_ten_counts_in_the_overlap() -> None:
    reference = np.arange(12, 0, -1.0)
    found = reference.copy()
    found[0] = 0
    assert fidelity_of([found], [reference]) == Fidelity(1, pytest.approx(0.743, abs=0.2), 0.9)


def test_fidelity_is_a_mean_over_lists() -> None:
    same, turned = np.arange(11, 0, -1.0), np.arange(1, 12.0)
    one = fidelity_of([turned], [same])
    both = fidelity_of([same, turned], [same, same])
    assert one is not None and both is not None
    assert both.ndcg == pytest.approx((1 + one.ndcg) / 2)
    assert both.lists == 2


def test_a_score_that_is_nan_comes_last() -> None:
    reference = np.array([3.0, 2.0, 1.0])
    found = fidelity_of([[math.nan, 2.0, 1.0]], [reference])
    last = fidelity_of([[0.0, 2.0, 1.0]], [reference])
    assert found == last
    assert found is not None and found.ndcg < 1


def test_no_lists_have_no_fidelity() -> None:
    assert fidelity_of([], []) is None


# ---------------------------------------------------------------- metrics
DATA = JudgedQueries(
    queries={"q1": "red mug", "q2": "blue lamp"},
    products={item_id: Product(item_id, item_id) for item_id in "abcdefghijkl"},
    judgements={"q1": {"a": 3, "b": 0, "c": 3, "d": 0}, "q2": dict.fromkeys("bcdefghijkl", 0) | {"a": 3}},
)
RANKINGS = {"q1": ["a", "b", "c", "d"], "q2": list("bcdefghijkal")}


def test_a_hit_is_the_best_grade_among_the_first_ten() -> None:
    assert metric_by_query(DATA, "hit_rate", RANKINGS) == {"q1": 1.0, "q2": 0.0}
    assert metric_by_query(DATA, "hit_rate", {**RANKINGS, "q2": list("bcdefghijakl")})["q2"] == 1.0
    assert mean_metric(DATA, "hit_rate", RANKINGS) == 0.5


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    # q1: a before b and d, c before d, but not before b; q2: a before l alone of eleven
    assert metric_by_query(DATA, "auc", RANKINGS) == pytest.approx({"q1": 3 / 4, "q2": 1 / 11})


def test_auc_of_candidates_that_are_all_alike_is_1() -> None:
    alike = JudgedQueries({"q": "x"}, DATA.products, {"q": {"a": 2, "b": 2}})
    assert metric_by_query(alike, "auc", {"q": ["b", "a"]}) == {"q": 1.0}


def test_accuracy_is_whether_the_first_item_has_the_best_grade() -> None:
    assert metric_by_query(DATA, "accuracy", RANKINGS) == {"q1": 1.0, "q2": 0.0}


def test_f1_is_the_macro_mean_over_labels() -> None:
    products = {name: Product(name, name) for name in ("mugs", "lamps")}
    labels = JudgedQueries(
        {name: name for name in ("q1", "q2", "q3")},
        products,
        {"q1": {"mugs": 3, "lamps": 0}, "q2": {"mugs": 3, "lamps": 0}, "q3": {"mugs": 0, "lamps": 3}},
    )
    found = {"q1": ["mugs", "lamps"], "q2": ["lamps", "mugs"], "q3": ["lamps", "mugs"]}
    # mugs: precision 1, recall 1/2; lamps: precision 1/2, recall 1
    assert mean_metric(labels, "f1", found) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert mean_metric(labels, "accuracy", found) == pytest.approx(2 / 3)


def test_ndcg_is_that_of_the_quality_report() -> None:
    by_query = metric_by_query(DATA, "ndcg", RANKINGS)
    ideal = 1 + 1 / math.log2(3)
    assert by_query == pytest.approx({"q1": (1 + 1 / math.log2(4)) / ideal, "q2": 0.0})


# ---------------------------------------------------------------- report
ITEMS = [f"i{number}" for number in range(12)]
MANY = JudgedQueries(
    queries={f"q{number}": f"query {number}" for number in range(12)},
    products={item: Product(item, item) for item in ITEMS},
    judgements={f"q{number}": {item: 3 if item == "i0" else 0 for item in ITEMS} for number in range(12)},
)
REFERENCE = dict.fromkeys(MANY.queries, ITEMS)
FOUND = {  # query n has the relevant item at place n
    query_id: [*ITEMS[1 : place + 1], ITEMS[0], *ITEMS[place + 1 :]] for place, query_id in enumerate(MANY.queries)
}


def report(kind: str = "judged", limits: Gate = LIMITS) -> GateReport:
    return gate_report(MANY, kind, FOUND, REFERENCE, limits, Fidelity(5, 1.0, 1.0), 0)


def test_the_ten_queries_that_lost_most_come_with_the_first_ten_items_of_both() -> None:
    worst = report().worst
    assert len(worst) == WORST_QUERIES
    assert {one.query_id for one in worst[:2]} == {"q10", "q11"}
    assert [one.query_id for one in worst[2:]] == [f"q{place}" for place in range(9, 1, -1)]
    assert worst[2] == Worst(
        "q9", "query 9", pytest.approx(1.0), pytest.approx(1 / math.log2(11)), tuple(ITEMS[:10]),
        (*ITEMS[1:10], ITEMS[0]),
    )  # fmt: skip


def test_the_report_says_each_metric_of_its_data_for_both() -> None:
    assert set(report().metrics) == {"ndcg"}
    assert set(report("purchases").metrics) == {"ndcg", "hit_rate", "auc"}
    assert report("purchases").metrics["hit_rate"] == {"reference": 1.0, "found": pytest.approx(10 / 12)}
    assert set(report("categories", Gate(metric="accuracy")).metrics) == {"accuracy", "f1"}


def test_the_interval_is_that_of_the_gates_own_metric() -> None:
    of_accuracy = report("categories", Gate(metric="accuracy"))
    assert of_accuracy.judged.mean_difference == pytest.approx(1 / 12 - 1)
    assert of_accuracy.relative_low == pytest.approx(of_accuracy.judged.low)
    assert of_accuracy.judged.low < -11 / 12


def test_the_reference_against_itself_passes() -> None:
    same = gate_report(MANY, "judged", REFERENCE, REFERENCE, LIMITS, None, 0)
    assert (same.relative_low, same.top_10_overlap, same.kendall_tau) == (0.0, 1.0, pytest.approx(1.0))
    assert verdict("v", same, LIMITS).endswith("passed")


def test_a_missing_ranking_is_refused() -> None:
    part = {query_id: FOUND[query_id] for query_id in list(FOUND)[1:]}
    with pytest.raises(QualityError, match="query 'q0': no ranking"):
        gate_report(MANY, "judged", part, REFERENCE, LIMITS, None, 0)
