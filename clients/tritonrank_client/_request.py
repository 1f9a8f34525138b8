"""Arrays from a caller's arguments, each checked before it leaves. Knows nothing of the network."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from ._contract import Contract, array_fault
from ._errors import InvalidRequest

_MAX_INT32 = int(np.iinfo(np.int32).max)


def listed(item_ids: Iterable[str]) -> list[str]:
    """The ids, taken once, so that an iterator serves too. Raises: InvalidRequest where they have no order."""
    # A lone string is a sequence of strings too, and a set has no first-stage order.
    if isinstance(item_ids, (str, bytes, Set, Mapping)) or not isinstance(item_ids, Iterable):
        raise InvalidRequest(
            f"item_ids: found {type(item_ids).__name__}, wanted a sequence of strings in first-stage order", "item_ids"
        )
    return list(item_ids)


def inputs_from_arguments(
    query: str, item_ids: list[str], top_k: int | None, contract: Contract
) -> dict[str, np.ndarray]:
    """The endpoint's inputs: `query` BYTES [1], `item_ids` BYTES [N], and `top_k` INT32 [1] unless it is None.

    Raises: InvalidRequest, naming the argument, what was found and what was wanted.
    """
    inputs = {"query": _query_array(query, contract), "item_ids": _item_ids_array(item_ids, contract)}
    if top_k is not None:
        inputs["top_k"] = _top_k_array(top_k)
    _check_inputs(inputs, contract)
    return inputs


def _query_array(query: str, contract: Contract) -> np.ndarray:
    text = _utf8(query, "query", "query")
    if not query.strip():
        raise InvalidRequest(f"query: found {query!r}, wanted text that is not blank", "query")
    if len(text) > contract.max_query_bytes:
        wanted = f"at most {contract.max_query_bytes}"
        raise InvalidRequest(f"query: found {len(text)} bytes of UTF-8, wanted {wanted}", "query")
    return np.array([text], dtype=np.object_)


def _item_ids_array(ids: list[str], contract: Contract) -> np.ndarray:
    if not 1 <= len(ids) <= contract.max_candidates:
        raise InvalidRequest(f"item_ids: found {len(ids)} items, wanted 1 to {contract.max_candidates}", "item_ids")
    texts = [_item_id_bytes(item_id, f"item_ids[{row}]", contract) for row, item_id in enumerate(ids)]
    _check_distinct(ids)
    return np.array(texts, dtype=np.object_)


def _item_id_bytes(item_id: str, place: str, contract: Contract) -> bytes:
    text = _utf8(item_id, place, "item_ids")
    if not 1 <= len(text) <= contract.max_item_id_bytes:
        wanted = f"1 to {contract.max_item_id_bytes}"
        raise InvalidRequest(f"{place}: found {len(text)} bytes of UTF-8, wanted {wanted}", "item_ids")
    return text


def _check_distinct(ids: list[str]) -> None:
    if len(set(ids)) == len(ids):
        return
    first_row: dict[str, int] = {}
    for row, item_id in enumerate(ids):
        if first_row.setdefault(item_id, row) != row:
            raise InvalidRequest(
                f"item_ids[{row}]: found {item_id!r}, which item_ids[{first_row[item_id]}] already is; "
                "wanted distinct ids",
                "item_ids",
            )


def _top_k_array(top_k: int) -> np.ndarray:
    if isinstance(top_k, bool) or not hasattr(top_k, "__index__"):
        raise InvalidRequest(f"top_k: found {top_k!r}, wanted an integer or None", "top_k")
    value = operator.index(top_k)
    if not 0 <= value <= _MAX_INT32:
        raise InvalidRequest(f"top_k: found {value}, wanted 0 (all items) to {_MAX_INT32}", "top_k")
    return np.array([value], dtype=np.int32)


def _utf8(text: Any, place: str, argument: str) -> bytes:
    if not isinstance(text, str):
        raise InvalidRequest(f"{place}: found {type(text).__name__}, wanted str", argument)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:  # a lone surrogate, from bytes decoded with 'surrogateescape'
        raise InvalidRequest(f"{place}: found {text!r}, wanted text that UTF-8 can hold", argument) from error


def _check_inputs(inputs: dict[str, np.ndarray], contract: Contract) -> None:
    """Hold what was made against the contract, which may have changed since this module was written."""
    for tensor in contract.model.inputs:
        if tensor.name not in inputs:
            continue
        fault = array_fault(tensor, inputs[tensor.name])
        if fault is not None:
            raise InvalidRequest(fault, tensor.name)
