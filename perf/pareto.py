"""Every variant of a recipe, built, gated, served alone and driven with real requests: quality, latency, rate, cost.

A round goes through all variants, each in a server of its own, before the next begins; a ratio is over the reference
variant of the same round, since the machine drifts. Each measurement is kept as soon as it is finished, under what
served it: a run that was cut goes on where it stopped. In a round that was cut the reference is measured once more, so
that the ratios of what was missing are of neighbours in time, too.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from rich.console import Console

from perf.analyzer import AnalyzerError, Measurement, measure
from perf.csv_text import csv_text
from perf.endpoints import serving
from perf.errors import PerfError
from perf.foreign_load import FOREIGN_SHARE_LIMIT, undisturbed
from perf.inputs import evenly_mixed, mean_candidates, requests_json, write_requests
from perf.kit.data import (
    PROJECT,
    REPOSITORY_ROOT,
    DatasetError,
    JudgedQueries,
    Recipe,
    Variant,
    Workspace,
    evaluation_data,
    find_data,
    first_stage,
    judging_queries,
    load_recipe,
    write_atomically,
)
from perf.kit.figures import ParetoReport, VariantFigures, pareto_folder
from perf.kit.rankers import BuiltRanker, BuiltVariant, build_ranker, publish
from perf.kit.served import endpoint_inputs
from perf.machine import Machine, this_machine
from perf.pareto_page import render_pareto
from perf.pareto_text import layer_text, pareto_table
from perf.process_memory import tree_memory
from perf.progress import track
from perf.served_inputs import figures_key
from perf.tables import print_whole
from server.errors import ServerError

CONCURRENCY = 2
"""Requests at once: one is computed while the next is prepared. Latency, rate and cost are of the same load."""
ROUNDS, WINDOW_MS = 3, 2000
REQUESTS = 200
"""Judged requests that are sent in turn, at most."""


# ---------------------------------------------------------------- what is kept
class Measured(pydantic.BaseModel):
    """One variant in one round.

    Attributes:
        reference_per_s: requests/s of the reference variant, measured just before in this round.
        rss_bytes, pss_bytes: of the server's process tree after the load.
        foreign_share: of the machine's processor time that other programs took meanwhile, 0 to 1; None = not known.
    """

    latencies_ms: list[float]
    requests_per_s: float
    foreign_share: float | None = None
    reference_per_s: float
    rss_bytes: int
    pss_bytes: int


class Kept(pydantic.BaseModel):
    """One variant's finished measurements.

    Attributes:
        inputs: fingerprint of what served it, of the requests and of the machine.
        rounds: number => measurement.
    """

    inputs: str
    rounds: dict[int, Measured] = {}


@dataclasses.dataclass(frozen=True)
class Load:
    """What every variant is driven with, and what is finished of it.

    Attributes:
        inputs: endpoint => fingerprint of what its figures depend on; the reference's first.
        workspace: whose repository serves them.
        requests: perf_analyzer's JSON.
        window_ms: of each of the three windows of one measurement.
        folder: where measurements are kept.
    """

    inputs: Mapping[str, str]
    workspace: Workspace
    requests: Path
    rounds: int
    window_ms: int
    folder: Path

    @property
    def reference(self) -> str:
        """The endpoint that the others are compared with."""
        return next(iter(self.inputs))

    def kept(self, name: str) -> Kept:
        """What is finished of this endpoint; nothing where something else was served then."""
        fresh = Kept(inputs=self.inputs[name])
        try:
            found = Kept.model_validate_json(self._file(name).read_text(encoding="utf-8"))
        except (FileNotFoundError, pydantic.ValidationError):
            return fresh
        return found if found.inputs == fresh.inputs else fresh

    def keep(self, name: str, round_: int, found: Measured) -> None:
        """Add one measurement."""
        kept = self.kept(name)
        kept.rounds[round_] = found
        write_atomically(self._file(name), kept.model_dump_json())

    def lacks(self, round_: int, without: Collection[str] = ()) -> list[str]:
        """Endpoints that are not measured in this round yet, but for those ``without``."""
        return [name for name in self.inputs if name not in without and round_ not in self.kept(name).rounds]

    def missing(self) -> list[tuple[int, str]]:
        """(round, endpoint) to be measured, in order; the reference's first in every round that lacks any."""
        lacking = [(round_, self.lacks(round_)) for round_ in range(self.rounds)]
        return [
            (round_, name) for round_, names in lacking if names for name in dict.fromkeys([self.reference, *names])
        ]

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def load_of(
    names: Sequence[str],
    workspace: Workspace,
    requests: Path,
    rounds: int,
    window_ms: int,
    machine: Machine,
    folder: Path,
) -> Load:
    """Fingerprints what is served, with what, and where; the time of day and the load of the machine are left out."""
    settings = [str(window_ms), str(CONCURRENCY)]
    inputs = {name: figures_key(workspace.repository, name, requests, machine, settings) for name in names}
    return Load(inputs, workspace, requests, rounds, window_ms, folder)


