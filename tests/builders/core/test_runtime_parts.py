"""A session in this process parts a request as the server does."""

from __future__ import annotations

import numpy as np

from builders.core.contract import MAX_ROWS_PER_RUN, MAX_TOKENS_PER_RUN, rows_per_run
from builders.core.runtimes.base import Session
from builders.core.runtimes.parts import PartedSession
from builders.rankers.base import Sample


class Counting(Session):
    """Answers each row's sum with the shared number, and remembers the shapes that it was given."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, ...]] = []

    def run(self, sample: Sample) -> Sample:
        self.runs.append(sample["x"].shape)
        return {"score": sample["x"].sum(axis=1, keepdims=True) + sample["shared"]}


def run(rows: int, length: int, *, sequences: bool) -> list[tuple[int, ...]]:
    """Shapes of the runs; the scores are those of the whole."""
    x = np.arange(rows * length, dtype=np.float32).reshape(rows, length)
    session = Counting()
    found = PartedSession(session, ["x"], sequences=sequences).run({"x": x, "shared": np.array([7], np.float32)})
    np.testing.assert_array_equal(found["score"], x.sum(axis=1, keepdims=True) + 7)
    return session.runs


def test_sequences_are_parted_by_tokens() -> None:
    rows = rows_per_run(512)
    assert run(2 * rows + 1, 512, sequences=True) == [(rows, 512), (rows, 512), (1, 512)]
    assert run(2, 2 * MAX_TOKENS_PER_RUN, sequences=True) == [(1, 2 * MAX_TOKENS_PER_RUN)] * 2


def test_features_are_parted_by_rows_alone() -> None:
    assert run(MAX_ROWS_PER_RUN + 1, 512, sequences=False) == [(MAX_ROWS_PER_RUN, 512), (1, 512)]


def test_a_usual_request_is_one_run() -> None:
    assert run(40, 40, sequences=True) == [(40, 40)]
    assert run(0, 8, sequences=True) == [(0, 8)]
