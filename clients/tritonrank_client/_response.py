"""A ranked list from the server's arrays, each checked. Knows nothing of the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ._contract import LIMITS, ModelSpec, array_fault
from ._errors import ServerError


@dataclass(frozen=True, eq=False)
class RankedList:
    """Items, best first; iterates over (id, score) pairs.

    Attributes:
        ids: K item ids.
        scores: float32 [K], read-only, comparable within this list only; highest first, but where pins or a brand limit
            moved items.
    """

    ids: tuple[str, ...]
    scores: np.ndarray

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
    """

    indices: tuple[int, ...]
    scores: np.ndarray

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
    *,
    may_leave_out: bool = False,
    may_move: bool = False,
) -> RankedList:
    """The list that `ranked_ids` BYTES [K] and `scores` FP32 [K] hold, K = min(top_k, N), or N without top_k.

    may_leave_out: whether a rule may have made it shorter.
    may_move: whether a rule may have changed the order of the scores.
    Raises: ServerError when they are not that, or are not distinct ids of the request with finite, descending scores.
    """
    ids, scores = _read(outputs, contract)
    _check_count(len(ids), len(scores), min(top_k or len(item_ids), len(item_ids)), may_leave_out)
    strangers = set(ids).difference(item_ids)
    if strangers:
        raise _broken(f"ranked_ids: found {min(strangers)!r}, wanted ids of the request")
    return _checked(ids, scores, may_move)


def similar_items_from_outputs(
    outputs: Mapping[str, np.ndarray], item_id: str, top_k: int, contract: ModelSpec
) -> RankedList:
    """The list that `ranked_ids` BYTES [K] and `scores` FP32 [K] hold, K <= top_k.

    Raises: ServerError when they are not that, or are not distinct other ids with finite, descending scores.
    """
    ids, scores = _read(outputs, contract)
    _check_count(len(ids), len(scores), top_k, may_leave_out=True)
    if item_id in ids:
        raise _broken(f"ranked_ids: found {item_id!r}, wanted other items than the one asked about")
    return _checked(ids, scores, may_move=False)


def _read(outputs: Mapping[str, np.ndarray], contract: ModelSpec) -> tuple[tuple[str, ...], np.ndarray]:
    _check_arrays(outputs, contract)
    return tuple(_decoded(item_id) for item_id in outputs["ranked_ids"]), np.array(outputs["scores"])


def _checked(ids: tuple[str, ...], scores: np.ndarray, may_move: bool) -> RankedList:
    if len(set(ids)) != len(ids):
        raise _broken(f"ranked_ids: found {len(ids) - len(set(ids))} repeated ids, wanted distinct ones")
    _check_finite(scores)
    if not may_move:
        _check_order(scores)
    scores.flags.writeable = False
    return RankedList(ids, scores)


def _check_arrays(outputs: Mapping[str, np.ndarray], contract: ModelSpec) -> None:
    for tensor in contract.outputs:
        if tensor.name not in outputs:
            raise _broken(f"found no output '{tensor.name}'")
        fault = array_fault(tensor, outputs[tensor.name])
        if fault is not None:
            raise _broken(fault)


def _decoded(item_id: bytes) -> str:
    try:
        return item_id.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _broken(f"ranked_ids: found {item_id!r}, wanted UTF-8") from error


def _check_count(ids: int, scores: int, wanted: int, may_leave_out: bool) -> None:
    if ids != scores or ids > wanted or (ids < wanted and not may_leave_out):
        at_most = "at most " if may_leave_out else ""
        raise _broken(f"found {ids} ranked_ids and {scores} scores, wanted {at_most}{wanted} of each")


def _check_finite(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise _broken(f"scores[{row}]: found {scores[row]}, wanted a finite number")


def _check_order(scores: np.ndarray) -> None:
    if (scores[1:] > scores[:-1]).any():
        row = int(np.flatnonzero(scores[1:] > scores[:-1])[0])
        raise _broken(f"scores[{row + 1}]: found {scores[row + 1]} after {scores[row]}, wanted the highest first")


def _broken(fault: str) -> ServerError:
    return ServerError(f"the server's answer breaks the contract: {fault}; see the server's log")
