"""A session in this process parts a request as the server does."""

from __future__ import annotations

import numpy as np
import pytest

from backends.common.batching import RunLimits
from builders.core.contract import MAX_ROWS_PER_RUN, MAX_TOKENS_PER_RUN, length_buckets, rows_per_run
from builders.core.runtimes.base import Session
from builders.core.runtimes.parts import PartedSession
from builders.rankers.base import Sample

LENGTHS = length_buckets(512)


class Counting(Session):
    """Answers each row's sum with the shared number, and remembers the shapes that it was given."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, ...]] = []

    def run(self, sample: Sample) -> Sample:
        self.runs.append(sample["x"].shape)
        return {"score": sample["x"].sum(axis=1, keepdims=True) + sample["shared"]}


def run(rows: int, length: int, limits: RunLimits) -> list[tuple[int, ...]]:
    """Shapes of the runs; the scores are those of the whole."""
    x = np.arange(rows * length, dtype=np.float32).reshape(rows, length)
    session = Counting()
    found = PartedSession(session, limits).run({"x": x, "shared": np.array([7], np.float32)})
    np.testing.assert_array_equal(found["score"], x.sum(axis=1, keepdims=True) + 7)
    return session.runs


SEQUENCES = RunLimits(MAX_ROWS_PER_RUN, MAX_TOKENS_PER_RUN, frozenset({"x"}))
FEATURES = RunLimits(MAX_ROWS_PER_RUN, None, frozenset({"x"}))


def test_sequences_are_parted_by_tokens() -> None:
    rows = rows_per_run(512)
    assert run(2 * rows + 1, 512, SEQUENCES) == [(rows, 512), (rows, 512), (1, 512)]
    assert run(2, 2 * MAX_TOKENS_PER_RUN, SEQUENCES) == [(1, 2 * MAX_TOKENS_PER_RUN)] * 2


def test_features_are_parted_by_rows_alone() -> None:
    assert run(MAX_ROWS_PER_RUN + 1, 512, FEATURES) == [(MAX_ROWS_PER_RUN, 512), (1, 512)]


def test_a_usual_request_is_one_run() -> None:
    assert run(40, 40, SEQUENCES) == [(40, 40)]
    assert run(0, 8, SEQUENCES) == [(0, 8)]


def of_lengths(lengths: list[int], padded: int) -> list[tuple[int, ...]]:
    """Shapes of the runs of rows of so many tokens each; every row keeps all of them, and its place."""
    x = np.zeros((len(lengths), padded), np.float32)
    for row, length in enumerate(lengths):
        x[row, :length] = row + 1
    session = Counting()
    limits = RunLimits(MAX_ROWS_PER_RUN, MAX_TOKENS_PER_RUN, frozenset({"x", "m"}), "m", LENGTHS)
    found = PartedSession(session, limits).run({"x": x, "m": (x > 0).astype(np.int32), "shared": np.zeros(1)})
    np.testing.assert_array_equal(found["score"][:, 0], x.sum(axis=1))
    return session.runs


def test_rows_of_equal_padded_lengths_are_run_together() -> None:
    assert of_lengths([9, 64, 3, 16], 64) == [(1, 64), (2, 16), (1, 8)]
    assert of_lengths([60, 64, 57], 64) == [(3, 64)]
    assert of_lengths([60] * 40 + [9] * 40, 64) == [(32, 64), (8, 64), (40, 16)]
    assert of_lengths([100, 2], 100) == [(1, 100), (1, 8)]  # a length that is no bucket, as the longest may be


@pytest.mark.parametrize("lengths", [[], [0], [0] * 3, [1], [512] * 5])
def test_no_row_is_lost_where_there_is_nothing_to_cut(lengths: list[int]) -> None:
    assert sum(rows for rows, _ in of_lengths(lengths, 512)) == len(lengths)
    assert all(length == 512 for _, length in of_lengths(lengths, 512) if lengths != [1])


def test_random_lengths_keep_every_rows_score() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        padded = int(draw.choice(LENGTHS))
        of_lengths([int(one) for one in draw.integers(0, padded + 1, int(draw.integers(1, 200)))], padded)
