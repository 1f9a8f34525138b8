"""Requests for perf_analyzer."""

from __future__ import annotations

from builders.beir import JudgedQueries, Request
from perf.inputs import mean_candidates, requests_json
from tests.perf.figures import asked


def test_each_request_keeps_its_candidates_order_and_says_its_shape() -> None:
    requests = requests_json(asked({"q1": "red shoes", "q2": "鞋"}), {"q1": ["b", "a"], "q2": ["c"]})
    assert requests == {
        "data": [
            {"query": {"content": ["red shoes"], "shape": [1]}, "item_ids": {"content": ["b", "a"], "shape": [2]}},
            {"query": {"content": ["鞋"], "shape": [1]}, "item_ids": {"content": ["c"], "shape": [1]}},
        ]
    }


def test_mean_candidates_counts_ids_of_requests() -> None:
    assert mean_candidates(requests_json(asked({"q1": "a", "q2": "b"}), {"q1": ["x", "y"], "q2": ["z"]})) == 1.5


def test_a_request_without_a_query_sends_its_history_and_never_an_empty_list() -> None:
    requests = {"u1": Request(history=("a", "b")), "u2": Request()}
    users = JudgedQueries({"u1": "", "u2": ""}, {}, {}, requests)
    [first, second] = requests_json(users, {"u1": ["x"], "u2": ["x"]})["data"]
    assert first["history"] == {"content": ["a", "b"], "shape": [2]}
    assert second["history"]["shape"] == [1]
    assert "query" not in first
