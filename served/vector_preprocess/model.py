"""query + items => the query's tokens, those of the texts that the request brings, and the items' stored vectors.

The encoder then runs one row a request, and one for each text given. An item that the store does not know gets a vector
of zeros; ``postprocess`` ranks it last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from served import TextPreprocessor, padded_length

_SCALE_BYTES = 4


class TritonPythonModel(TextPreprocessor):
    """inputs: query BYTES [1], item_ids BYTES [candidates]; optional item_texts or item_fields BYTES [candidates];
    outputs: as the contract beside this file declares."""

    def tensors(self, query: str, stored: list[bytes | None], texts: list[str | None]) -> dict[str, np.ndarray]:
        """Tokens: INT32 [1 + texts, length] each, the query first; prompt_length: INT32 [1 + texts, 1]; source: INT32
        [candidates], an item's row of the tokens or -1; item_vectors: FP32 [candidates, width]."""
        given = [row for row, text in enumerate(texts) if text is not None]
        rows = self.token_ids([query, *(texts[row] or "" for row in given)])
        tokens, truncated = sequences(rows, self.parameters)
        self.truncated.add(len(stored) if truncated[0] else sum(truncated))
        source = np.full(len(stored), -1, dtype=np.int32)
        source[given] = np.arange(1, 1 + len(given))
        found = {**tokens, "source": source, "prompt_length": prompt_lengths(len(rows), self.parameters)}
        if self.items is not None:
            width, form = self.parameters["vector_width"], self.parameters.get("vector_form", "fp32")
            found["item_vectors"] = vectors(stored, width, form)
        return found


def sequences(rows: Sequence[list[int]], parameters: dict[str, Any]) -> tuple[dict[str, np.ndarray], list[bool]]:
    """Each text alone, the query first, padded on the right to the length bucket of the longest.

    Returns:
        input_ids, attention_mask, token_type_ids: INT32 [rows, length] each; and which rows were cut.
    """
    template = parameters["template"]
    before, _, after = template["before"], template["between"], template["after"]
    kinds = template["types"]
    room = parameters["max_length"] - len(before) - len(after)
    of_query = room if parameters["max_query_tokens"] is None else min(room, parameters["max_query_tokens"])
    kept = [
        _cut(ids, room if row else of_query, parameters["truncation_side"] == "left") for row, ids in enumerate(rows)
    ]
    longest = max(map(len, kept)) + len(before) + len(after)
    shape = len(rows), padded_length(longest, parameters)
    input_ids = np.full(shape, parameters["pad_token_id"], dtype=np.int32)
    attention_mask, token_type_ids = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    for row, ids in enumerate(kept):
        whole = [*before, *ids, *after]
        input_ids[row, : len(whole)] = whole
        attention_mask[row, : len(whole)] = 1
        if any(kinds):
            types = [kinds[0]] * len(before) + [kinds[1]] * len(ids) + [kinds[4]] * len(after)
            token_type_ids[row, : len(whole)] = types
    tensors = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
    return tensors, [len(ids) < len(whole) for ids, whole in zip(kept, rows, strict=True)]


def prompt_lengths(rows: int, parameters: dict[str, Any]) -> np.ndarray:
    """INT32 [rows, 1]: tokens of each row's prompt that its vector leaves out, the query's first."""
    of_query, of_item = parameters.get("prompt_lengths", (0, 0))
    return np.array([[of_query], *[[of_item]] * (rows - 1)], dtype=np.int32)


def vectors(stored: Sequence[bytes | None], width: int, form: str) -> np.ndarray:
    """FP32 [candidates, width] from the store's bytes; zeros where there are none.

    Args:
        form: ``fp32``, ``fp16``, or ``int8``: an FP32 scale, then ``width`` times INT8; all little-endian.
    """
    size = {"fp32": 4 * width, "fp16": 2 * width, "int8": _SCALE_BYTES + width}[form]
    absent = bytes(size)
    joined = b"".join(absent if value is None else value for value in stored)
    if form == "fp32":
        return np.frombuffer(joined, dtype="<f4").reshape(len(stored), width)
    if form == "fp16":
        return np.frombuffer(joined, dtype="<f2").reshape(len(stored), width).astype(np.float32)
    quantized = np.frombuffer(joined, dtype=[("scale", "<f4"), ("steps", "i1", (width,))])
    return quantized["steps"] * quantized["scale"][:, None]


def _cut(ids: list[int], count: int, from_left: bool) -> list[int]:
    return ids[len(ids) - count :] if from_left and count < len(ids) else ids[:count]