# ---------------------------------------------------------------- measuring
def measure_missing(load: Load, console: Console | None = None) -> dict[str, str]:
    """Round by round, whatever is not kept yet.

    Returns:
        Endpoint => why it could not be measured; it is left out of the rounds after that.

    Raises:
        PerfError: the reference cannot be measured.
    """
    failures: dict[str, str] = {}
    reference_per_s = 0.0
    for round_, name in track(load.missing(), "served and driven by perf_analyzer", console):
        if name in failures or not load.lacks(round_, failures):
            continue
        try:
            found, rss_bytes, pss_bytes = measure_alone(load, name)
        except (AnalyzerError, ServerError) as error:
            if name == load.reference:
                raise PerfError(f"the reference {name} cannot be measured, so nothing can: {error}") from error
            failures[name] = str(error)
            continue
        reference_per_s = found.requests_per_s if name == load.reference else reference_per_s
        kept = Measured(
            latencies_ms=found.latencies_ms.tolist(),
            requests_per_s=found.requests_per_s,
            foreign_share=found.foreign_share,
            reference_per_s=reference_per_s,
            rss_bytes=rss_bytes,
            pss_bytes=pss_bytes,
        )
        if round_ not in load.kept(name).rounds:  # the reference's may be there from before the cut, and stays
            load.keep(name, round_, kept)
    return failures


def measure_alone(load: Load, name: str) -> tuple[Measurement, int, int]:
    """Latencies and rate of one endpoint in a server that serves nothing else, and that server's RSS and PSS, bytes.

    Measured again while other programs disturb it.
    """
    with serving([name], load.workspace) as server:
        asked = functools.partial(measure, server.grpc_url, name, load.requests, concurrency=CONCURRENCY)
        watched = undisturbed(functools.partial(asked, window_ms=load.window_ms))
        memory = tree_memory(server.pid)
    found = dataclasses.replace(watched.found, foreign_share=watched.foreign_share, runs=watched.runs)
    return found, memory.rss_bytes, memory.pss_bytes


# ---------------------------------------------------------------- a recipe
def run_pareto(
    path: Path,
    *,
    rounds: int = ROUNDS,
    window_ms: int = WINDOW_MS,
    only: Sequence[str] = (),
    fresh: bool = False,
    fidelity_lists: int | None = None,
    data: Path | None = None,
    workspace: Workspace = PROJECT,
    console: Console | None = None,
) -> ParetoReport:
    """Build, gate and publish all variants of a recipe to a repository of their own, measure, and write the report.

    Args:
        path: of the recipe.
        only: these variants besides the reference.
        fresh: measure again what is kept.
        fidelity_lists: of the gate, in place of the recipe's.
        workspace: ``repository`` stays as it is.

    Raises:
        PerfError: a variant is not known, or the reference cannot be measured.
    """
    console = console or Console()
    recipe = _with_only(load_recipe(path), only)
    source = find_data(data)
    console.print(source.note, style="bold red" if source.generated else "")
    judged = evaluation_data(recipe.data, source.folder)
    work = workspace.build / "pareto" / recipe.ranker
    own = dataclasses.replace(workspace, repository=work / "model_repository")
    built = _built(recipe, judged, source.kind, own, console, fidelity_lists)
    if fresh:
        shutil.rmtree(work / "measurements", ignore_errors=True)
    machine = this_machine()
    load = _load(built, own, work, rounds, window_ms, machine)
    todo = len(load.missing())
    console.print(f"{recipe.ranker}: {len(load.inputs)} variants, {rounds} rounds, {todo} measurements to do")
    failures = measure_missing(load, console)
    report = ParetoReport(
        ranker=recipe.ranker,
        recipe=path.absolute(),
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        generated=source.generated,
        machine=dataclasses.asdict(machine),
        price_per_hour=recipe.machine.price_per_hour,
        currency=recipe.machine.currency,
        rounds=rounds,
        window_ms=window_ms,
        concurrency=CONCURRENCY,
        candidates=_candidates(load),
        rows=rows_of(built, load, failures),
        failures={name.partition("_")[2]: reason for name, reason in failures.items()},
        data_kind=recipe.data,
        data_folder=source.folder,
        data_digest=judged.digest,
    )
    for written in write_pareto(report, workspace):
        console.print(f"written: {written}", soft_wrap=True)
    return report


