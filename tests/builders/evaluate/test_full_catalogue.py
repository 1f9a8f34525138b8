"""The offline protocol: candidates, gains and baselines are what they say, and figures are paired by customer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from builders.data.beir import DatasetError
from builders.data.purchase_log import PurchaseLog, purchase_log, validation_log
from builders.evaluate.full_catalogue import (
    ITEM_KNN,
    ItemKNN,
    RecommendReport,
    catalogue_ndcg,
    judge,
    popularity_scores,
    tuned_item_knn,
)
from tests.support.purchase_lines import CUT, generated_folder, generated_log, line, write_lines


def oracle(log: PurchaseLog, user_ids: Sequence[str]) -> np.ndarray:
    """Items bought before the cut first, then those bought after it: as good as can be among the candidates."""
    scores = np.zeros((len(user_ids), len(log.items)))
    row_of = {item_id: row for row, item_id in enumerate(log.items)}
    for row, user_id in enumerate(user_ids):
        scores[row, [row_of[item_id] for item_id in log.positives[user_id]]] = 1
        scores[row, [row_of[item_id] for item_id in log.histories.get(user_id, ())]] = 2
    return scores


@pytest.fixture(scope="module")
def report() -> RecommendReport:
    return judge(generated_log(), {"oracle": oracle}, ItemKNN("Cosine", 50))


def test_the_best_order_of_candidates_has_ndcg_1(report: RecommendReport) -> None:
    assert min(report.figures["oracle"].ndcg.values()) == pytest.approx(1)
    assert report.mean("oracle", "hit", warm=True) == report.mean("oracle", "auc", warm=True) == 1


def test_items_bought_before_are_no_candidates(tmp_path: Path) -> None:
    lines = [
        line(1, "a", "2010-01-01", "old"),
        line(2, "b", "2010-01-02", "new"),
        line(2, "b", "2010-01-02", "old"),
        line(1, "c", "2010-06-02", "new"),
    ]
    log = purchase_log(write_lines(tmp_path, lines), CUT)
    assert catalogue_ndcg(log, lambda log, users: np.array([[9.0, 1.0]]), ["1"]) == {"1": 1.0}


def test_equal_scores_share_their_places(tmp_path: Path) -> None:
    lines = [line(1, "a", "2010-01-01", f"{number}") for number in range(30)]
    log = purchase_log(write_lines(tmp_path, [*lines, line(2, "b", "2010-06-02", "7")]), CUT)
    [ndcg] = catalogue_ndcg(log, popularity_scores, ["2"]).values()
    assert ndcg == pytest.approx(np.mean([*(1 / np.log2(np.arange(2, 12))), *[0] * 20]))


def test_item_knn_beats_popularity_where_customers_keep_to_categories(report: RecommendReport) -> None:
    knn, popularity, chance = (report.mean(name, "ndcg", warm=True) for name in (ITEM_KNN, "popularity", "random"))
    assert knn > 2 * popularity and knn > 2 * chance
    assert report.minus_knn("oracle").low > 0


def test_item_knn_gives_a_cold_customer_what_is_popular(tmp_path: Path) -> None:
    lines = [
        *(line(customer, f"a{customer}", "2010-01-01", "liked") for customer in (1, 2)),
        line(1, "a1", "2010-01-01", "other"),
        line(9, "z", "2010-06-02", "other"),
    ]
    log = purchase_log(write_lines(tmp_path, lines), CUT)
    np.testing.assert_array_equal(ItemKNN("Cosine", 5)(log, ["9"]), popularity_scores(log, ["9"]))


def test_item_knn_is_chosen_by_the_log_it_is_given() -> None:
    chosen = tuned_item_knn(validation_log(generated_folder()))
    assert chosen.kind in ("Cosine", "TFIDF", "BM25")


def test_cold_customers_have_rows_of_their_own(tmp_path: Path) -> None:
    lines = [
        *(line(customer, f"a{customer}", "2010-01-01", item) for customer in (1, 2, 3) for item in "pqr"),
        *(line(4, "b", "2010-01-02", item) for item in "stu"),
        *(line(customer, f"c{customer}", "2010-06-02", "s") for customer in (1, 2, 3)),
        line(9, "z", "2010-06-02", "s"),
    ]
    report = judge(purchase_log(write_lines(tmp_path, lines), CUT), {}, ItemKNN("Cosine", 5))
    assert (report.customers("ndcg", warm=True), report.customers("ndcg", warm=False)) == (3, 1)
    console = Console(width=200, file=io.StringIO())
    with console.capture() as capture:
        console.print(report.table())
    text = capture.get()
    assert "warm (3)" in text and "cold (1)" in text
    cold = report.to_dict()["groups"]["cold"]["rankers"][ITEM_KNN]["ndcg"]
    assert cold == pytest.approx(np.mean(1 / np.log2([5, 6, 7])))


def test_a_log_without_warm_test_customers_is_refused_with_what_it_has(tmp_path: Path) -> None:
    lines = [line(1, "a", "2010-01-01", "x"), line(2, "b", "2010-06-02", "x"), line(3, "c", "2010-06-02", "x")]
    log = purchase_log(write_lines(tmp_path, lines), CUT)
    told = r"0 customers .* buy something for the first time from then on \(1 before, 2 from then on\), wanted at least"
    with pytest.raises(DatasetError, match=f"{told} 2 to judge by"):
        judge(log, {}, ItemKNN())
    with pytest.raises(DatasetError, match=f"{told} 1 to choose item-kNN by"):
        tuned_item_knn(log)


def test_a_group_without_customers_has_no_mean(tmp_path: Path) -> None:
    buyers = [line(user, f"a{user}", "2010-01-01", f"{user}") for user in (1, 2, 3)]
    firsts = [line(user, f"b{user}", "2010-06-02", f"{user % 3 + 1}") for user in (1, 2, 3)]
    report = judge(purchase_log(write_lines(tmp_path, [*buyers, *firsts]), CUT), {}, ItemKNN("Cosine", 2))
    assert report.mean(ITEM_KNN, "ndcg", warm=False) is None
    assert report.to_dict()["groups"]["cold"]["rankers"]["random"]["ndcg"] is None
