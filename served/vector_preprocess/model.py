"""query + item ids => the query's tokens (one row) and the items' stored vectors.

The query encoder then runs once a request, whatever the number of candidates. An item that the store does not know
gets a vector of zeros; ``postprocess`` ranks it last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from served import TextPreprocessor, padded_length


class TritonPythonModel(TextPreprocessor):
    """inputs: query BYTES [1], item_ids BYTES [candidates]; outputs: as the contract beside this file declares."""

    def tensors(self, query: str, stored: list[bytes | None], texts: list[str | None]) -> dict[str, np.ndarray]:
        """input_ids, attention_mask: INT32 [1, length]; item_vectors: FP32 [candidates, width]."""
        [ids] = self.token_ids([query])
        tokens, truncated = sequence(ids, self.parameters)
        self.truncated.add(truncated * len(stored))
        return {**tokens, "item_vectors": vectors(stored, self.parameters["vector_width"])}


def sequence(query: list[int], parameters: dict[str, Any]) -> tuple[dict[str, np.ndarray], bool]:
    """The query alone, padded on the right to its length bucket: INT32 [1, length] each; and whether it was cut."""
    template = parameters["template"]
    room = parameters["max_length"] - len(template["before"]) - len(template["after"])
    limit = room if parameters["max_query_tokens"] is None else min(room, parameters["max_query_tokens"])
    kept = (
        query[len(query) - limit :] if parameters["truncation_side"] == "left" and limit < len(query) else query[:limit]
    )
    ids = [*template["before"], *kept, *template["after"]]
    length = padded_length(len(ids), parameters)
    padding = length - len(ids)
    tensors = {
        "input_ids": np.array([ids + [parameters["pad_token_id"]] * padding], dtype=np.int32),
        "attention_mask": np.array([[1] * len(ids) + [0] * padding], dtype=np.int32),
    }
    return tensors, len(kept) < len(query)


def vectors(stored: list[bytes | None], width: int) -> np.ndarray:
    """FP32 [candidates, width] from little-endian FP32 bytes; zeros where there are none."""
    absent = bytes(width * 4)
    joined = b"".join(absent if value is None else value for value in stored)
    return np.frombuffer(joined, dtype="<f4").reshape(len(stored), width)
