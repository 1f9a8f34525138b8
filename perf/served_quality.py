"""Quality as served: every judged query ranked through its endpoint, and checked against torch and the offline figure.

Knows nothing of speed. Metrics, intervals and parity are those of :mod:`perf.kit.figures`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydantic
from rich.console import Console

from perf.endpoints import RANK, Endpoint, EndpointClient, first_queries, published_model, served_scorers
from perf.kit.data import (
    PROJECT,
    DataSource,
    JudgedQueries,
    Recipe,
    Workspace,
    fingerprint,
    first_stage,
    judged_folder,
    sha256,
    write_atomically,
)
from perf.kit.figures import (
    METRICS_CODE,
    Interval,
    ParityError,
    Rankings,
    ndcg_of_rankings,
    paired_interval,
    parity_report,
)
from perf.kit.rankers import Ranker, Scores, Session, in_process_score, load_ranker, sessions_of, torch_scores
from perf.kit.served import MANIFEST
from perf.progress import track

TORCH_ATOL = 1e-4
"""Of an fp32 score."""
IN_PROCESS_ATOL = 1e-5
"""Of a score of any other variant against ONNX Runtime on the same file, batch and padding."""
NDCG_ATOL = 1e-3
RANK_QUERIES = 10
"""Queries on which ``rank`` is compared with the variant that it serves."""
FIRST_STAGE = "first_stage"


@dataclasses.dataclass(frozen=True)
class Check:
    """One claim with its verdict; ``detail`` holds the figures."""

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {self.detail}"


@dataclasses.dataclass(frozen=True)
class RankerQuality:
    """One way to order the candidates.

    Attributes:
        name: model name, or FIRST_STAGE.
        split: "test" or "all" judged queries.
        ndcg: query id => NDCG@10.
        rankings: query id => item ids, best first.
    """

    name: str
    split: str
    ndcg: dict[str, float]
    rankings: dict[str, list[str]]

    @property
    def mean_ndcg(self) -> float:
        """Over its queries."""
        return float(np.mean(list(self.ndcg.values())))


@dataclasses.dataclass(frozen=True)
class Difference:
    """NDCG@10 of ``found`` minus ``reference`` over the queries that both may be judged on."""

    found: str
    reference: str
    interval: Interval


@dataclasses.dataclass(frozen=True)
class ServedQuality:
    """What :func:`measure_served_quality` found.

    Attributes:
        inputs: fingerprint of what was served and judged.
        limit: queries it was limited to; None = all.
        generated: the data is made up and the figures mean nothing.
        published: the model that ``rank`` serves.
        rankers: the first stage, then every endpoint.
    """

    inputs: str
    limit: int | None
    generated: bool
    published: str
    rankers: list[RankerQuality]
    differences: list[Difference]
    checks: list[Check]

    @property
    def failed(self) -> list[Check]:
        """Checks that did not pass."""
        return [check for check in self.checks if not check.passed]

    def ranker(self, name: str) -> RankerQuality:
        """The ranker called ``name``. Raises: KeyError."""
        return {ranker.name: ranker for ranker in self.rankers}[name]

    def difference(self, found: str, reference: str) -> Difference | None:
        """Of these two, where it was measured."""
        pairs = {(difference.found, difference.reference): difference for difference in self.differences}
        return pairs.get((found, reference))


def measure_served_quality(
    url: str,
    judged: JudgedQueries,
    endpoints: Sequence[Endpoint],
    rankers: Mapping[str, Ranker],
    *,
    source: DataSource,
    limit: int | None = None,
    workspace: Workspace = PROJECT,
    console: Console | None = None,
) -> ServedQuality:
    """Rank the judged requests through every endpoint of the server at ``url``.

    Args:
        url: of the server's gRPC.
        judged: all judged queries.
        endpoints: what the server serves besides ``rank``, or besides ``recommend``; all of one kind.
        rankers: ranker name => loaded ranker, for torch's scores and in-process runs.
        limit: use only the first so many test queries, for all.
        console: shows progress.

    Raises:
        TritonRankError: an endpoint does not answer.
    """
    console = console or Console(quiet=True)
    order = first_stage(judged)
    rows, checks = [_first_stage_quality(judged, order, limit)], []
    for endpoint in endpoints:
        asked = _asked(judged, endpoint.split, limit)
        scores = served_scores(url, endpoint.name, asked, order, console)
        row = _ranker_quality(endpoint.model, _split(endpoint.split, limit), asked, scores)
        rows.append(row)
        checks.append(_check_scores(endpoint, rankers, judged, asked, order, scores, workspace, console))
        checks.append(check_ndcg(endpoint.model, row.ndcg, offline_ndcg(endpoint, workspace)))
    kind = endpoints[0].kind
    published = published_model(workspace, kind)
    checks.append(_check_published(url, kind, published, rows, judged, order))
    return ServedQuality(
        inputs=inputs_fingerprint(source.folder, workspace),
        limit=limit,
        generated=source.generated,
        published=published,
        rankers=rows,
        differences=paired_differences(rows, endpoints),
        checks=checks,
    )


def served_scores(
    url: str, endpoint: str, asked: JudgedQueries, order: Rankings, console: Console | None = None
) -> Scores:
    """Query id => item id => score that ``endpoint`` answers, item ids best first."""
    with EndpointClient(url, endpoint) as client:
        return {
            query_id: dict(client.ask(asked.request(query_id), order[query_id]))
            for query_id in track(list(asked.queries), endpoint, console)
        }


def paired_differences(rows: Sequence[RankerQuality], endpoints: Sequence[Endpoint]) -> list[Difference]:
    """Every ranker against the first stage, trained ones against untrained, variants against their reference."""
    by_name = {row.name: row for row in rows}
    untrained = [endpoint for endpoint in endpoints if endpoint.split == "all" and endpoint.is_reference]
    pairs = []
    for endpoint in endpoints:
        of_text = endpoint.recipe.data == "judged"  # of a shop's purchases all rankers have learned
        others = [other for other in untrained if of_text and other.recipe.ranker != endpoint.recipe.ranker]
        own = [other for other in endpoints if other.recipe == endpoint.recipe and other.is_reference]
        baselines = [FIRST_STAGE, *(other.model for other in [*others, *own] if other != endpoint)]
        pairs += [(endpoint.model, baseline) for baseline in baselines]
    return [
        Difference(found, reference, _interval(by_name[found], by_name[reference]))
        for found, reference in pairs
        if found in by_name and reference in by_name
    ]


def inputs_fingerprint(data: Path, workspace: Workspace = PROJECT) -> str:
    """Changes when the served models, the judged data, the offline figures or the way of judging do."""
    folder = judged_folder(data) or data
    files = [
        workspace.repository / MANIFEST,
        workspace.repository / RANK / "config.pbtxt",
        *sorted(folder.glob("*.jsonl")),
        *sorted(folder.glob("*.tsv")),
        *sorted(workspace.build.glob("rankers/*/*.json")),
        Path(__file__),
        METRICS_CODE,
    ]
    return fingerprint([sha256(path) if path.is_file() else "" for path in files])


def quality_file(workspace: Workspace = PROJECT, kind: str = RANK) -> Path:
    """Where :func:`write_quality` puts the figures."""
    return workspace.build / "report" / ("quality.json" if kind == RANK else f"quality_{kind}.json")


def write_quality(found: ServedQuality, workspace: Workspace = PROJECT, kind: str = RANK) -> Path:
    """Keep the figures as JSON."""
    path = quality_file(workspace, kind)
    write_atomically(path, json.dumps(dataclasses.asdict(found), ensure_ascii=False) + "\n")
    return path


def read_quality(workspace: Workspace = PROJECT) -> ServedQuality | None:
    """The figures kept last; None where there are none, or none of this form."""
    try:
        text = quality_file(workspace).read_text(encoding="utf-8")
        return pydantic.TypeAdapter(ServedQuality).validate_python(json.loads(text))
    except (FileNotFoundError, ValueError):
        return None


# ---------------------------------------------------------------- one ranker
def _asked(judged: JudgedQueries, split: str, limit: int | None) -> JudgedQueries:
    if limit is not None:
        return first_queries(judged, limit)
    return judged.subset("test" if split == "test" else "all")


def _split(split: str, limit: int | None) -> str:
    """A limited run takes test queries whatever may judge the ranker."""
    return split if limit is None else "test"


def _first_stage_quality(judged: JudgedQueries, order: Rankings, limit: int | None) -> RankerQuality:
    asked = _asked(judged, "all", limit)
    rankings = {query_id: list(order[query_id]) for query_id in asked.queries}
    return RankerQuality(FIRST_STAGE, _split("all", limit), ndcg_of_rankings(asked, rankings), rankings)


def _ranker_quality(name: str, split: str, asked: JudgedQueries, scores: Scores) -> RankerQuality:
    """The order is the server's own; that its scores would give the same is ``postprocess``'s business."""
    rankings = {query_id: list(of_query) for query_id, of_query in scores.items()}
    return RankerQuality(name, split, ndcg_of_rankings(asked, rankings), rankings)


def _interval(found: RankerQuality, reference: RankerQuality) -> Interval:
    shared = [query_id for query_id in found.ndcg if query_id in reference.ndcg]
    return paired_interval(
        {query_id: found.ndcg[query_id] for query_id in shared},
        {query_id: reference.ndcg[query_id] for query_id in shared},
    )


# ---------------------------------------------------------------- checks
def _check_scores(
    endpoint: Endpoint,
    rankers: Mapping[str, Ranker],
    judged: JudgedQueries,
    asked: JudgedQueries,
    order: Rankings,
    served: Scores,
    workspace: Workspace,
    console: Console,
) -> Check:
    """fp32 against torch, anything else against its own in-process run."""
    ranker = rankers[endpoint.recipe.ranker]
    if endpoint.is_fp32 and not ranker.has_library:  # whose files were held against the library at the build
        wanted = torch_scores(endpoint.recipe, ranker, judged, console.print, workspace)  # as the build kept them
        return check_parity(endpoint.model, "torch's", served, wanted, TORCH_ATOL)
    wanted = in_process_scores(endpoint, ranker, asked, order, workspace, console)
    return check_parity(endpoint.model, "its in-process run's", served, wanted, IN_PROCESS_ATOL)


def in_process_scores(
    endpoint: Endpoint,
    ranker: Ranker,
    asked: JudgedQueries,
    order: Rankings,
    workspace: Workspace = PROJECT,
    console: Console | None = None,
) -> Scores:
    """Scores of the same runtime in this process, from the very files that are served, each query one batch."""
    sessions = in_process_sessions(endpoint, ranker, workspace)
    scores: Scores = {}
    for query_id in track(list(asked.queries), f"{endpoint.model} in process", console):
        products = [asked.products[item_id] for item_id in order[query_id]]
        request = asked.request(query_id)
        found = in_process_score(endpoint.recipe, ranker, sessions, request, products)
        scores[query_id] = dict(zip(order[query_id], map(float, found), strict=True))
    return scores


def in_process_sessions(endpoint: Endpoint, ranker: Ranker, workspace: Workspace = PROJECT) -> dict[str, Session]:
    """Graph name => session with the threads that the recipe gives the server."""
    return sessions_of(endpoint.recipe, endpoint.variant, ranker, served_scorers(endpoint, workspace))


def check_parity(model: str, whose: str, served: Scores, wanted: Scores, atol: float) -> Check:
    """Whether every served score is within ``atol`` of the wanted one; NaN and missing items fail."""
    name = f"{model}: scores equal {whose}"
    try:
        reports = [
            parity_report(*_aligned(wanted.get(query_id, {}), found, query_id), atol)
            for query_id, found in served.items()
        ]
    except ParityError as error:
        return Check(name, False, str(error))
    worst = max(difference for report in reports for difference in report.max_abs_difference.values())
    count = sum(map(len, served.values()))
    return Check(name, True, f"largest difference {worst:.1e} over {count:,} scores, limit {atol:g}")


def _aligned(
    wanted: Mapping[str, float], found: Mapping[str, float], query_id: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """float64 [candidates] of both in the wanted one's order, named by the query; a missing item is NaN."""
    ids = list(wanted) + [item_id for item_id in found if item_id not in wanted]
    reference = np.array([wanted.get(item_id, np.nan) for item_id in ids])
    served = np.array([found.get(item_id, np.nan) for item_id in ids])
    return {query_id: reference}, {query_id: served}


