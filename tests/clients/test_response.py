"""What a client accepts as an answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tritonrank_client import MockTransport, RankClient, ServerError
from tritonrank_client._contract import RANK


def answer(ids=(b"b", b"a"), scores=(2.5, -1.0), dtype=np.float32):
    return {"ranked_ids": np.array(ids, dtype=object), "scores": np.array(scores, dtype=dtype)}


def rank(outputs, **options):
    client = RankClient("mock", timeout_s=30, transport=MockTransport(lambda request: outputs))
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

    outputs["scores"][0] = 9


def test_items_without_a_score_are_told_apart():
    assert rank(answer(scores=(2.5, RANK.unscored))).scored.tolist() == [True, False]


def test_equal_scores_are_in_order():
    assert rank(answer(scores=(1, 1))).ids == ("b", "a")


BROKEN = [
    ({"scores": answer()["scores"]}, "found no output 'ranked_ids'"),
    ({"ranked_ids": answer()["ranked_ids"]}, "found no output 'scores'"),
    (answer(dtype=np.float64), "scores: found dtype float64, wanted float32 (FP32)"),
    (answer(scores=[[2], [1]]), "scores: found shape [2, 1], wanted [any]"),
    (answer(scores=[2, np.nan]), "scores[1]: found nan, wanted a finite number"),
    (answer(scores=[np.inf, 1]), "scores[0]: found inf, wanted a finite number"),
    (answer(scores=[1, 2]), "scores[1]: found 2.0 after 1.0, wanted the highest first"),
    (answer(ids=[b"a"], scores=[1]), "found 1 ranked_ids and 1 scores, wanted 2 of each"),
    (answer(scores=[1]), "found 2 ranked_ids and 1 scores, wanted 2 of each"),
    (answer(ids=[b"a", b"c"]), "ranked_ids: found 'c', wanted ids of the request"),
    (answer(ids=[b"a", b"a"]), "ranked_ids: found 1 repeated ids, wanted distinct ones"),
    (answer(ids=[b"a", b"\xff"]), "ranked_ids: found b'\\xff', wanted UTF-8"),
]


@pytest.mark.parametrize(("outputs", "fault"), BROKEN, ids=[fault for _, fault in BROKEN])
def test_an_answer_that_breaks_the_contract_is_a_server_error(outputs, fault):
    with pytest.raises(ServerError) as caught:
        rank(outputs)

    assert str(caught.value) == f"the server's answer breaks the contract: {fault}; see the server's log"


def test_an_answer_longer_than_top_k_is_a_server_error():
    with pytest.raises(ServerError, match="found 2 ranked_ids and 2 scores, wanted 1 of each"):
        rank(answer(), top_k=1)
