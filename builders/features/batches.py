"""A catalogue in pieces, so that what is made of its texts is never held for all of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
ITEMS_AT_ONCE = 4096
"""Texts of one call of the tokenizer: enough for all cores, a few megabytes of encodings."""


def batched(items: Iterable[T], size: int = ITEMS_AT_ONCE) -> Iterator[list[T]]:
    """In their order, ``size`` at a time, the last ones fewer; as ``itertools.batched``, which Python 3.11 has not."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