def _with_only(recipe: Recipe, only: Sequence[str]) -> Recipe:
    """The reference and these variants; all where none is named."""
    known = [variant.name for variant in recipe.variants]
    strangers = [name for name in only if name not in known]
    if strangers:
        raise PerfError(f"recipe of {recipe.ranker}: no variant {', '.join(strangers)}; wanted of {', '.join(known)}")
    kept = tuple(variant for variant in recipe.variants[1:] if not only or variant.name in only)
    return recipe.model_copy(update={"variants": (recipe.variants[0], *kept)})


def _built(
    recipe: Recipe, judged: JudgedQueries, note: str, workspace: Workspace, console: Console, fidelity_lists: int | None
) -> BuiltRanker:
    """All variants, those that failed their gate too, in ``workspace.repository``."""
    say = functools.partial(console.print, markup=False, soft_wrap=True)  # a gate's reasons name the recipe's [gate]
    built = build_ranker(recipe, judged, say, workspace, experimental=True, fidelity_lists=fidelity_lists)
    publish([built], note, say, workspace, gated=False)
    return built


def _load(built: BuiltRanker, workspace: Workspace, work: Path, rounds: int, window_ms: int, machine: Machine) -> Load:
    names = [f"{built.ranker.endpoint.name}_{built.recipe.model_name(each.variant)}" for each in built.variants]
    judging = judging_queries(built.recipe, built.data)
    judging = judging.only(list(judging.queries)[:REQUESTS])
    requests = requests_json(judging, first_stage(judging), endpoint_inputs(workspace.repository, names[0]))
    write_requests(evenly_mixed(requests), work / "requests.json")
    return load_of(names, workspace, work / "requests.json", rounds, window_ms, machine, work / "measurements")


def _candidates(load: Load) -> float:
    return mean_candidates(json.loads(load.requests.read_text(encoding="utf-8")))


# ---------------------------------------------------------------- figures
def rows_of(built: BuiltRanker, load: Load, failures: Mapping[str, str]) -> tuple[VariantFigures, ...]:
    """A row for each variant that was measured, the reference's first, with the front marked."""
    measured = {
        each.variant.name: load.kept(name)
        for name, each in zip(load.inputs, built.variants, strict=True)
        if name not in failures
    }
    candidates = _candidates(load)
    rows = [
        VariantFigures(
            model=built.recipe.model_name(each.variant),
            ranker=built.recipe.ranker,
            variant=each.variant.name,
            endpoint=built.ranker.endpoint.name,
            is_reference=each is built.variants[0],
            experimental=each.variant.experimental,
            steps=step_lines(each.variant),
            layers=each.figures["layers"],
            half=each.figures["validation"]["half"],
            sampled=each.figures["sampled"],
            **_quality(built.recipe, each, built.variants),
            **_speed(built.recipe, measured[each.variant.name], load.rounds, candidates),
            gate_passed=each.passed,
            gate=each.figures["gate"],
            own_limits=each.variant.gate.model_dump(exclude_none=True),
            size_bytes=each.figures["size_bytes"],
            build_s=each.figures["build_s"],
        )
        for each in built.variants
        if each.variant.name in measured
    ]
    return with_front(rows)


def _quality(recipe: Recipe, built: BuiltVariant, variants: Sequence[BuiltVariant]) -> dict[str, Any]:
    """By the gate's metric; a reference has its own from what another variant was compared with."""
    metric = recipe.gate.metric
    figures = built.figures
    if "report" not in figures:
        compared = [each.figures["report"]["metrics"][metric]["reference"] for each in variants[1:]]
        found = compared[0] if compared else figures["validation"]["ndcg_at_10"]
        return {
            "metric": metric if compared else "ndcg", "quality": found, "quality_ratio": 1.0,
            "queries": figures["validation"]["queries"],
        }  # fmt: skip
    report = figures["report"]
    found, reference = report["metrics"][metric]["found"], report["metrics"][metric]["reference"]
    fidelity = report["fidelity"] or {}  # none where no unjudged lists could be made
    return {
        "metric": metric,
        "quality": found,
        "queries": report["judged"]["queries"],
        "quality_ratio": found / reference if reference else float("nan"),
        "difference_low": report["judged"]["low"],
        "difference_high": report["judged"]["high"],
        "confidence": report["judged"]["confidence"],
        "fidelity_ndcg": fidelity.get("ndcg"),
        "fidelity_top_10_overlap": fidelity.get("top_10_overlap"),
        "fidelity_lists": fidelity.get("lists"),
        "kendall_tau": report["kendall_tau"],
        "top_10_overlap": report["top_10_overlap"],
    }


