"""What a client accepts as an answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tritonrank_client import ListRules, MockTransport, ModelSpec, RankClient, Rules, ServerError, Unavailable
from tritonrank_client._contract import LIMITS, RANK

from builders.core.contract import LEFT_OUT, RANKED_IDS, SCORES

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
ONE, EMPTY = answer(ids=[b"a"], scores=[1]), answer(ids=[], scores=[])
IN_STOCK = Rules(in_stock_only=True)


def says(**lists):
    """A server that says of its lists what its recipe's own rules do."""
    return dataclasses.replace(RANK, lists=ListRules(**lists))


def with_left_out(outputs, count):
    return {**outputs, LEFT_OUT.name: np.array([count], dtype=np.int32)}


SHORTENED = [(RANK, IN_STOCK), (says(in_stock_only=True), None), (says(in_stock_only=True), Rules())]


@pytest.mark.parametrize(("served", "rules"), SHORTENED)
def test_a_filter_of_the_request_or_of_the_recipe_may_shorten_the_list(served, rules):
    shorter = rank(with_left_out(ONE, 1), served, rules=rules)
    assert (shorter.ids, shorter.left_out) == (("a",), 1)
    assert rank(with_left_out(EMPTY, 2), served, rules=rules).left_out == 2
    assert rank(with_left_out(answer(), 0), served, rules=rules).left_out == 0


@pytest.mark.parametrize(("served", "rules"), SHORTENED)
def test_a_filtered_list_is_as_short_as_the_server_says(served, rules):
    with pytest.raises(ServerError, match="found 0 ranked_ids and 0 scores, wanted 1 of each"):
        rank(with_left_out(EMPTY, 1), served, rules=rules)
    with pytest.raises(ServerError, match="found 1 ranked_ids and 1 scores, wanted 2 of each"):
        rank(with_left_out(ONE, 0), served, rules=rules)
    with pytest.raises(ServerError, match="left_out: found 3 of 2 items, wanted 0 to 2"):
        rank(with_left_out(EMPTY, 3), served, rules=rules)


@pytest.mark.parametrize(("served", "rules"), SHORTENED)
def test_a_server_that_counts_nothing_may_shorten_by_a_filter_alone(served, rules):
    assert rank(ONE, served, rules=rules).left_out is None
    assert len(rank(EMPTY, served, rules=rules)) == 0


@pytest.mark.parametrize("outputs", [ONE, EMPTY], ids=["shorter", "empty"])
@pytest.mark.parametrize(
    ("served", "rules"),
    [
        (RANK, None),
        (RANK, Rules()),
        (says(), None),
        (says(pinned=frozenset("a"), max_per_brand=1), None),
        (says(in_stock_only=True), Rules(in_stock_only=False)),
    ],
)
def test_a_list_is_whole_where_no_filter_is_in_force(outputs, served, rules):
    count = len(outputs[SCORES.name])
    with pytest.raises(ServerError, match=f"found {count} ranked_ids and {count} scores, wanted 2 of each"):
        rank(outputs, served, rules=rules)
    with pytest.raises(ServerError, match="left_out: found 1 of 2 items, wanted 0 to 0, since no filter is in force"):
        rank(with_left_out(outputs, 1), served, rules=rules)


def test_a_filter_does_not_lengthen_the_list():
    with pytest.raises(ServerError, match="found 2 ranked_ids and 2 scores, wanted at most 1 of each"):
        rank(answer(), says(in_stock_only=True), top_k=1)


def test_the_servers_own_number_of_items_holds_where_none_is_asked():
    assert rank(ONE, says(default_top_k=1)).ids == ("a",)
    assert len(rank(answer(), says(default_top_k=1), top_k=2)) == 2


IDS = ["a", "b", "c", "d"]


def ordered(scores, served=RANK, rules=None):
    outputs = answer([item_id.encode() for item_id in IDS], scores)
    client = RankClient("mock", timeout_s=30, transport=MockTransport(lambda request: outputs, served))
    return client.rank("shoes", IDS, rules=rules).scores.tolist()


@pytest.mark.parametrize(
    ("scores", "served", "rules"),
    [
        ([1, 4, 3, 2], RANK, Rules(pins={"a": 1})),
        ([1, 4, 3, 2], says(pinned=frozenset("a")), None),
        ([3, 9, 2, 1], says(pinned=frozenset(["b", "absent"])), Rules()),
        ([4, 1, 3, 2], RANK, Rules(max_per_brand=1)),
        ([4, 1, 3, 2], says(max_per_brand=1), None),
        ([1, 4, 2, 3], RANK, Rules(pins={"a": 1}, max_per_brand=1)),
    ],
)
def test_pins_and_a_brand_limit_of_the_request_or_of_the_recipe_may_change_the_order(scores, served, rules):
    assert ordered(scores, served, rules) == scores


@pytest.mark.parametrize(
    ("scores", "served", "rules", "fault"),
    [
        ([1, 2, 3, 4], RANK, None, r"scores\[1\]: found 2.0 after 1.0, wanted the highest first;"),
        ([1, 4, 3, 2], says(in_stock_only=True), None, r"scores\[1\]: found 4.0 after 1.0, wanted the highest first;"),
        ([1, 2, 3, 4], RANK, Rules(pins={"a": 1}), r"scores\[2\]: found 3.0 after 2.0, .* but for 1 pinned items;"),
        ([1, 2, 3, 4], says(max_per_brand=1), None, r"scores\[2\]: found 3.0 after 2.0, .* but for a brand limit;"),
        ([4, 1, 3, 2], says(pinned=frozenset("b")), Rules(pins={}), "found 3.0 after 1.0, wanted the highest first;"),
        ([4, 1, 3, 2], says(max_per_brand=1), Rules(max_per_brand=0, boosts={"a=b": 1}), "found 3.0 after 1.0"),
    ],
)
def test_an_order_that_no_rule_in_force_explains_is_a_server_error(scores, served, rules, fault):
    with pytest.raises(ServerError, match=fault):
        ordered(scores, served, rules)


class Republished(MockTransport):
    """Says at first use what was published then, and afterwards what is published now."""

    def __init__(self, outputs, *said):
        super().__init__(lambda request: outputs)
        self.said = list(said)

    def served_model(self, model, timeout_s):
        said = self.said.pop(0)
        if isinstance(said, Exception):
            raise said
        return said


def test_rules_that_were_published_meanwhile_are_read_anew():
    transport = Republished(ONE, says(), says(in_stock_only=True))
    client = RankClient("mock", timeout_s=30, transport=transport)

    assert client.rank("shoes", ["a", "b"]).ids == ("a",)
    assert client.rank("shoes", ["a", "b"]).ids == ("a",) and not transport.said


@pytest.mark.parametrize("then", [says(), says(max_per_brand=1), Unavailable("gone")])
def test_a_broken_list_stays_broken_where_the_rules_read_anew_do_not_explain_it(then):
    with pytest.raises(ServerError, match="found 1 ranked_ids"):
        RankClient("mock", timeout_s=30, transport=Republished(ONE, says(), then)).rank("shoes", ["a", "b"])


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
