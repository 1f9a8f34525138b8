"""What may judge a ranker, and data in which nothing may."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.build import build_ranker
from builders.core.recipe import Recipe, load_recipe
from builders.core.workspace import REPOSITORY_ROOT
from builders.data.beir import DatasetError, JudgedQueries, Product, is_test_query
from builders.data.evaluation import judging_queries, told_unanswerable

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
