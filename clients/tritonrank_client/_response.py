"""A ranked list from the server's arrays, each checked. Knows nothing of the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ._contract import LIMITS, ModelSpec, array_fault
from ._errors import ServerError, TritonRankError
from ._rules import Allowed


@dataclass(frozen=True)
class Degraded:
    """Why a list is not the one that was asked for.

    Attributes:
        step: what it is in its place: ``fewer_candidates``, ``model`` or ``first_stage``.
        reason: the error that the ranker asked for gave.
        error: its class in the tree of errors.
    """

    step: str
    reason: str
    error: type[TritonRankError] = TritonRankError


@dataclass(frozen=True, eq=False)
class RankedList:
    """Items, best first; iterates over (id, score) pairs.

    Attributes:
        ids: K item ids.
        scores: float32 [K], read-only, comparable within this list only; highest first, but where pins or a brand limit
            moved items.
        left_out: how many of the request's items a filter took out of the list; None where the server does not say.
        model: which has ranked them; "" = none, it is the first stage's order.
        request_id: of the call, in the server's log too.
        degraded: None, or what it is in place of the list asked for, and why.
    """

    ids: tuple[str, ...]
    scores: np.ndarray
    left_out: int | None = None
    model: str = ""
    request_id: str = ""
    degraded: Degraded | None = None

    @property
    def scored(self) -> np.ndarray:
        """bool [K]: False for an item that the server could not score, which comes after all that it could."""
        return self.scores != LIMITS.unscored

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return zip(self.ids, self.scores.tolist(), strict=True)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Reranked:
    """Documents of one request by their positions in it, best first; iterates over (position, score) pairs.

    Attributes:
        indices: K positions, 0 = the first document.
        scores: float32 [K], read-only, comparable within this list only; highest first.
        model, request_id, degraded: as of a RankedList.
    """

    indices: tuple[int, ...]
    scores: np.ndarray
    model: str = ""
    request_id: str = ""
    degraded: Degraded | None = None

    @property
    def scored(self) -> np.ndarray:
        """bool [K]: False for a document that the server could not score, which comes after all that it could."""
        return self.scores != LIMITS.unscored

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self.indices, self.scores.tolist(), strict=True)

    def __len__(self) -> int:
        return len(self.indices)


def ranked_list_from_outputs(
    outputs: Mapping[str, np.ndarray],
    item_ids: list[str],
    top_k: int | None,
    contract: ModelSpec,
    rules: Allowed = Allowed(),  # noqa: B008 - frozen
) -> RankedList:
    """The list that `ranked_ids` BYTES [K] and `scores` FP32 [K] hold, K = min(top_k, N), or N without top_k, of the N
    that a filter has not taken (`left_out` INT32 [1], where the server says so).

    rules: what they may do to it.
    Raises: ServerError when they are not that, or are not distinct ids of the request with finite scores, highest first
        but for what rules may move.
    """
    ids, scores = _read(outputs, contract)
    left_out = _left_out(outputs, len(item_ids), rules)
    there = len(item_ids) - (left_out or 0)
    _check_count(len(ids), len(scores), min(top_k or there, there), rules.may_leave_out and left_out is None)
    strangers = set(ids).difference(item_ids)
    if strangers:
        raise _broken(f"ranked_ids: found {min(strangers)!r}, wanted ids of the request")
    return _checked(ids, scores, rules, left_out)


def similar_items_from_outputs(
    outputs: Mapping[str, np.ndarray], item_id: str, top_k: int, contract: ModelSpec
) -> RankedList:
    """The list that `ranked_ids` BYTES [K] and `scores` FP32 [K] hold, K <= top_k.

    Raises: ServerError when they are not that, or are not distinct other ids with finite, descending scores.
    """
    ids, scores = _read(outputs, contract)
    _check_count(len(ids), len(scores), top_k, may_be_shorter=True)
    if item_id in ids:
        raise _broken(f"ranked_ids: found {item_id!r}, wanted other items than the one asked about")
    return _checked(ids, scores, Allowed())


def _read(outputs: Mapping[str, np.ndarray], contract: ModelSpec) -> tuple[tuple[str, ...], np.ndarray]:
    _check_arrays(outputs, contract)
    return _decoded(outputs["ranked_ids"].tolist()), np.array(outputs["scores"])


def _left_out(outputs: Mapping[str, np.ndarray], candidates: int, rules: Allowed) -> int | None:
    if "left_out" not in outputs:
        return None
    count = int(outputs["left_out"][0])
    most = candidates if rules.may_leave_out else 0
    if not 0 <= count <= most:
        why = "" if rules.may_leave_out else ", since no filter is in force"
        raise _broken(f"left_out: found {count} of {candidates} items, wanted 0 to {most}{why}")
    return count


def _checked(ids: tuple[str, ...], scores: np.ndarray, rules: Allowed, left_out: int | None = None) -> RankedList:
    if len(set(ids)) != len(ids):
        raise _broken(f"ranked_ids: found {len(ids) - len(set(ids))} repeated ids, wanted distinct ones")
    _check_finite(scores)
    _check_order(ids, scores, rules)
    scores.flags.writeable = False
    return RankedList(ids, scores, left_out)


def _check_arrays(outputs: Mapping[str, np.ndarray], contract: ModelSpec) -> None:
    for tensor in contract.outputs:
        if tensor.name not in outputs and tensor.optional:
            continue
        if tensor.name not in outputs:
            raise _broken(f"found no output '{tensor.name}'")
        fault = array_fault(tensor, outputs[tensor.name])
        if fault is not None:
            raise _broken(fault)


def _decoded(ids: list[bytes]) -> tuple[str, ...]:
    try:
        return tuple([item_id.decode() for item_id in ids])
    except UnicodeDecodeError as error:
        raise _broken(f"ranked_ids: found {error.object!r}, wanted UTF-8") from error


def _check_count(ids: int, scores: int, wanted: int, may_be_shorter: bool) -> None:
    if ids != scores or ids > wanted or (ids < wanted and not may_be_shorter):
        at_most = "at most " if may_be_shorter else ""
        raise _broken(f"found {ids} ranked_ids and {scores} scores, wanted {at_most}{wanted} of each")


def _check_finite(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise _broken(f"scores[{row}]: found {scores[row]}, wanted a finite number")


def _check_order(ids: tuple[str, ...], scores: np.ndarray, rules: Allowed) -> None:
    """Highest first. Pinned items may stand anywhere; those that a brand limit put back start from the top again."""
    if not rules.pinned and (scores[1:] <= scores[:-1]).all():
        return
    rows = np.array([row for row, item_id in enumerate(ids) if item_id not in rules.pinned], dtype=np.int64)
    rises = np.flatnonzero(scores[rows[1:]] > scores[rows[:-1]])[int(rules.limits_brands) :]
    if rises.size:
        before, row = rows[rises[0]], rows[rises[0] + 1]
        but_for = _but_for(rules)
        raise _broken(f"scores[{row}]: found {scores[row]} after {scores[before]}, wanted the highest first{but_for}")


def _but_for(rules: Allowed) -> str:
    moved = [f"{len(rules.pinned)} pinned items"] * bool(rules.pinned) + ["a brand limit"] * rules.limits_brands
    return f" but for {' and '.join(moved)}" if moved else ""


def _broken(fault: str) -> ServerError:
    return ServerError(f"the server's answer breaks the contract: {fault}; see the server's log")
