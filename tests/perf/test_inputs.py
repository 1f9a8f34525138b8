"""Requests for perf_analyzer."""

from __future__ import annotations

import pytest

from builders.core.contract import CONTEXT, HISTORY, ITEM_IDS, QUERY, USER_ID
from builders.data.beir import JudgedQueries, Product, Request
from perf.errors import PerfError
from perf.inputs import RequestMix, evenly_mixed, mean_candidates, mixed_requests, requests_json
from tests.support.figures import asked


def test_each_request_keeps_its_candidates_order_and_says_its_shape() -> None:
    requests = requests_json(asked({"q1": "red shoes", "q2": "鞋"}), {"q1": ["b", "a"], "q2": ["c"]})
    assert requests == {
        "data": [
            {
                QUERY.name: {"content": ["red shoes"], "shape": [1]},
                ITEM_IDS.name: {"content": ["b", "a"], "shape": [2]},
            },
            {QUERY.name: {"content": ["鞋"], "shape": [1]}, ITEM_IDS.name: {"content": ["c"], "shape": [1]}},
        ]
    }


def test_mean_candidates_counts_ids_of_requests() -> None:
    assert mean_candidates(requests_json(asked({"q1": "a", "q2": "b"}), {"q1": ["x", "y"], "q2": ["z"]})) == 1.5


def test_a_request_without_a_query_sends_its_history_and_never_an_empty_list() -> None:
    requests = {"u1": Request(history=("a", "b")), "u2": Request()}
    users = JudgedQueries({"u1": "", "u2": ""}, {}, {}, requests)
    [first, second] = requests_json(users, {"u1": ["x"], "u2": ["x"]})["data"]
    assert first[HISTORY.name] == {"content": ["a", "b"], "shape": [2]}
    assert second[HISTORY.name]["shape"] == [1]
    assert "query" not in first


def test_user_and_context_are_sent_to_an_endpoint_that_reads_them() -> None:
    asked_by = {"u1": Request(history=("a",), user_id="u1", context={"country": "DE"}), "u2": Request(history=("b",))}
    users = JudgedQueries({"u1": "", "u2": ""}, {}, {}, asked_by)
    lists = {"u1": ["x"], "u2": ["x"]}
    [first, second] = requests_json(users, lists, reads=("history", "user_id", "context"))["data"]
    assert first[USER_ID.name] == {"content": ["u1"], "shape": [1]}
    assert first[CONTEXT.name] == {"content": ['{"country": "DE"}'], "shape": [1]}
    assert second[USER_ID.name]["content"] == [""]
    assert requests_json(users, lists)["data"][0].keys() == {HISTORY.name, ITEM_IDS.name}


def test_evenly_mixed_requests_have_the_mean_number_of_candidates_from_the_first_on() -> None:
    queries = {f"q{count}": "red" for count in range(1, 10)}
    requests = requests_json(asked(queries), {f"q{count}": ["x"] * count for count in range(1, 10)})
    mixed = evenly_mixed(requests)
    counts = [request[ITEM_IDS.name]["shape"][0] for request in mixed["data"]]
    assert sorted(counts) == list(range(1, 10))
    assert all(abs(sum(counts[:end]) / end - 5) <= 1 for end in range(1, 10))


# ---------------------------------------------------------------- mixes
CATALOGUE = JudgedQueries(
    {"q1": "red", "q2": "red shoes", "q3": "red running shoes"},
    {name: Product(name, name) for name in "abcd"},
    {name: {"b": 1, "a": 1} for name in ("q1", "q2", "q3")},
)
LISTS = {name: ["b", "a"] for name in CATALOGUE.queries}


def lists_of(mix: RequestMix) -> list[list[str]]:
    return [each[ITEM_IDS.name]["content"] for each in mixed_requests(CATALOGUE, LISTS, mix)["data"]]


def test_requests_are_as_they_are_where_no_mix_is_asked_for() -> None:
    assert mixed_requests(CATALOGUE, LISTS, RequestMix()) == requests_json(CATALOGUE, LISTS)


def test_lists_are_cut_or_filled_from_the_catalogue_to_the_sizes_in_turn() -> None:
    assert lists_of(RequestMix(candidates=(1, 4))) == [["b"], ["b", "a", "c", "d"], ["b"]]


def test_only_queries_of_so_many_words_are_sent() -> None:
    sent = mixed_requests(CATALOGUE, LISTS, RequestMix(query_words=(2, 3)))["data"]
    assert [each[QUERY.name]["content"] for each in sent] == [["red shoes"], ["red running shoes"]]


def test_a_mix_that_cannot_be_made_is_refused_with_what_there_is() -> None:
    with pytest.raises(PerfError, match=r"query_words 7 to 9: no query has so many words; there are \[1, 2, 3\]"):
        lists_of(RequestMix(query_words=(7, 9)))
    with pytest.raises(PerfError, match=r"mix\.candidates 5: the catalogue has 4 items"):
        lists_of(RequestMix(candidates=(5,)))
