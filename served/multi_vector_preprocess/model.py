"""query + item ids => the query's tokens (one row) and the items' stored token vectors, one after the other.

The query encoder then runs once a request, whatever the number of candidates. An item that the store does not know
gets a row of another item's; ``postprocess`` ranks it last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from served import TextPreprocessor

_VALUE_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
_SCALE_BYTES = 4


class TritonPythonModel(TextPreprocessor):
    """inputs: query BYTES [1], item_ids BYTES [candidates]; outputs: as the contract beside this file declares."""

    def tensors(self, query: str, stored: list[bytes | None], texts: list[str | None]) -> dict[str, np.ndarray]:
        """input_ids, attention_mask: INT32 [1, length]; and those of :func:`packed`."""
        [ids] = self.token_ids([query])
        tokens, truncated = query_row(ids, self.parameters)
        self.truncated.add(truncated * len(stored))
        return {**tokens, **packed(stored, self.parameters["vectors"], self.parameters["vector_width"])}


def query_row(ids: list[int], parameters: dict[str, Any]) -> tuple[dict[str, np.ndarray], bool]:
    """The query alone, filled up to its floor, padded to its length bucket: INT32 [1, length] each; whether it was cut.

    Args:
        ids: without special tokens.
        parameters: of the contract: ``template``, ``pad_token_id``, ``truncation_side``, and ``query``: ``limit``,
            ``lengths`` (every padded length, shortest first), ``floor``, ``expansion_id`` and ``attend``.
    """
    template, form = parameters["template"], parameters["query"]
    room = form["limit"] - len(template["before"]) - len(template["after"])
    from_left = parameters["truncation_side"] == "left" and len(ids) > room
    kept = ids[len(ids) - room :] if from_left else ids[:room]
    row = [*template["before"], *kept, *template["after"]]
    length = next(length for length in form["lengths"] if length >= len(row))
    filled, padding = max(form["floor"] - len(row), 0), length - max(len(row), form["floor"])
    input_ids = [*row, *[form["expansion_id"]] * filled, *[parameters["pad_token_id"]] * padding]
    attention_mask = [*[1] * len(row), *[int(form["attend"])] * filled, *[0] * padding]
    tensors = {
        "input_ids": np.array([input_ids], dtype=np.int32),
        "attention_mask": np.array([attention_mask], dtype=np.int32),
    }
    return tensors, len(kept) < len(ids)


def packed(stored: Sequence[bytes | None], form: str, width: int) -> dict[str, np.ndarray]:
    """The items' token vectors without padding, and where each item's are.

    Args:
        stored: of each item, little-endian rows of ``width`` values; of int8 each with its FP32 scale before it.
        form: "fp32", "fp16" or "int8".

    Returns:
        item_vectors [tokens, width] as stored; item_tokens INT32 [candidates, longest], an item's last row repeated to
        the longest; item_mask INT32 [candidates, longest], 0 where it is; of int8 also item_scales FP32 [tokens].
    """
    row_bytes = width * _VALUE_BYTES[form] + (_SCALE_BYTES if form == "int8" else 0)
    joined = b"".join([value for value in stored if value]) or bytes(row_bytes)  # all unknown: one row to point at
    counts = np.array([len(value or b"") // row_bytes for value in stored], dtype=np.int32)
    ends = np.cumsum(counts, dtype=np.int32)
    last = np.maximum(ends - 1, 0)
    places = np.arange(max(int(counts.max()), 1), dtype=np.int32)
    item_tokens = np.minimum((ends - counts)[:, None] + places, last[:, None])
    item_mask = (places < np.maximum(counts, 1)[:, None]).astype(np.int32)
    indexed = {"item_tokens": item_tokens, "item_mask": item_mask}
    if form != "int8":
        vectors = np.frombuffer(joined, dtype=f"<f{_VALUE_BYTES[form]}").reshape(-1, width)
        return {"item_vectors": vectors, **indexed}
    rows = np.frombuffer(joined, dtype=np.int8).reshape(-1, row_bytes)
    return {
        "item_vectors": np.ascontiguousarray(rows[:, _SCALE_BYTES:]),
        **indexed,
        "item_scales": np.ascontiguousarray(rows[:, :_SCALE_BYTES]).view("<f4").reshape(-1),
    }
