"""What a client accepts as an answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tritonrank_client import MockTransport, ModelSpec, RankClient, Rules, ServerError
from tritonrank_client._contract import LIMITS, RANK

from builders.core.contract import RANKED_IDS, SCORES

RULES = ("in_stock_only", "boosted", "boost_amounts", "pinned_ids", "pinned_positions", "max_per_brand")
WITHOUT_RULES = ModelSpec(tuple(tensor for tensor in RANK.inputs if tensor.name not in RULES), RANK.outputs)


def answer(ids=(b"b", b"a"), scores=(2.5, -1.0), dtype=np.float32):
    return {RANKED_IDS.name: np.array(ids, dtype=object), SCORES.name: np.array(scores, dtype=dtype)}


def rank(outputs, served=WITHOUT_RULES, **options):
    client = RankClient("mock", timeout_s=30, transport=MockTransport(lambda request: outputs, served))
    return client.rank("shoes", ["a", "b"], **options)


def test_a_ranked_list_holds_ids_and_scores_and_iterates_in_pairs():
    ranked = rank(answer())

    assert ranked.ids == ("b", "a")
    assert ranked.scores.dtype == np.float32 and ranked.scores.tolist() == [2.5, -1.0]
    assert list(ranked) == [("b", 2.5), ("a", -1.0)]
    assert len(ranked) == 2


def test_a_ranked_list_cannot_be_changed():
    ranked = rank(answer())

    with pytest.raises(dataclasses.FrozenInstanceError):
        ranked.ids = ()
    with pytest.raises(ValueError, match="read-only"):
        ranked.scores[0] = 9


def test_the_servers_array_stays_writeable():
    outputs = answer()
    rank(outputs)

    outputs[SCORES.name][0] = 9


def test_items_without_a_score_are_told_apart():
    assert rank(answer(scores=(2.5, LIMITS.unscored))).scored.tolist() == [True, False]


def test_equal_scores_are_in_order():
    assert rank(answer(scores=(1, 1))).ids == ("b", "a")


BROKEN = [
    ({SCORES.name: answer()[SCORES.name]}, f"found no output '{RANKED_IDS.name}'"),
    ({RANKED_IDS.name: answer()[RANKED_IDS.name]}, f"found no output '{SCORES.name}'"),
    (answer(dtype=np.float64), f"{SCORES.name}: found dtype float64, wanted float32 (FP32)"),
    (answer(scores=[[2], [1]]), f"{SCORES.name}: found shape [2, 1], wanted [any]"),
    (answer(scores=[2, np.nan]), f"{SCORES.name}[1]: found nan, wanted a finite number"),
    (answer(scores=[np.inf, 1]), f"{SCORES.name}[0]: found inf, wanted a finite number"),
    (answer(scores=[1, 2]), f"{SCORES.name}[1]: found 2.0 after 1.0, wanted the highest first"),
    (answer(ids=[b"a"], scores=[1]), "found 1 ranked_ids and 1 scores, wanted 2 of each"),
    (answer(scores=[1]), "found 2 ranked_ids and 1 scores, wanted 2 of each"),
    (answer(ids=[b"a", b"c"]), f"{RANKED_IDS.name}: found 'c', wanted ids of the request"),
    (answer(ids=[b"a", b"a"]), f"{RANKED_IDS.name}: found 1 repeated ids, wanted distinct ones"),
    (answer(ids=[b"a", b"\xff"]), f"{RANKED_IDS.name}: found b'\\xff', wanted UTF-8"),
]


@pytest.mark.parametrize(("outputs", "fault"), BROKEN, ids=[fault for _, fault in BROKEN])
def test_an_answer_that_breaks_the_contract_is_a_server_error(outputs, fault):
    with pytest.raises(ServerError) as caught:
        rank(outputs)

    assert str(caught.value) == f"the server's answer breaks the contract: {fault}; see the server's log"


def test_an_answer_longer_than_top_k_is_a_server_error():
    with pytest.raises(ServerError, match="found 2 ranked_ids and 2 scores, wanted 1 of each"):
        rank(answer(), top_k=1)


# ---------------------------------------------------------------- what rules may do to an answer
ONE, ASCENDING = answer(ids=[b"a"], scores=[1]), answer(scores=[1, 2])


@pytest.mark.parametrize("rules", [None, Rules(), Rules(in_stock_only=True)])
def test_a_filter_of_the_request_or_of_the_recipe_may_shorten_the_list(rules):
    assert rank(ONE, RANK, rules=rules).ids == ("a",)
    assert len(rank(answer(ids=[], scores=[]), RANK, rules=rules)) == 0


def test_a_list_is_whole_where_no_filter_is_asked_for():
    with pytest.raises(ServerError, match="found 1 ranked_ids and 1 scores, wanted 2 of each"):
        rank(ONE, RANK, rules=Rules(in_stock_only=False))


def test_a_filter_does_not_lengthen_the_list():
    with pytest.raises(ServerError, match="found 2 ranked_ids and 2 scores, wanted at most 1 of each"):
        rank(answer(), RANK, top_k=1)


@pytest.mark.parametrize(
    "rules", [None, Rules(pins={"b": 1}), Rules(pins={"b": 1}, max_per_brand=0), Rules(pins={}), Rules(max_per_brand=2)]
)
def test_pins_and_a_brand_limit_of_the_request_or_of_the_recipe_may_change_the_order(rules):
    assert rank(ASCENDING, RANK, rules=rules).scores.tolist() == [1, 2]


def test_the_highest_comes_first_where_pins_and_a_limit_are_switched_off():
    with pytest.raises(ServerError, match=r"scores\[1\]: found 2.0 after 1.0, wanted the highest first"):
        rank(ASCENDING, RANK, rules=Rules(pins={}, max_per_brand=0, boosts={"brand=Acme": 1}))


# ---------------------------------------------------------------- similar items
def similar(outputs, top_k=2):
    client = RankClient("mock", timeout_s=30, transport=MockTransport(lambda request: outputs))
    return client.similar("x", top_k)


def test_similar_items_are_others_than_the_one_asked_about():
    assert list(similar(answer(scores=[0.9, 0.1]))) == [("b", pytest.approx(0.9)), ("a", pytest.approx(0.1))]
    assert similar(ONE).ids == ("a",)
    with pytest.raises(ServerError, match=f"{RANKED_IDS.name}: found 'x', wanted other items than the one asked about"):
        similar(answer(ids=[b"x", b"a"]))


@pytest.mark.parametrize(
    ("outputs", "fault"),
    [
        (answer(scores=[0.1, 0.9]), "wanted the highest first"),
        (answer(ids=[b"a", b"a"]), "found 1 repeated ids"),
        (answer(ids=[b"a", b"b", b"c"], scores=[3, 2, 1]), "found 3 ranked_ids and 3 scores, wanted at most 2 of each"),
    ],
)
def test_an_answer_of_similar_items_that_breaks_the_contract_is_a_server_error(outputs, fault):
    with pytest.raises(ServerError, match=fault):
        similar(outputs)