def offline_ndcg(endpoint: Endpoint, workspace: Workspace = PROJECT) -> dict[str, float]:
    """Query id => NDCG@10 that the build measured without a server; empty where it did not."""
    path = workspace.ranker_folder(endpoint.recipe.ranker) / f"{endpoint.variant.name}.json"
    figures = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return dict(figures.get("ndcg_at_10_by_query", {}))


def check_ndcg(model: str, served: Mapping[str, float], offline: Mapping[str, float]) -> Check:
    """Whether the mean NDCG@10 as served is within NDCG_ATOL of the offline one of the same queries."""
    name = f"{model}: NDCG@10 equals the offline figure"
    missing = [query_id for query_id in served if query_id not in offline]
    if missing:
        return Check(name, False, f"no offline figure of {len(missing)} of {len(served)} queries; run 'make quality'")
    found = float(np.mean(list(served.values())))
    wanted = float(np.mean([offline[query_id] for query_id in served]))
    detail = f"served {found:.4f}, offline {wanted:.4f}, difference {abs(found - wanted):.1e}, limit {NDCG_ATOL:g}"
    return Check(name, abs(found - wanted) <= NDCG_ATOL, detail)


def _check_published(
    url: str, kind: str, published: str, rows: Sequence[RankerQuality], judged: JudgedQueries, order: Rankings
) -> Check:
    """``rank`` is the endpoint that users call: it must answer as the variant that it names."""
    name = f"{kind}: answers as {published}"
    row = next((row for row in rows if row.name == published), None)
    if row is None:
        return Check(name, False, f"{published} is no variant of a recipe; run 'make repository'")
    asked = first_queries(judged, RANK_QUERIES)
    found = served_scores(url, kind, asked, order)
    same = [query_id for query_id in found if list(found[query_id]) == row.rankings.get(query_id)]
    return Check(name, len(same) == len(found), f"the same order for {len(same)} of {len(found)} queries")


def load_rankers(recipes: Mapping[str, Recipe], endpoints: Sequence[Endpoint]) -> dict[str, Ranker]:
    """Ranker name => ranker, of those that have an endpoint."""
    wanted = {endpoint.recipe.ranker for endpoint in endpoints}
    return {name: load_ranker(recipe) for name, recipe in recipes.items() if name in wanted}
