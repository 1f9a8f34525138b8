"""A vector a token: how a query's row of tokens is made, and how items' token vectors are stored and sent to a scorer.

Late interaction compares them; a cross-encoder that was split between two layers goes on from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from builders.core.contract import ATTENTION_MASK, INPUT_IDS, Tensor, length_buckets, padded_length

DTYPE_OF = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}
"""What is stored => what the scorer takes."""
ITEM_MASK = Tensor(
    "item_mask", "INT32", ("candidates", "longest"), "1 = a token of the item, 0 = its repetition", "per_candidate"
)
BYTES_OF = {"fp32": 4, "fp16": 2, "int8": 1}
SCALE_BYTES = 4
_LARGEST_INT8 = 127


# ---------------------------------------------------------------- how a query becomes tokens
@dataclasses.dataclass(frozen=True)
class QueryForm:
    """A query's row of tokens.

    Attributes:
        limit: tokens that are read, special ones counted.
        floor: a shorter query is filled up to as many; 0 = it is not.
        expansion_id: what it is filled up with.
        attend: whether the network attends to that.
    """

    limit: int
    floor: int = 0
    expansion_id: int = 0
    attend: bool = False

    @property
    def lengths(self) -> Sequence[int]:
        """Every padded length, shortest first."""
        return sorted({self._length(tokens) for tokens in length_buckets(self.limit)})

    def tokens(self, ids: np.ndarray, pad_id: int) -> dict[str, np.ndarray]:
        """INT32 [1, length] each. ids: int32 [tokens], at most ``limit``, with special tokens."""
        input_ids = np.full((1, self._length(len(ids))), pad_id, dtype=np.int32)
        attention_mask = np.zeros_like(input_ids)
        input_ids[0, len(ids) : self.floor] = self.expansion_id
        attention_mask[0, len(ids) : self.floor] = self.attend
        input_ids[0, : len(ids)], attention_mask[0, : len(ids)] = ids, 1
        return {INPUT_IDS.name: input_ids, ATTENTION_MASK.name: attention_mask}

    def _length(self, tokens: int) -> int:
        return max(padded_length(tokens, self.limit), self.floor)


# ---------------------------------------------------------------- how token vectors are stored
def stored_vectors(vectors: np.ndarray, form: str) -> bytes:
    """One item's token vectors as the item store keeps them, little-endian, a row a token.

    Args:
        vectors: float32 [tokens, width].
        form: "fp32", "fp16", or "int8": each row an FP32 scale, then the values; a vector is their product.
    """
    if form != "int8":
        return vectors.astype(f"<f{BYTES_OF[form]}").tobytes()
    scales = np.abs(vectors).max(axis=1, keepdims=True).clip(min=np.finfo(np.float32).tiny) / _LARGEST_INT8
    values = np.round(vectors / scales).astype(np.int8)
    return np.concatenate([scales.astype("<f4").view(np.int8), values], axis=1).tobytes()


def read_vectors(stored: bytes, form: str, width: int) -> np.ndarray:
    """FP32 [tokens, width] of what :func:`stored_vectors` makes."""
    packed = packed_vectors([stored], form, width)
    return packed["item_vectors"].astype(np.float32) * packed.get("item_scales", np.ones(1, np.float32))[:, None]


def packed_vectors(stored: Sequence[bytes], form: str, width: int) -> dict[str, np.ndarray]:
    """What a scorer takes of items, by the names of :func:`item_tensors`; ``item_mask`` among them, and ``item_scales``
    of int8 alone."""
    if form == "int8":
        rows = [np.frombuffer(item, dtype=np.int8).reshape(-1, SCALE_BYTES + width) for item in stored]
    else:
        rows = [np.frombuffer(item, dtype=f"<f{BYTES_OF[form]}").reshape(-1, width) for item in stored]
    starts = np.cumsum([0, *(len(item) for item in rows)])
    places = np.arange(max(map(len, rows)))
    item_tokens = np.array(
        [start + np.minimum(places, len(item) - 1) for start, item in zip(starts, rows, strict=False)], dtype=np.int32
    )
    item_mask = np.array([places < len(item) for item in rows], dtype=np.int32)
    indexed = {"item_tokens": item_tokens, "item_mask": item_mask}
    joined = np.concatenate(rows)
    if form != "int8":
        return {"item_vectors": joined, **indexed}
    scales, values = joined[:, :SCALE_BYTES], joined[:, SCALE_BYTES:]
    return {
        "item_vectors": np.ascontiguousarray(values),
        **indexed,
        "item_scales": np.ascontiguousarray(scales).view("<f4").reshape(-1),
    }


def query_vectors(width: int, rows: int | str = 1) -> Tensor:
    """FP32 [rows, length, width]."""
    return Tensor("query_vectors", "FP32", (rows, "length", width), "a vector a token of the query; or zeros")


def item_tensors(width: int, form: str) -> tuple[Tensor, ...]:
    """What the pre-processing gives of the items."""
    scales = Tensor("item_scales", "FP32", ("tokens",), "what a row of item_vectors is multiplied with")
    return (
        Tensor("item_vectors", DTYPE_OF[form], ("tokens", width), "token vectors of all candidates"),
        Tensor(
            "item_tokens",
            "INT32",
            ("candidates", "longest"),
            "rows of item_vectors; an item with fewer repeats one",
            "per_candidate",
        ),
        *((scales,) if form == "int8" else ()),
    )
