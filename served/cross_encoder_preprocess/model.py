"""query + item ids => token sequences, one row a candidate.

The query is tokenised once and joined with the items' stored tokens; all rows are padded to the length bucket of the
longest. An item that the store does not know gets a row of the query alone, so that rows and candidates stay aligned;
``postprocess`` ranks it last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from served import Preprocessor, padded_length


class TritonPythonModel(Preprocessor):
    """inputs: query BYTES [1], item_ids BYTES [candidates]; outputs: as the contract beside this file declares."""

    def tensors(self, query: list[int], stored: list[bytes | None]) -> dict[str, np.ndarray]:
        """input_ids, attention_mask, token_type_ids: INT32 [candidates, length] each."""
        return join(query, stored, self.parameters)


def join(query: list[int], stored: list[bytes | None], parameters: dict[str, Any]) -> dict[str, np.ndarray]:
    """``before query between item after`` for every item, padded on the right.

    Args:
        query: token ids of the query.
        stored: per item its token ids as little-endian INT32, or None.
        parameters: of the contract: ``template`` (special tokens), ``pad_token_id``, ``max_length``, ``length_bucket``.

    Returns:
        input_ids, attention_mask, token_type_ids: INT32 [candidates, length] each.
    """
    template = parameters["template"]
    head = np.array([*template["before"], *query, *template["between"]], dtype=np.int32)
    tail = np.array(template["after"], dtype=np.int32)
    room = parameters["max_length"] - len(head) - len(tail)

    width = np.dtype(np.int32).itemsize
    items = [(value or b"")[: room * width] for value in stored]
    item_lengths = np.fromiter((len(value) // width for value in items), dtype=np.int64, count=len(items))
    starts_of_tail = len(head) + item_lengths[:, None]
    ends = starts_of_tail + len(tail)

    column = np.arange(padded_length(int(ends.max()), parameters["length_bucket"]))
    input_ids = np.full((len(items), len(column)), parameters["pad_token_id"], dtype=np.int32)
    input_ids[:, : len(head)] = head
    input_ids[(column >= len(head)) & (column < starts_of_tail)] = np.frombuffer(b"".join(items), dtype="<i4")
    np.put_along_axis(input_ids, starts_of_tail + np.arange(len(tail)), tail, axis=1)

    attention_mask = (column < ends).astype(np.int32)
    token_type_ids = attention_mask * (column >= len(head)).astype(np.int32)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
