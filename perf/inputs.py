"""Real requests for perf_analyzer: judged queries with their real candidates, in first-stage order.

The format is perf_analyzer's ``--input-data`` JSON; lists of BYTES vary in length, so each says its ``shape``.
Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/perf_analyzer/docs/input_data.html
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from perf.errors import PerfError
from perf.kit.data import CONTEXT, HISTORY, ITEM_IDS, QUERY, USER_ID, JudgedQueries, Request, write_atomically


class RequestMix(pydantic.BaseModel):
    """Which of the real requests are sent; as they are unless told.

    Attributes:
        candidates: sizes that lists are cut to, or filled up to from the catalogue, in turn; absent = as they are.
        query_words: only queries of at least and at most so many words.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    candidates: tuple[pydantic.PositiveInt, ...] = ()
    query_words: tuple[pydantic.NonNegativeInt, pydantic.PositiveInt] | None = None


def mixed_requests(
    judged: JudgedQueries, candidates: Mapping[str, Sequence[str]], mix: RequestMix, reads: Collection[str] = ()
) -> dict[str, Any]:
    """As :func:`requests_json`, of the queries and with the numbers of candidates that the mix asks for.

    Raises:
        PerfError: no query is left, or the catalogue has fewer items than a list shall have.
    """
    chosen = _of_length(judged, mix.query_words)
    sizes: Iterator[int | None] = itertools.cycle(mix.candidates or [None])
    lists = {query_id: _sized(candidates[query_id], judged, next(sizes)) for query_id in chosen.queries}
    return requests_json(chosen, lists, reads)


def _of_length(judged: JudgedQueries, words: tuple[int, int] | None) -> JudgedQueries:
    if words is None:
        return judged
    least, most = words
    chosen = [query_id for query_id, query in judged.queries.items() if least <= len(query.split()) <= most]
    if not chosen:
        counts = sorted({len(query.split()) for query in judged.queries.values()})
        raise PerfError(f"mix.query_words {least} to {most}: no query has so many words; there are {counts}")
    return judged.only(chosen)


def _sized(item_ids: Sequence[str], judged: JudgedQueries, size: int | None) -> Sequence[str]:
    if size is None:
        return item_ids
    filled = list(itertools.islice(dict.fromkeys(itertools.chain(item_ids, judged.products)), size))
    if len(filled) < size:
        raise PerfError(f"mix.candidates {size}: the catalogue has {len(judged.products)} items")
    return filled


def requests_json(
    judged: JudgedQueries, candidates: Mapping[str, Sequence[str]], reads: Collection[str] = ()
) -> dict[str, Any]:
    """One request a query; ``top_k`` is left out, so the whole list comes back.

    Args:
        candidates: query id to item ids, in first-stage order.
        reads: names of the endpoint's inputs: the user and the context are sent where it has them.
    """
    return {"data": [_request(judged.request(query_id), candidates[query_id], reads) for query_id in judged.queries]}


def evenly_mixed(requests: Mapping[str, Any]) -> dict[str, Any]:
    """The same requests so ordered that the first few have about as many candidates as all on average.

    perf_analyzer sends them in turn, and a slow variant does not come as far in its windows as a quick one: both shall
    be asked for the same.
    """
    left, mean = list(requests["data"]), mean_candidates(requests)
    ordered: list[Any] = []
    surplus = 0.0
    while left:
        nearest = min(left, key=lambda request: abs(surplus + _candidates(request) - mean))
        left.remove(nearest)
        ordered.append(nearest)
        surplus += _candidates(nearest) - mean
    return {"data": ordered}


def mean_candidates(requests: Mapping[str, Any]) -> float:
    """Candidates of a request, mean over the requests, which perf_analyzer sends in turn."""
    counts = [_candidates(request) for request in requests["data"]]
    return sum(counts) / len(counts)


def write_requests(requests: Mapping[str, Any], path: Path) -> None:
    """Keep them as perf_analyzer reads them."""
    write_atomically(path, json.dumps(requests, ensure_ascii=False))


def _candidates(request: Mapping[str, Any]) -> int:
    return int(request[ITEM_IDS.name]["shape"][0])


def _request(request: Request, item_ids: Sequence[str], reads: Collection[str]) -> dict[str, Any]:
    """A query, or a history; an empty one is an unknown item, since perf_analyzer cannot send a list of none."""
    of_user = [request.query] if request.query else list(request.history) or ["unknown"]
    further = {USER_ID.name: request.user_id, CONTEXT.name: json.dumps(dict(request.context))}
    return {
        (QUERY if request.query else HISTORY).name: {"content": of_user, "shape": [len(of_user)]},
        ITEM_IDS.name: {"content": list(item_ids), "shape": [len(item_ids)]},
        **{name: {"content": [text], "shape": [1]} for name, text in further.items() if name in reads},
    }
