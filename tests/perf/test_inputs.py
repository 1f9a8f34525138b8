"""Requests for perf_analyzer."""

from __future__ import annotations

from perf.inputs import mean_candidates, requests_json


def test_each_request_keeps_its_candidates_order_and_says_its_shape() -> None:
    requests = requests_json({"q1": "red shoes", "q2": "鞋"}, {"q1": ["b", "a"], "q2": ["c"]})
    assert requests == {
        "data": [
            {"query": {"content": ["red shoes"], "shape": [1]}, "item_ids": {"content": ["b", "a"], "shape": [2]}},
            {"query": {"content": ["鞋"], "shape": [1]}, "item_ids": {"content": ["c"], "shape": [1]}},
        ]
    }


def test_mean_candidates_counts_ids_of_requests() -> None:
    assert mean_candidates(requests_json({"q1": "a", "q2": "b"}, {"q1": ["x", "y"], "q2": ["z"]})) == 1.5
