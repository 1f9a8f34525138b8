"""Slices: queries fall into the right groups, differences are against the rest, small groups are not judged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from builders.data.beir import JudgedQueries, Product, Request
from builders.evaluate import slices
from builders.evaluate.metrics import QualityError
from builders.evaluate.slices import SLICES, Slice, slice_quality, slice_table, worst_slice, worst_text

PRODUCTS = {
    **{f"n{number}": Product(f"n{number}", "", brand="Nike") for number in range(3)},
    **{name: Product(name, "", brand=name) for name in ("alone", "single", "solo")},
    "plain": Product("plain", ""),
}


def judged_of(texts: dict[str, str], **more: object) -> JudgedQueries:
    """Each query judged on one product, "n0" unless ``judgements`` says otherwise."""
    judgements = more.pop("judgements", {query_id: {"n0": 3} for query_id in texts})
    return JudgedQueries(texts, PRODUCTS, judgements, **more)  # type: ignore[arg-type]


@pytest.fixture
def own_slice() -> Iterator[str]:
    SLICES["first_letter"] = lambda judged, query_id: judged.queries[query_id][0]
    yield "first_letter"
    del SLICES["first_letter"]


# ---------------------------------------------------------------- groups
@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("", "no query"),
        ("mug", "1-2 words"),
        ("red  mug", "1-2 words"),
        ("a red mug", "3-4 words"),
        ("a red mug set", "3-4 words"),
        ("a red mug set of", "5+ words"),
    ],
)
def test_queries_are_grouped_by_words(text: str, group: str) -> None:
    assert slices.query_length(judged_of({"q": text}), "q") == group


@pytest.mark.parametrize(
    ("grades", "group"),
    [
        ({"n0": 3, "n1": 3, "alone": 3}, "common brands"),
        ({"n0": 3, "alone": 3}, "common brands"),
        ({"n0": 3, "alone": 3, "single": 3}, "rare brands"),
        ({"n0": 2, "alone": 3, "plain": 3}, "rare brands"),
        ({"n0": 2, "plain": 3}, "no brand"),
    ],
)
def test_queries_are_grouped_by_the_brands_of_their_exact_products(grades: dict[str, int], group: str) -> None:
    assert slices.brand_popularity(judged_of({"q": "mug"}, judgements={"q": grades}), "q") == group


def test_a_brand_is_common_or_rare_in_its_own_corpus() -> None:
    judgements = {"q": {"alone": 3}}
    small = {"alone": PRODUCTS["alone"], "a2": Product("a2", "", brand="alone"), "solo": PRODUCTS["solo"]}
    many = {**small, **{f"s{number}": Product(f"s{number}", "", brand="solo") for number in range(9)}}
    assert slices.brand_popularity(JudgedQueries({"q": ""}, many, judgements), "q") == "rare brands"
    few = {**small, "x": Product("x", "", brand="x"), "y": Product("y", "", brand="y")}
    assert slices.brand_popularity(JudgedQueries({"q": ""}, few, judgements), "q") == "common brands"


def test_requests_are_grouped_by_the_users_country_and_history() -> None:
    requests = {"a": Request(user_id="1", history=("n0",)), "b": Request(user_id="2"), "c": Request()}
    judged = judged_of(dict.fromkeys("abc", ""), requests=requests, users={"1": {"country": "Peru"}, "2": {}})
    assert [slices.country(judged, query_id) for query_id in "abc"] == ["Peru", "unknown", "unknown"]
    assert [slices.history(judged, query_id) for query_id in "abc"] == ["warm", "cold", "cold"]


# ---------------------------------------------------------------- figures
def two_groups() -> tuple[JudgedQueries, dict[str, float]]:
    """20 short queries of NDCG about 0.9 and 10 long ones of about 0.3."""
    draw = np.random.default_rng(1)
    texts = {f"q{number}": "mug" if number < 20 else "a very long mug query" for number in range(30)}
    ndcg = {query_id: float(draw.normal(0.9 if text == "mug" else 0.3, 0.05)) for query_id, text in texts.items()}
    return judged_of(texts), ndcg


def test_a_group_is_compared_with_all_other_queries() -> None:
    judged, ndcg = two_groups()
    long, short = slice_quality(judged, ndcg, ["query_length"])
    values = list(ndcg.values())
    assert (long.name, long.group, long.queries) == ("query_length", "5+ words", 10)
    assert (short.group, short.queries) == ("1-2 words", 20)
    assert long.ndcg == pytest.approx(np.mean(values[20:]))
    assert long.difference == pytest.approx(np.mean(values[20:]) - np.mean(values[:20]))
    assert short.difference == pytest.approx(-long.difference)
    assert long.is_worse and not short.is_worse


def test_the_interval_is_near_welchs() -> None:
    judged, ndcg = two_groups()
    long, _ = slice_quality(judged, ndcg, ["query_length"])
    values = list(ndcg.values())
    welch = scipy.stats.ttest_ind(values[20:], values[:20], equal_var=False).confidence_interval(0.95)
    assert (long.low, long.high) == pytest.approx((welch.low, welch.high), abs=0.02)


def test_small_groups_are_merged_and_one_alone_is_not_judged(own_slice: str) -> None:
    texts = {f"{letter}{number}": letter for letter, count in (("a", 6), ("b", 2), ("c", 3)) for number in range(count)}
    judged = judged_of(texts)
    ndcg = {query_id: 0.1 * index for index, query_id in enumerate(texts)}
    rows = {row.group: row for row in slice_quality(judged, ndcg, [own_slice])}
    assert {group: row.queries for group, row in rows.items()} == {"a": 6, "other": 5}
    alone = {row.group: row for row in slice_quality(judged.only([*texts][:8]), dict([*ndcg.items()][:8]), [own_slice])}
    assert {group: row.queries for group, row in alone.items()} == {"a": 6, "b": 2}
    assert all(row.difference is None and "too few queries" in str(row) for row in alone.values())


def test_a_slice_of_one_group_is_not_judged() -> None:
    judged, ndcg = two_groups()
    [row] = slice_quality(judged, ndcg, ["history"])
    assert (row.group, row.queries, row.difference) == ("cold", 30, None)


def test_equal_figures_have_an_interval_of_one_point() -> None:
    judged, _ = two_groups()
    rows = slice_quality(judged, dict.fromkeys(judged.queries, 0.5), ["query_length"])
    assert [(row.difference, row.low, row.high) for row in rows] == [(0.0, 0.0, 0.0)] * 2
    assert worst_slice(rows) is None


def test_an_unknown_slice_or_query_is_refused() -> None:
    judged, ndcg = two_groups()
    with pytest.raises(QualityError, match=r"slices colour: wanted of query_length, brand_popularity"):
        slice_quality(judged, ndcg, ["colour"])
    with pytest.raises(QualityError, match="'q99' is not judged"):
        slice_quality(judged, {"q99": 1.0})
    with pytest.raises(QualityError, match="no query"):
        slice_quality(judged, {})


# ---------------------------------------------------------------- the worst
CLEAR = Slice("country", "Peru", 40, 0.5, -0.1, -0.15, -0.05)
LARGER_BUT_UNSURE = Slice("country", "Chad", 5, 0.3, -0.3, -0.7, 0.1)
BETTER = Slice("history", "warm", 60, 0.7, 0.2, 0.1, 0.3)
UNJUDGED = Slice("history", "cold", 2, 0.0)


def test_a_sure_loss_is_worse_than_a_larger_one_that_may_be_chance() -> None:
    assert worst_slice([LARGER_BUT_UNSURE, BETTER, CLEAR, UNJUDGED]) == CLEAR
    assert worst_slice([LARGER_BUT_UNSURE, BETTER]) == LARGER_BUT_UNSURE
    assert worst_slice([BETTER, UNJUDGED]) is None


def test_the_worst_slice_is_named_with_its_doubt() -> None:
    assert worst_text([CLEAR]) == (
        "worst slice: country Peru: NDCG 0.5000 over 40 queries, -0.1000 [-0.1500, -0.0500] from the rest"
    )
    assert worst_text([LARGER_BUT_UNSURE]).endswith("the interval holds 0, so it may be chance")
    assert worst_text([BETTER]).startswith("worst slice: none")


def test_the_table_shows_every_group() -> None:
    console = Console(width=160, record=True)
    console.print(slice_table([CLEAR, LARGER_BUT_UNSURE, BETTER, UNJUDGED]))
    shown = console.export_text()
    for text in ("Peru", "-0.1000 [-0.1500, -0.0500]", "warm", "too few queries", "worst slice: country Peru"):
        assert text in shown


def test_all_slices_of_the_real_queries_hold_every_query(judged: JudgedQueries) -> None:
    ndcg = {query_id: 1 / (1 + len(text)) for query_id, text in judged.queries.items()}
    rows = slice_quality(judged, ndcg)
    assert {row.name for row in rows} == set(SLICES)
    for name in SLICES:
        assert sum(row.queries for row in rows if row.name == name) == len(judged.queries)
