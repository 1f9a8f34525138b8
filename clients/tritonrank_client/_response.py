"""A ranked list from the server's arrays, each checked. Knows nothing of the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ._contract import RANK, Contract, array_fault
from ._errors import ServerError


@dataclass(frozen=True, eq=False)
class RankedList:
    """Items, best first; iterates over (id, score) pairs.

    Attributes:
        ids: K item ids.
        scores: float32 [K], read-only, highest first; comparable within this list only.
    """

    ids: tuple[str, ...]
    scores: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        """bool [K]: False for an item that the server could not score, which comes after all that it could."""
        return self.scores != RANK.unscored

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return zip(self.ids, self.scores.tolist(), strict=True)

    def __len__(self) -> int:
        return len(self.ids)


def ranked_list_from_outputs(
    outputs: Mapping[str, np.ndarray], item_ids: list[str], top_k: int | None, contract: Contract
) -> RankedList:
    """The list that `ranked_ids` BYTES [K] and `scores` FP32 [K] hold, K = min(top_k, N), or N without top_k.

    Raises: ServerError when they are not that, or are not distinct ids of the request with finite, descending scores.
    """
    _check_arrays(outputs, contract)
    ids = tuple(_decoded(item_id) for item_id in outputs["ranked_ids"])
    scores = np.array(outputs["scores"])
    _check_count(len(ids), len(scores), min(top_k or len(item_ids), len(item_ids)))
    _check_ids(ids, item_ids)
    _check_scores(scores)
    scores.flags.writeable = False
    return RankedList(ids, scores)


def _check_arrays(outputs: Mapping[str, np.ndarray], contract: Contract) -> None:
    for tensor in contract.model.outputs:
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


def _check_count(ids: int, scores: int, wanted: int) -> None:
    if (ids, scores) != (wanted, wanted):
        raise _broken(f"found {ids} ranked_ids and {scores} scores, wanted {wanted} of each")


def _check_ids(ids: tuple[str, ...], item_ids: list[str]) -> None:
    strangers = set(ids).difference(item_ids)
    if strangers:
        raise _broken(f"ranked_ids: found {min(strangers)!r}, wanted ids of the request")
    if len(set(ids)) != len(ids):
        raise _broken(f"ranked_ids: found {len(ids) - len(set(ids))} repeated ids, wanted distinct ones")


def _check_scores(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise _broken(f"scores[{row}]: found {scores[row]}, wanted a finite number")
    if (scores[1:] > scores[:-1]).any():
        row = int(np.flatnonzero(scores[1:] > scores[:-1])[0])
        raise _broken(f"scores[{row + 1}]: found {scores[row + 1]} after {scores[row]}, wanted the highest first")


def _broken(fault: str) -> ServerError:
    return ServerError(f"the server's answer breaks the contract: {fault}; see the server's log")
