"""A reranker's prompt => token sequences, and what those of one request have in common.

Standard library and NumPy only: copied beside the served pre-processing, so that a request's prompts are made as those
were that the checkpoint's library was compared on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

PaddedLength = Callable[[int, int], int]
"""(tokens of the longest sequence, most that one may have) => what all are padded to."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A chat template, rendered around a query and an item that are not there yet.

    Attributes:
        literals: what stands before, between and after the slots; one more than these.
        slots: "query" or "item", in the order of the text.
        stripped: those of the two whose white space the template takes off at both ends.
        suffix: token ids that the library writes over the end of a sequence of ``max_length``.
    """

    literals: tuple[str, ...]
    slots: tuple[str, ...]
    stripped: tuple[str, ...] = ()
    suffix: tuple[int, ...] = ()

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Prompt:
        """Inverse of ``dataclasses.asdict``, also after JSON."""
        return cls(**{name: tuple(value) for name, value in parameters.items()})

    def text(self, query: str, item: str) -> str:
        """The whole text, which is tokenised as one."""
        values = {"query": query, "item": item}
        for name in self.stripped:
            values[name] = values[name].strip()
        filled = (values[slot] + literal for slot, literal in zip(self.slots, self.literals[1:], strict=True))
        return self.literals[0] + "".join(filled)


def token_sequences(
    tokenizer: Any, prompt: Prompt | None, query: str, items: Sequence[str], max_length: int, side: str
) -> tuple[list[list[int]], int]:
    """Token ids of each candidate's text, cut by the tokenizers library, and how many were cut.

    Args:
        tokenizer: of the tokenizers library; its truncation is set.
        prompt: None = query and item are the tokenizer's own pair.
        side: on which sequences longer than ``max_length`` are cut, the longer of a pair first.
    """
    tokenizer.enable_truncation(max_length, strategy="longest_first", direction=side)
    if prompt is None:
        encodings = tokenizer.encode_batch([(query, item) for item in items])
    else:
        encodings = tokenizer.encode_batch([prompt.text(query, item) for item in items], add_special_tokens=False)
    suffix = () if prompt is None else prompt.suffix
    rows = [_ended(one.ids, suffix) if len(one.ids) >= max_length else one.ids for one in encodings]
    return rows, sum(bool(one.overflowing) for one in encodings)


def _ended(ids: list[int], suffix: Sequence[int]) -> list[int]:
    """``suffix`` written over the end, as sentence-transformers does after cutting."""
    kept = min(len(suffix), len(ids))
    return [*ids[: len(ids) - kept], *suffix[len(suffix) - kept :]]


def padded_sequences(
    rows: Sequence[Sequence[int]], padded: PaddedLength, longest: int, pad: int
) -> dict[str, np.ndarray]:
    """``input_ids`` and ``attention_mask`` (1 = token): INT32 [rows, length], padded on the right.

    Args:
        padded: gives the length, at most ``longest``.
        pad: the padding's token id.
    """
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    width = padded(int(lengths.max()), longest)
    attention_mask = np.arange(width) < lengths[:, None]
    input_ids = np.full(attention_mask.shape, pad, dtype=np.int32)
    input_ids[attention_mask] = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])
    return {"input_ids": input_ids, "attention_mask": attention_mask.astype(np.int32)}


def split_sequences(rows: Sequence[list[int]], padded: PaddedLength, longest: int, pad: int) -> dict[str, np.ndarray]:
    """What all rows start with, once, and each row's rest, of one token at least.

    Returns:
        ``prefix_ids`` INT32 [1, prefix] padded on the right, ``prefix_length`` INT32 [1] its tokens (0 where the rows
        start differently), and the rests as of :func:`padded_sequences`.
    """
    shared = max(min(_in_common(rows), min(map(len, rows)) - 1), 0)
    prefix = padded_sequences([rows[0][:shared]], padded, longest, pad)["input_ids"]
    rests = padded_sequences([row[shared:] for row in rows], padded, longest - shared, pad)
    return {"prefix_ids": prefix, "prefix_length": np.array([shared], dtype=np.int32), **rests}


def _in_common(rows: Sequence[list[int]]) -> int:
    """How many token ids all rows start with: those that the first and the last in order share."""
    first, last = min(rows), max(rows)
    differing = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return next(differing, len(first))
