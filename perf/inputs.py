"""Real requests for perf_analyzer: judged queries with their real candidates, in first-stage order.

The format is perf_analyzer's ``--input-data`` JSON; lists of BYTES vary in length, so each says its ``shape``.
Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/perf_analyzer/docs/input_data.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from builders.beir import JudgedQueries, Request
from builders.contract import HISTORY, ITEM_IDS, QUERY
from builders.files import write_atomically


def requests_json(judged: JudgedQueries, candidates: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """One request a query; ``top_k`` is left out, so the whole list comes back.

    Args:
        candidates: query id to item ids, in first-stage order.
    """
    return {"data": [_request(judged.request(query_id), candidates[query_id]) for query_id in judged.queries]}


def mean_candidates(requests: Mapping[str, Any]) -> float:
    """Candidates of a request, mean over the requests, which perf_analyzer sends in turn."""
    counts = [request[ITEM_IDS.name]["shape"][0] for request in requests["data"]]
    return sum(counts) / len(counts)


def write_requests(requests: Mapping[str, Any], path: Path) -> None:
    """Keep them as perf_analyzer reads them."""
    write_atomically(path, json.dumps(requests, ensure_ascii=False))


def _request(request: Request, item_ids: Sequence[str]) -> dict[str, Any]:
    """A query, or a history; an empty one is an unknown item, since perf_analyzer cannot send a list of none."""
    of_user = [request.query] if request.query else list(request.history) or ["unknown"]
    return {
        (QUERY if request.query else HISTORY).name: {"content": of_user, "shape": [len(of_user)]},
        ITEM_IDS.name: {"content": list(item_ids), "shape": [len(item_ids)]},
    }