def _speed(recipe: Recipe, kept: Kept, rounds: int, candidates: float) -> dict[str, Any]:
    """Latencies are pooled over the rounds, rates, ratios and memory are medians of them."""
    chosen = [kept.rounds[round_] for round_ in range(rounds)]
    latencies_ms = np.concatenate([measured.latencies_ms for measured in chosen])
    p50_ms, p99_ms = np.percentile(latencies_ms, (50, 99))
    candidates_per_s = float(np.median([measured.requests_per_s for measured in chosen])) * candidates
    ratios = [measured.requests_per_s / measured.reference_per_s for measured in chosen]
    return {
        "requests": latencies_ms.size,
        "disturbed_rounds": sum((measured.foreign_share or 0.0) > FOREIGN_SHARE_LIMIT for measured in chosen),
        "p50_ms": float(p50_ms),
        "p99_ms": float(p99_ms),
        "candidates_per_s": candidates_per_s,
        "ratio": float(np.median(ratios)),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "memory_rss_bytes": round(np.median([measured.rss_bytes for measured in chosen])),
        "memory_pss_bytes": round(np.median([measured.pss_bytes for measured in chosen])),
        "cost_per_million": cost_per_million(recipe.machine.price_per_hour, candidates_per_s),
        "currency": recipe.machine.currency,
    }


def cost_per_million(price_per_hour: float, candidates_per_s: float) -> float:
    """Of scored candidates on a machine that is kept busy."""
    return price_per_hour / 3600 / candidates_per_s * 1e6


def with_front(rows: Sequence[VariantFigures]) -> tuple[VariantFigures, ...]:
    """The rows, those on the Pareto front marked; a variant that failed its gate neither is on it nor dominates."""
    passed = [row for row in rows if row.gate_passed]
    costs = np.array([(-row.quality, row.p99_ms, row.cost_per_million) for row in passed]).reshape(-1, 3)
    front = {row.model for row, kept in zip(passed, pareto_front(costs), strict=True) if kept}
    return tuple(row.model_copy(update={"on_front": row.model in front}) for row in rows)


def pareto_front(costs: np.ndarray) -> np.ndarray:
    """Bool [points]: no other point is lower in one cost and no higher in any; equal points stand or fall together.

    Args:
        costs: float64 [points, costs], lower is better.
    """
    no_higher = (costs[:, None] <= costs[None]).all(axis=2)  # [point, other]
    lower = (costs[:, None] < costs[None]).any(axis=2)
    return np.asarray(~(no_higher & lower).any(axis=0))


def step_lines(variant: Variant) -> tuple[str, ...]:
    """The chain as a recipe writes it, a step a line, without what is left at its default."""
    return tuple(_toml(step.model_dump(mode="json", exclude_unset=True)) for step in variant.steps)


def _toml(value: Any) -> str:
    """Inline TOML; strings are ASCII or as JSON writes them."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {_toml(each)}' for key, each in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


# ---------------------------------------------------------------- what is told and written
def write_pareto(report: ParetoReport, workspace: Workspace = PROJECT) -> list[Path]:
    """``<ranker>.json``, ``.csv`` (a row a variant) and ``.html``."""
    folder = pareto_folder(workspace)
    paths = [folder / f"{report.ranker}.{suffix}" for suffix in ("json", "csv", "html")]
    for path, text in zip(paths, (report.model_dump_json(indent=2), _csv(report), render_pareto(report)), strict=True):
        write_atomically(path, text)
    return paths


def _csv(report: ParetoReport) -> str:
    return csv_text(
        {
            **row.model_dump(),
            "steps": "; ".join(row.steps),
            "layers": "; ".join(map(layer_text, row.layers)),
            "own_limits": "; ".join(f"{limit} {value:g}" for limit, value in row.own_limits.items()),
        }
        for row in report.rows
    )


def run_all(paths: Sequence[Path], console: Console, **settings: Any) -> list[ParetoReport]:
    """Recipe by recipe; of the kit's own, where none is named, those whose data is there.

    Raises:
        PerfError: as :func:`run_pareto`.
    """
    reports = []
    for path in paths or sorted((REPOSITORY_ROOT / "recipes").glob("*.toml")):
        try:
            report = run_pareto(path, console=console, **settings)
        except DatasetError as error:
            if paths:
                raise
            console.print(f"{path.stem}: skipped, {error}", style="yellow", markup=False, soft_wrap=True)
            continue
        print_whole(pareto_table(report), console)
        for model, reason in report.failures.items():
            console.print(f"not measured: {model}: {reason}", style="bold red", markup=False, soft_wrap=True)
        if report.failures:
            console.print("the same command again measures what is missing, and nothing else", style="bold red")
        reports.append(report)
    return reports
