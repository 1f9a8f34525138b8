"""The skewed log that `perf bench --part cache` replays."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from builders.data.beir import JudgedQueries, Product
from perf.bench_base import Bench
from perf.bench_cache import CHANGING, FIRST_STAGE, skewed_log
from perf.kit.data import USUAL_CANDIDATES, Workspace

QUERIES, ITEMS, REQUESTS = 20, 100, 5000


@pytest.fixture(scope="module")
def bench() -> Bench:
    products = {f"i{number}": Product(f"i{number}", f"title {number}") for number in range(ITEMS)}
    queries = {f"q{number}": f"query {number}" for number in range(QUERIES)}
    judged = JudgedQueries(queries, products, {query: {"i99": 1} for query in queries})
    return Bench(judged, {query: ["i99"] for query in queries}, (), {}, Workspace(), Console())


def test_queries_are_asked_by_zipfs_law(bench: Bench) -> None:
    log = skewed_log(bench, REQUESTS)
    found = [count for _, count in Counter(request.query for request, _ in log).most_common()]
    wanted = 1 / np.arange(1, QUERIES + 1)
    assert np.array(found) / REQUESTS == pytest.approx(wanted / wanted.sum(), abs=0.02)
    assert skewed_log(bench, REQUESTS) == log != skewed_log(bench, REQUESTS, seed=1)


def test_some_requests_of_a_query_leave_other_items_out(bench: Bench) -> None:
    lists = [item_ids for _, item_ids in skewed_log(bench, REQUESTS)]
    usual = ["i99", *(f"i{number}" for number in range(USUAL_CANDIDATES - 1))]
    assert sum(one == usual for one in lists) / REQUESTS == pytest.approx(1 - CHANGING, abs=0.03)
    assert {item for one in lists for item in one} == {"i99", *(f"i{number}" for number in range(FIRST_STAGE - 1))}
    assert all(len(set(one)) == USUAL_CANDIDATES for one in lists)
