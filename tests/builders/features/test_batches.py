"""A catalogue is read in pieces: no more of it than a piece is taken before the first items come out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from builders.data.beir import Product
from builders.features.batches import ITEMS_AT_ONCE, batched
from builders.rankers.base import Ranker
from builders.rankers.cross_encoder import CrossEncoderRanker
from builders.rankers.two_tower import TwoTowerRanker
from tests.support.tiny_bert import WORDS, write_tiny_bert

ITEMS = ITEMS_AT_ONCE + 5


class Catalogue:
    """Counts the products that were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[Product]:
        for number in range(ITEMS):
            self.taken += 1
            yield Product(f"i{number}", " ".join(WORDS[number % (place + 2)] for place in range(1 + number % 5)))


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (2, [2]), (3, [3]), (7, [3, 3, 1])])
def test_every_item_is_in_one_batch_in_order(count: int, sizes: list[int]) -> None:
    batches = list(batched(range(count), 3))
    assert [len(batch) for batch in batches] == sizes
    assert [item for batch in batches for item in batch] == list(range(count))


@pytest.mark.parametrize("kind", [CrossEncoderRanker, TwoTowerRanker])
def test_a_text_rankers_features_are_made_a_batch_at_a_time(kind: type[Ranker], tmp_path: Path) -> None:
    ranker, catalogue = kind(backbone=write_tiny_bert(tmp_path)), Catalogue()  # type: ignore[call-arg]
    stored = ranker.item_features(catalogue)
    first = next(stored)
    assert catalogue.taken == ITEMS_AT_ONCE
    features = dict([first, *stored])
    assert list(features) == [f"i{number}" for number in range(ITEMS)]
    last = list(Catalogue())[-1]
    [(_, alone)] = ranker.item_features([last])
    kind_of = "<i4" if kind is CrossEncoderRanker else "<f4"
    np.testing.assert_allclose(np.frombuffer(features[last.item_id], kind_of), np.frombuffer(alone, kind_of), atol=1e-6)
