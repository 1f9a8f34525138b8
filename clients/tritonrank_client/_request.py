"""Arrays from a caller's arguments, each checked before it leaves. Knows nothing of the network."""

from __future__ import annotations

import contextlib
import json
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from ._contract import LIMITS, ModelSpec, array_fault
from ._errors import InvalidRequest

_MAX_INT32 = int(np.iinfo(np.int32).max)
_DOCUMENT = "document "
Fields = Mapping[str, Any]
"""Raw field => text, number, boolean, list of them, or None."""


def listed(ids: Iterable[str], argument: str = "item_ids", order: str = "in first-stage order") -> list[str]:
    """The ids, taken once, so that an iterator serves too. Raises: InvalidRequest where they have no order."""
    # A lone string is a sequence of strings too, and a set has no order.
    if isinstance(ids, (str, bytes, Set, Mapping)) or not isinstance(ids, Iterable):
        raise InvalidRequest(
            f"{argument}: found {type(ids).__name__}, wanted a sequence of strings {order}".rstrip(), argument
        )
    return list(ids)


def query_input(query: str) -> dict[str, np.ndarray]:
    """`query` BYTES [1]. Raises: InvalidRequest, as every function here: argument, what was found and wanted."""
    text = _utf8(query, "query", "query")
    if not query.strip():
        raise InvalidRequest(f"query: found {query!r}, wanted text that is not blank", "query")
    if len(text) > LIMITS.max_query_bytes:
        wanted = f"at most {LIMITS.max_query_bytes}"
        raise InvalidRequest(f"query: found {len(text)} bytes of UTF-8, wanted {wanted}", "query")
    return {"query": _texts([text])}


def item_inputs(ids: Sequence[str]) -> dict[str, np.ndarray]:
    """`item_ids` BYTES [N]."""
    if not 1 <= len(ids) <= LIMITS.max_candidates:
        raise InvalidRequest(f"item_ids: found {len(ids)} items, wanted 1 to {LIMITS.max_candidates}", "item_ids")
    texts = _ids_bytes(ids, "item_ids")
    _check_distinct(ids)
    return {"item_ids": _texts(texts)}


def item_input(item_id: str) -> dict[str, np.ndarray]:
    """`item_id` BYTES [1]."""
    return {"item_id": _texts([_id_bytes(item_id, "item_id", "item_id")])}


def top_k_input(top_k: int | None) -> dict[str, np.ndarray]:
    """`top_k` INT32 [1], nothing for None."""
    if top_k is None:
        return {}
    if not _is_integer(top_k):
        raise InvalidRequest(f"top_k: found {top_k!r}, wanted an integer or None", "top_k")
    value = operator.index(top_k)
    if not 0 <= value <= _MAX_INT32:
        raise InvalidRequest(f"top_k: found {value}, wanted 0 (all items) to {_MAX_INT32}", "top_k")
    return {"top_k": np.array([value], dtype=np.int32)}


def similar_top_k_input(top_k: int) -> dict[str, np.ndarray]:
    """`top_k` INT32 [1] of `similar`."""
    if not _is_integer(top_k) or not 1 <= operator.index(top_k) <= LIMITS.max_similar:
        raise InvalidRequest(f"top_k: found {top_k!r}, wanted an integer from 1 to {LIMITS.max_similar}", "top_k")
    return {"top_k": np.array([operator.index(top_k)], dtype=np.int32)}


def history_input(history: Iterable[str] | None) -> dict[str, np.ndarray]:
    """`history` BYTES [H], H = 0 for an empty one; nothing for None."""
    if history is None:
        return {}
    events = listed(history, "history", "oldest first")
    if len(events) > LIMITS.max_history_events:
        wanted = f"at most {LIMITS.max_history_events}"
        raise InvalidRequest(f"history: found {len(events)} items, wanted {wanted}", "history")
    return {"history": _texts(_ids_bytes(events, "history"))}


def user_input(user_id: str | None) -> dict[str, np.ndarray]:
    """`user_id` BYTES [1], nothing for None."""
    return {} if user_id is None else {"user_id": _texts([_id_bytes(user_id, "user_id", "user_id")])}


def context_input(context: Fields | None) -> dict[str, np.ndarray]:
    """`context` BYTES [1], a JSON object; nothing for None."""
    return {} if context is None else {"context": _texts([_json_object(context, "context", "context")])}


