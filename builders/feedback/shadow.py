"""A candidate that saw live requests in the shadow, beside the ranker whose lists were shown.

Read is what a client's `Shadow.log` writes, a JSON line a request (:class:`ShadowLine`). With a feedback log of the
same requests, clicked and bought items are labels, joined by request id; they favour the ranker whose lists were shown,
since what stood low was hardly seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pydantic
import scipy.stats
import sklearn.metrics
from rich.table import Table

from builders.data.beir import DatasetError
from builders.feedback.log import FeedbackLog

TOP_K = 10
LEAST = 2
"""Of requests, for an interval."""


class ShadowList(pydantic.BaseModel):
    """One ranker's answer. The lowest finite FP32 is the score of an item that was not scored."""

    model_config = pydantic.ConfigDict(extra="forbid")

    model: str
    ids: list[str]
    scores: list[float]

    @pydantic.model_validator(mode="after")
    def _as_many(self) -> ShadowList:
        if len(self.ids) != len(self.scores) or not self.ids:
            raise ValueError(f"found {len(self.ids)} ids and {len(self.scores)} scores, wanted as many, and some")
        return self

    @property
    def scored(self) -> np.ndarray:
        """float [n]: of the items that were scored."""
        scores = np.array(self.scores)
        return scores[scores != np.finfo(np.float32).min]


class ShadowLine(pydantic.BaseModel):
    """One request: ``live`` was answered with, ``shadow`` was not."""

    model_config = pydantic.ConfigDict(extra="forbid")

    request_id: str
    unix_s: float
    endpoint: str
    candidates: list[str]
    live: ShadowList
    shadow: ShadowList


@dataclasses.dataclass(frozen=True)
class Compared:
    """A figure, the mean over requests. low, high: its 95 % interval (BCa bootstrap); None of too few requests."""

    figure: str
    mean: float
    low: float | None
    high: float | None
    requests: int


@dataclasses.dataclass(frozen=True)
class ShadowReport:
    """What was found.

    Attributes:
        score_distance: Kolmogorov-Smirnov statistic of the two rankers' scores, 0 = the same distribution, to 1.
        unscored: share of each ranker's items without a score.
    """

    models: tuple[str, str]
    requests: int
    figures: Sequence[Compared]
    mean_scores: tuple[float, float]
    score_distance: float
    unscored: tuple[float, float]
    without_label: int | None

    def told(self) -> list[str]:
        """Lines for a reader."""
        (live, shadow), (live_mean, shadow_mean) = self.models, self.mean_scores
        lines = [
            f"{self.requests} requests answered by {live}, seen by {shadow} too",
            f"scores: mean {live_mean:.4g} and {shadow_mean:.4g}, distance of their distributions (Kolmogorov-Smirnov) "
            f"{self.score_distance:.3f}; {self.unscored[0]:.2%} and {self.unscored[1]:.2%} of the items not scored",
        ]
        if self.without_label is not None:
            lines.append(f"{self.without_label} of the requests have no clicked or bought item: no NDCG of them")
        return lines

    def table(self) -> Table:
        """Figure, mean, interval, requests."""
        table = Table("a request", "mean", "95 % interval", "requests", title="Live and shadow", title_justify="left")
        for each in self.figures:
            interval = "too few" if each.low is None or each.high is None else f"{each.low:.4f} to {each.high:.4f}"
            table.add_row(each.figure, f"{each.mean:.4f}", interval, str(each.requests))
        return table


def read_shadow(paths: Sequence[Path]) -> list[ShadowLine]:
    """Lines of files. Raises: DatasetError by file and line; for a log of more than one pair of rankers; for none."""
    lines = [line for path in paths for line in _lines(path)]
    if not lines:
        raise DatasetError(f"{', '.join(map(str, paths))}: no line, wanted what a client's Shadow.log writes")
    pairs = sorted({(line.endpoint, line.live.model, line.shadow.model) for line in lines})
    if len(pairs) > 1:
        found = ", ".join(f"{endpoint}: {live} with {shadow}" for endpoint, live, shadow in pairs)
        raise DatasetError(f"{', '.join(map(str, paths))}: found {found}; wanted one pair of rankers, give them apart")
    return lines


