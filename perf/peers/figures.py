"""What rounds of answers come to: a row a peer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydantic

from perf.peers.peer import Answers

TOLERANCE = 1e-3
"""Scores of the same weights in FP32 differ by less, whoever computes them."""


@dataclasses.dataclass(frozen=True)
class Bout:
    """One peer's turn in one round.

    Attributes:
        cpu_s: of all its processes meanwhile.
    """

    answers: Answers
    cpu_s: float


class Ratio(pydantic.BaseModel):
    """Over the reference of the same round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


class Row(pydantic.BaseModel):
    """One peer.

    Attributes:
        p50_ms: over the ``requests`` of all rounds.
        candidates_per_s, cpu_ms: medians of the rounds; processor time is of one request.
        speedup: candidates/s over the reference's, with the 10th and 90th percentile of the rounds.
        cpu_ratio: processor time of a request over the reference's, likewise; None where a turn of the reference was
            too short for the steps of 10 ms in which it is counted.
        idle_cpu: of a core, while others were asked.
        scores: how they compare with the reference's.
    """

    name: str
    note: str
    requests: int
    p50_ms: float
    candidates_per_s: float
    cpu_ms: float
    speedup: Ratio
    cpu_ratio: Ratio | None
    idle_cpu: float
    scores: str


class PeersReport(pydantic.BaseModel):
    """One kind.

    Attributes:
        machine: its load is of before.
        reference: name of the row that the others are compared with.
        not_measured: name => why.
    """

    kind: str
    weights: str
    written: str
    machine: dict[str, Any]
    rounds: int
    clients: int
    requests: int
    candidates: float
    reference: str
    rows: list[Row]
    not_measured: dict[str, str]


def row_of(
    name: str,
    note: str,
    exact: bool,
    rounds: Mapping[int, Bout],
    reference: Mapping[int, Bout],
    candidates: int,
    idle_cpu: float,
) -> Row:
    """Of one peer.

    Args:
        exact: whether its scores must be the reference's.
        rounds, reference: number of a round => its turn.
        candidates: asked for in one turn.
    """
    requests = [latency for bout in rounds.values() for latency in bout.answers.latencies_ms]
    rates = {number: candidates / bout.answers.wall_s for number, bout in rounds.items()}
    cpu = {number: bout.cpu_s / len(bout.answers.latencies_ms) * 1e3 for number, bout in rounds.items()}
    of_reference = {number: reference[number] for number in rounds}
    counted = all(bout.cpu_s for bout in of_reference.values())
    return Row(
        name=name,
        note=note,
        requests=len(requests),
        p50_ms=float(np.median(requests)),
        candidates_per_s=float(np.median(list(rates.values()))),
        cpu_ms=float(np.median(list(cpu.values()))),
        speedup=_ratio([of_reference[number].answers.wall_s / bout.answers.wall_s for number, bout in rounds.items()]),
        cpu_ratio=_ratio([bout.cpu_s / of_reference[number].cpu_s for number, bout in rounds.items()])
        if counted
        else None,
        idle_cpu=idle_cpu,
        scores=compared_scores(
            [bout.answers.scores for bout in rounds.values()],
            [bout.answers.scores for bout in of_reference.values()],
            exact,
        ),
    )


def _ratio(values: Sequence[float]) -> Ratio:
    low, median, high = np.percentile(values, (10, 50, 90))
    return Ratio(median=float(median), low=float(low), high=float(high))


def compared_scores(
    found: Sequence[Sequence[Sequence[float]]], reference: Sequence[Sequence[Sequence[float]]], exact: bool
) -> str:
    """In words.

    Args:
        found, reference: [rounds][requests][candidates].
        exact: whether more than :data:`TOLERANCE` between them is a fault.
    """
    pairs = [
        (some, wanted)
        for of_round, wanted_of_round in zip(found, reference, strict=True)
        for some, wanted in zip(of_round, wanted_of_round, strict=True)
    ]
    odd = [(len(some), len(wanted)) for some, wanted in pairs if len(some) != len(wanted)]
    if odd:
        few, wanted = odd[0]
        return f"OTHER: {len(odd)} of {len(pairs)} answers have not a score a candidate, such as {few} of {wanted}"
    most = float(np.max([np.max(np.abs(np.subtract(some, wanted))) for some, wanted in pairs]))
    if math.isfinite(most) and most <= TOLERANCE:
        return f"the same within {most:.1e}"
    return f"{'OTHER' if exact else 'quantized'}: they differ by up to {most:.3g}"