def item_fields_input(item_fields: Mapping[str, Fields] | None, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """`item_fields` BYTES [N], a JSON object or nothing for each item; nothing for None."""
    if item_fields is None:
        return {}
    _check_of_items(item_fields, ids, "item_fields", "fields")
    objects = {
        item_id: _json_object(fields, f"item_fields[{item_id!r}]", "item_fields")
        for item_id, fields in item_fields.items()
    }
    return {"item_fields": _texts([objects.get(item_id, b"") for item_id in ids])}


def item_texts_input(
    item_texts: Mapping[str, str] | None, ids: Sequence[str], item_fields: Mapping[str, Fields] | None = None
) -> dict[str, np.ndarray]:
    """`item_texts` BYTES [N], a text or nothing for each item; nothing for None.

    item_fields: what else is sent of the items; an item has a text or fields, not both.
    """
    if item_texts is None:
        return {}
    _check_of_items(item_texts, ids, "item_texts", "texts")
    for item_id in set(item_texts).intersection(item_fields or ()):
        raise InvalidRequest(
            f"item_texts: found {item_id!r}, of which item_fields has the fields; wanted one of the two", "item_texts"
        )
    texts = {
        item_id: _text_bytes(text, f"item_texts[{item_id!r}]", "item_texts", "leave the item out to use what is stored")
        for item_id, text in item_texts.items()
    }
    return {"item_texts": _texts([texts.get(item_id, b"") for item_id in ids])}


def document_inputs(documents: Sequence[str]) -> dict[str, np.ndarray]:
    """`item_ids` and `item_texts`, BYTES [N] each: the documents under ids made of their positions."""
    if not 1 <= len(documents) <= LIMITS.max_candidates:
        wanted = f"1 to {LIMITS.max_candidates}"
        raise InvalidRequest(f"documents: found {len(documents)} documents, wanted {wanted}", "documents")
    texts = [_text_bytes(text, f"documents[{row}]", "documents", "leave it out") for row, text in enumerate(documents)]
    return {**item_inputs(document_ids(len(documents))), "item_texts": _texts(texts)}


def document_ids(count: int) -> list[str]:
    """An id a position. Not the bare number, which may be an item's of the store: rules would go by its attributes."""
    return [f"{_DOCUMENT}{position}" for position in range(count)]


def document_position(document_id: str) -> int:
    """Inverse of :func:`document_ids`."""
    return int(document_id.removeprefix(_DOCUMENT))


def check_inputs(inputs: Mapping[str, np.ndarray], contract: ModelSpec) -> None:
    """Hold what was made against the contract, which may have changed since this module was written."""
    for tensor in contract.inputs:
        if tensor.name not in inputs:
            continue
        fault = array_fault(tensor, inputs[tensor.name])
        if fault is not None:
            raise InvalidRequest(fault, tensor.name)


def _is_integer(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _texts(texts: list[bytes]) -> np.ndarray:
    return np.array(texts, dtype=np.object_)


def _id_bytes(text: str, place: str, argument: str) -> bytes:
    encoded = _utf8(text, place, argument)
    if not 1 <= len(encoded) <= LIMITS.max_item_id_bytes:
        wanted = f"1 to {LIMITS.max_item_id_bytes}"
        raise InvalidRequest(f"{place}: found {len(encoded)} bytes of UTF-8, wanted {wanted}", argument)
    return encoded


def _ids_bytes(ids: Sequence[str], argument: str) -> list[bytes]:
    """All at once where all are well, which is quicker than one by one, else up to the first fault."""
    if ids and {*map(type, ids)} == {str}:
        with contextlib.suppress(UnicodeEncodeError):
            encoded = [item_id.encode() for item_id in ids]
            if min(map(len, encoded)) >= 1 and max(map(len, encoded)) <= LIMITS.max_item_id_bytes:
                return encoded
    return [_id_bytes(item_id, f"{argument}[{row}]", argument) for row, item_id in enumerate(ids)]


def _text_bytes(text: str, place: str, argument: str, without: str) -> bytes:
    encoded = _utf8(text, place, argument)
    if not encoded:
        raise InvalidRequest(f"{place}: found no text, wanted some; {without}", argument)
    if len(encoded) > LIMITS.max_text_bytes:
        wanted = f"at most {LIMITS.max_text_bytes}"
        raise InvalidRequest(
            f"{place}: found {len(encoded)} bytes of UTF-8, wanted {wanted}; send its beginning", argument
        )
    return encoded


def _check_of_items(given: Any, ids: Sequence[str], argument: str, what: str) -> None:
    """That it maps ids of the request."""
    if not isinstance(given, Mapping):
        raise InvalidRequest(
            f"{argument}: found {type(given).__name__}, wanted a mapping of item ids to {what}", argument
        )
    for stranger in set(given).difference(ids):
        raise InvalidRequest(f"{argument}: found {stranger!r}, wanted ids of item_ids", argument)


def _check_distinct(ids: Sequence[str]) -> None:
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


def _utf8(text: Any, place: str, argument: str) -> bytes:
    if not isinstance(text, str):
        raise InvalidRequest(f"{place}: found {type(text).__name__}, wanted str", argument)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:  # a lone surrogate, from bytes decoded with 'surrogateescape'
        # An error's text may be logged: what a user is or did must not be, and a whole document need not.
        untold = ("user_id", "history", "item_texts", "documents")
        found = "a lone surrogate" if argument in untold else repr(text)
        raise InvalidRequest(f"{place}: found {found}, wanted text that UTF-8 can hold", argument) from error


def _json_object(fields: Any, place: str, argument: str) -> bytes:
    if not isinstance(fields, Mapping):
        raise InvalidRequest(f"{place}: found {type(fields).__name__}, wanted a mapping of raw fields", argument)
    try:
        text = json.dumps(dict(fields), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{place}: found what JSON cannot hold ({error})", argument) from None
    if len(text) > LIMITS.max_context_bytes:
        wanted = f"at most {LIMITS.max_context_bytes}"
        raise InvalidRequest(f"{place}: found {len(text)} bytes of JSON, wanted {wanted}", argument)
    return text