def shadow_report(lines: Sequence[ShadowLine], feedback: FeedbackLog | None = None) -> ShadowReport:
    """The candidate beside the live ranker."""
    of_all: dict[str, Callable[[ShadowLine], float]] = {
        f"overlap of the first {TOP_K}": _overlap,
        "the same first item": lambda line: float(line.live.ids[0] == line.shadow.ids[0]),
        "rank correlation (Kendall's tau)": _tau,
    }
    figures = [_compared(name, [figure(line) for line in lines]) for name, figure in of_all.items()]
    taken = {} if feedback is None else {each.shown.request_id: each.taken for each in feedback.lists if each.taken}
    labelled = [line for line in lines if taken.get(line.request_id, set()) & set(line.live.ids)]
    if labelled:
        live = [_ndcg(line.live, line, taken[line.request_id]) for line in labelled]
        shadow = [_ndcg(line.shadow, line, taken[line.request_id]) for line in labelled]
        figures += [
            _compared(f"NDCG@{TOP_K} by clicks, live", live),
            _compared(f"NDCG@{TOP_K} by clicks, shadow", shadow),
            _compared(f"NDCG@{TOP_K} by clicks, shadow minus live", list(np.subtract(shadow, live))),
        ]
    live_scores = np.concatenate([line.live.scored for line in lines])
    shadow_scores = np.concatenate([line.shadow.scored for line in lines])
    both = live_scores.size and shadow_scores.size
    return ShadowReport(
        models=(lines[0].live.model, lines[0].shadow.model),
        requests=len(lines),
        figures=figures,
        mean_scores=(_mean(live_scores), _mean(shadow_scores)),
        score_distance=float(scipy.stats.ks_2samp(live_scores, shadow_scores).statistic) if both else float("nan"),
        unscored=(_unscored([line.live for line in lines]), _unscored([line.shadow for line in lines])),
        without_label=None if feedback is None else len(lines) - len(labelled),
    )


def _lines(path: Path) -> list[ShadowLine]:
    found = []
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}), wanted JSON lines of a client's Shadow.log") from error
    for number, text in enumerate(texts, start=1):
        try:
            found.append(ShadowLine.model_validate_json(text))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DatasetError(f"{path}:{number}: {place}: {first['msg']}") from error
    return found


def _overlap(line: ShadowLine) -> float:
    count = min(TOP_K, len(line.live.ids), len(line.shadow.ids))
    return len(set(line.live.ids[:count]) & set(line.shadow.ids[:count])) / count


def _tau(line: ShadowLine) -> float:
    """Of the items that both ranked; 1 of a single one."""
    places = {item_id: place for place, item_id in enumerate(line.shadow.ids)}
    common = [places[item_id] for item_id in line.live.ids if item_id in places]
    return float(scipy.stats.kendalltau(range(len(common)), common).statistic) if len(common) > 1 else 1.0


def _ndcg(ranked: ShadowList, line: ShadowLine, taken: set[str]) -> float:
    """Over the request's candidates: those that a list leaves out stand behind all of it."""
    places = {item_id: place for place, item_id in enumerate(ranked.ids)}
    candidates = list(dict.fromkeys([*line.candidates, *line.live.ids, *line.shadow.ids]))
    gains = [float(item_id in taken) for item_id in candidates]
    if len(gains) == 1:  # scikit-learn refuses it: any order of one is ideal
        return gains[0]
    scores = [-float(places.get(item_id, len(candidates))) for item_id in candidates]
    return float(sklearn.metrics.ndcg_score([gains], [scores], k=TOP_K))


def _compared(name: str, values: Sequence[float]) -> Compared:
    if len(values) < LEAST or np.ptp(values) == 0:
        low = high = float(values[0]) if len(values) >= LEAST else None
        return Compared(name, float(np.mean(values)), low, high, len(values))
    found = scipy.stats.bootstrap((np.asarray(values),), np.mean, rng=np.random.default_rng(0))
    interval = found.confidence_interval
    return Compared(name, float(np.mean(values)), float(interval.low), float(interval.high), len(values))


def _mean(scores: np.ndarray) -> float:
    return float(scores.mean()) if scores.size else float("nan")


def _unscored(lists: Sequence[ShadowList]) -> float:
    items = sum(len(each.ids) for each in lists)
    return 1 - sum(each.scored.size for each in lists) / items


def as_json(report: ShadowReport) -> Mapping[str, object]:
    """Names and figures."""
    return dataclasses.asdict(report)
