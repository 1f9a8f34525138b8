"""Real requests for perf_analyzer: judged queries with their real candidates, in first-stage order.

The format is perf_analyzer's ``--input-data`` JSON; lists of BYTES vary in length, so each says its ``shape``.
Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/perf_analyzer/docs/input_data.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from builders.contract import ITEM_IDS, QUERY
from builders.files import write_atomically


def requests_json(queries: Mapping[str, str], candidates: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """One request a query; ``top_k`` is left out, so the whole list comes back.

    Args:
        queries: query id to text.
        candidates: query id to item ids, in first-stage order.
    """
    return {"data": [_request(text, candidates[query_id]) for query_id, text in queries.items()]}


def mean_candidates(requests: Mapping[str, Any]) -> float:
    """Candidates of a request, mean over the requests, which perf_analyzer sends in turn."""
    counts = [request[ITEM_IDS.name]["shape"][0] for request in requests["data"]]
    return sum(counts) / len(counts)


def write_requests(requests: Mapping[str, Any], path: Path) -> None:
    """Keep them as perf_analyzer reads them."""
    write_atomically(path, json.dumps(requests, ensure_ascii=False))


def _request(query: str, item_ids: Sequence[str]) -> dict[str, Any]:
    return {
        QUERY.name: {"content": [query], "shape": [1]},
        ITEM_IDS.name: {"content": list(item_ids), "shape": [len(item_ids)]},
    }
