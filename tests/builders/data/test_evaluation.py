"""What may judge a ranker, and data in which nothing may."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.build import build_ranker
from builders.core.recipe import Recipe, load_recipe
from builders.core.workspace import REPOSITORY_ROOT
from builders.data.beir import QUERIES, DatasetError, JudgedQueries, Product, is_test_query, load_judged, write_judged
from builders.data.evaluation import LEAST_PARTED, halves, judging_queries, told_unanswerable
from builders.data.purchase_log import evaluation_lists, purchase_log
from builders.data.purchases import PURCHASES
from tests.support.variant_figures import variant_row

WORDS = [f"mug {number}" for number in range(40)]
TEST = [text for text in WORDS if is_test_query(text)]
TRAIN = [text for text in WORDS if not is_test_query(text)]
PRODUCTS = {"a": Product("a", "red mug"), "b": Product("b", "lamp")}


def judged(texts: list[str], grades: dict[str, int]) -> JudgedQueries:
    return JudgedQueries({text: text for text in texts}, PRODUCTS, dict.fromkeys(texts, grades))


def recipe(trained: bool) -> Recipe:
    """Without its checkpoint: were it read, that would be the error."""
    committed = load_recipe(REPOSITORY_ROOT / "recipes" / "text_cnn.toml")
    return committed.model_copy(update={"trained_on_judgements": trained, "checkpoint": None})


@pytest.mark.parametrize(
    ("trained", "data", "told"),
    [
        (
            True,
            judged(TRAIN[:5], {"a": 3, "b": 0}),
            "5 train queries (10 judged pairs, 5 with a relevant one) and 0 test",
        ),
        (
            True,
            judged(TEST[:2] + TRAIN[:1], {"a": 0}),
            "1 train queries (1 judged pairs, 0 with a relevant one) and 2 test",
        ),
        (False, judged(TRAIN[:5], {"a": 0, "b": 0}), "5 train queries (10 judged pairs, 0 with a relevant one)"),
        (False, judged([], {}), "0 train queries (0 judged pairs, 0 with a relevant one) and 0 test queries (0 judged"),
        (False, judged(TRAIN[:1], {}), "1 train queries (0 judged pairs"),
    ],
)
def test_data_that_can_judge_nothing_is_refused_before_anything_is_built(
    trained: bool, data: JudgedQueries, told: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError) as refusal:
        build_ranker(recipe(trained), data)
    assert f"text_cnn: nothing to judge it by, the data has {told}" in str(refusal.value)
    wanted = "test queries" if trained else "queries"
    assert f"wanted {wanted} with a judged candidate of grade 1 or more" in str(refusal.value)


def test_queries_without_a_relevant_candidate_are_told_with_their_number() -> None:
    data = judged(TRAIN[:3], {"a": 3})
    data.judgements[TRAIN[0]] = {"a": 0, "b": 0}
    assert told_unanswerable(judging_queries(recipe(False), data)) == (
        "1 of 3 judged queries have no relevant candidate: they count as NDCG 0"
    )
    assert told_unanswerable(judged(TRAIN[:3], {"a": 3})) == ""


# ---------------------------------------------------------------- judged apart
def many(count: int, splits: dict[str, str] | None = None) -> JudgedQueries:
    ids = [f"q{number}" for number in range(count)]
    grades = {query_id: {"a": 3, "b": 0} for query_id in ids}
    return JudgedQueries(dict.fromkeys(ids, ""), PRODUCTS, grades, splits=splits or {})


def test_many_queries_are_parted_by_the_hash_of_their_id_and_stay_where_they_are_when_others_come() -> None:
    first, later = halves(many(LEAST_PARTED)), halves(many(2 * LEAST_PARTED))
    assert first.apart and first.names == ("validation", "test")
    assert not set(first.validation.queries) & set(first.test.queries)
    assert len(first.validation.queries) + len(first.test.queries) == LEAST_PARTED
    assert 0.4 < len(first.test.queries) / LEAST_PARTED < 0.6
    assert set(first.test.queries) <= set(later.test.queries)
    assert set(first.validation.queries) <= set(later.validation.queries)


def test_few_queries_are_both_halves_and_the_build_says_so() -> None:
    parts = halves(many(LEAST_PARTED - 1))
    assert not parts.apart and parts.validation == parts.test == many(LEAST_PARTED - 1)
    assert parts.told() == "variants are gated by, and NDCG@10 is of, the same 499 queries: fewer than 500"


def test_the_datas_own_split_stays_whatever_its_size() -> None:
    splits = {"q0": "train", "q1": "train", "q2": "validation", "q3": "test", "q4": "test"}
    trained, untrained = (judging_queries(recipe(trained), many(5, splits)) for trained in (True, False))
    assert [list(half.queries) for half in (halves(trained).validation, halves(trained).test)] == [["q2"], ["q3", "q4"]]
    assert list(halves(untrained).validation.queries) == ["q0", "q1", "q2"]
    assert halves(untrained).told() == "variants are gated by 3 validation queries, NDCG@10 is of 2 test queries"


def test_a_half_without_a_relevant_candidate_is_refused() -> None:
    data = many(3, {"q0": "train", "q1": "validation", "q2": "test"})
    data.judgements["q1"] = {"a": 0, "b": 0}
    with pytest.raises(DatasetError) as refusal:
        judging_queries(recipe(True), data)
    assert "and 1 validation queries (2 judged pairs, 0 with a relevant one) and 1 test queries" in str(refusal.value)


def test_a_split_of_the_file_is_read_and_written_and_changes_the_digest(tmp_path: Path) -> None:
    data = JudgedQueries(
        {"q": "mug", "r": "lamp"}, PRODUCTS, {"q": {"a": 3}, "r": {"b": 3}}, splits={"q": "test", "r": "train"}
    )
    write_judged(data, tmp_path)
    assert load_judged(tmp_path) == data and list(load_judged(tmp_path).subset("test").queries) == ["q"]
    assert data.digest != dataclasses.replace(data, splits={"q": "train", "r": "test"}).digest


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"split": "dev"}, "queries.jsonl:2: 'split' is 'dev', wanted one of train, validation, test"),
        ({}, "queries.jsonl:2: a 'split' in some queries and not in others, wanted it in all or in none"),
    ],
)
def test_a_split_that_is_none_is_refused_by_line(tmp_path: Path, second: dict[str, str], message: str) -> None:
    write_judged(JudgedQueries({"q": "mug", "r": "lamp"}, PRODUCTS, {"q": {"a": 3}, "r": {"b": 3}}), tmp_path)
    rows = [{"_id": "q", "text": "mug", "split": "test"}, {"_id": "r", "text": "lamp", **second}]
    (tmp_path / QUERIES).write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DatasetError, match=re.escape(message)):
        load_judged(tmp_path)


@pytest.mark.parametrize(("label", "sampled"), [(None, "1 + 99 sampled"), ([1, 1, 1, 1, 0], "1 + shown")])
def test_lists_say_how_their_candidates_were_drawn(tmp_path: Path, label: list[int] | None, sampled: str) -> None:
    days = ["2010-01-01", "2010-02-01", "2010-01-01", "2010-07-01", "2010-07-02"]
    columns = {"customer_id": [1, 1, 2, 1, 1], "stock_code": list("abcde"), "invoice_date": days}
    table = pa.table({**columns, "label": label} if label else columns)
    pq.write_table(table, tmp_path / PURCHASES)
    assert evaluation_lists(purchase_log(tmp_path, datetime.datetime(2010, 6, 1))).sampled == sampled


def test_a_metric_over_sampled_candidates_is_named_so() -> None:
    assert variant_row("int8").metric_name == "NDCG@10"
    assert variant_row("int8", sampled="1 + 99 sampled").metric_name == "NDCG@10 (1 + 99 sampled)"
    assert variant_row("int8", half="validation").half_text == " (validation)"
