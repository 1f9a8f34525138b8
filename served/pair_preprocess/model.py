"""query + items => token sequences, one row a candidate.

The query is tokenised once and joined with the items' stored tokens, or with those of texts that the request brings;
all rows are padded to the length bucket of the longest. An item without either gets a row of the query alone, so that
rows and candidates stay aligned; ``postprocess`` ranks it last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from served import TextPreprocessor, padded_length

BEFORE, QUERY, BETWEEN, ITEM, AFTER = range(5)


class TritonPythonModel(TextPreprocessor):
    """inputs: query BYTES [1], item_ids BYTES [candidates]; optional item_texts or item_fields BYTES [candidates];
    outputs: as the contract beside this file declares."""

    def tensors(self, query: str, stored: list[bytes | None], texts: list[str | None]) -> dict[str, np.ndarray]:
        """input_ids, attention_mask, token_type_ids: INT32 [candidates, length] each."""
        given = [row for row, text in enumerate(texts) if text is not None]
        of_query, *of_texts = self.token_ids([query, *(texts[row] or "" for row in given)])
        items = list(map(stored_item, stored))
        for row, ids in zip(given, of_texts, strict=True):
            items[row] = (len(ids), np.array(ids, dtype=np.int32))
        tensors, truncated = join(of_query, items, self.parameters)
        self.truncated.add(truncated)
        return tensors


Item = tuple[int, np.ndarray]
"""How many tokens a text has, and those of them that are there: INT32, at most ``max_length``."""


def stored_item(value: bytes | None) -> Item:
    """From the store's form: little-endian INT32, the count first; nothing for an item that it does not know."""
    if value is None:
        return 0, np.empty(0, dtype=np.int32)
    numbers = np.frombuffer(value, dtype="<i4")
    return int(numbers[0]), numbers[1:]


def join(query: list[int], items: Sequence[Item], parameters: dict[str, Any]) -> tuple[dict[str, np.ndarray], int]:
    """``before query between item after`` for every item, cut as the tokenizers library cuts, padded on the right.

    Args:
        query: token ids of the query.
        items: of each item.
        parameters: of the contract: ``template`` (special tokens and token types), ``pad_token_id``, ``max_length``,
            ``max_query_tokens``, ``truncation_side``, ``length_steps``.

    Returns:
        input_ids, attention_mask, token_type_ids: INT32 [candidates, length] each; and how many pairs were cut.
    """
    template = parameters["template"]
    from_left = parameters["truncation_side"] == "left"
    whole_query = len(query)
    if parameters["max_query_tokens"] is not None:
        query = _cut(query, parameters["max_query_tokens"], from_left)
    specials = {BEFORE: template["before"], BETWEEN: template["between"], AFTER: template["after"]}
    room = parameters["max_length"] - sum(map(len, specials.values()))
    of_items = np.fromiter((count for count, _ in items), dtype=np.int64, count=len(items))
    query_lengths, item_lengths = cut_pairs(len(query), of_items, room)
    truncated = (query_lengths < whole_query) | (item_lengths < of_items)

    lengths = np.empty((5, len(items)), dtype=np.int64)
    lengths[QUERY], lengths[ITEM] = query_lengths, item_lengths
    for piece, tokens in specials.items():
        lengths[piece] = len(tokens)
    ends = np.cumsum(lengths, axis=0)
    starts = ends - lengths

    column = np.arange(padded_length(int(ends[AFTER].max()), parameters))
    inside = [
        (column >= starts[piece][:, None]) & (column < ends[piece][:, None])
        for piece in (BEFORE, QUERY, BETWEEN, ITEM, AFTER)
    ]
    input_ids = np.full((len(items), len(column)), parameters["pad_token_id"], dtype=np.int32)
    for piece, tokens in specials.items():
        input_ids[inside[piece]] = np.tile(np.array(tokens, dtype=np.int32), len(items))
    input_ids[inside[QUERY]] = _joined([_cut(query, count, from_left) for count in query_lengths.tolist()])
    input_ids[inside[ITEM]] = _joined(
        [_cut(ids, count, from_left) for (_, ids), count in zip(items, item_lengths.tolist(), strict=True)]
    )
    token_type_ids = np.zeros_like(input_ids)
    for piece, kind in enumerate(template["types"]):
        if kind:
            token_type_ids[inside[piece]] = kind
    attention_mask = (column < ends[AFTER][:, None]).astype(np.int32)
    tensors = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
    return tensors, int(truncated.sum())


def cut_pairs(query: int, items: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that query and item keep when both have to fit into ``room``: INT64 [items] each.

    The tokenizers library's "longest_first": only the longer of the two is cut while it stays the longer one; then both
    get half (https://github.com/huggingface/tokenizers, utils/truncation.rs).
    """
    shorter, longer = np.minimum(query, items), np.maximum(query, items)
    kept = np.where(shorter > room, shorter, np.maximum(shorter, room - shorter))
    halves = shorter + kept > room
    short = np.where(halves, room // 2, shorter)
    long = np.where(halves, room // 2 + room % 2, kept)
    fits = shorter + longer <= room
    of_query = np.where(fits, query, np.where(query > items, long, short))
    of_items = np.where(fits, items, np.where(query > items, short, long))
    return of_query, of_items


def _cut(ids: Any, count: int, from_left: bool) -> Any:
    return ids[len(ids) - count :] if from_left and count < len(ids) else ids[:count]


def _joined(parts: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])
