"""A variant's files => what they are worth: judged in process against torch and the reference, kept, and gated."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from backends.common.batching import parts_of
from builders.compress.chain import Artifact, compressed, network_inputs, variant_files
from builders.compress.context import BuildContext, Say, ranker_inputs
from builders.core.contract import ATTENTION_MASK, SCORE, padded_length
from builders.core.keeper import keep_figures
from builders.core.processor import instruction_sets
from builders.core.recipe import Recipe, RecipeError, Variant
from builders.core.runtimes import PartedSession, Session, open_session, runtime_of
from builders.core.steps import NetworkStep
from builders.core.workspace import PROJECT, Workspace
from builders.data.beir import JudgedQueries, Product, Request
from builders.data.bm25 import first_stage
from builders.data.evaluation import Halves, halves
from builders.data.unlabeled import UnlabeledList, unlabeled_lists
from builders.evaluate import gate, metrics
from builders.rankers.base import Graph, Ranker, Sample

FIDELITY_SEED = 103
"""Of the gate's unlabeled lists."""
ROWS_OF_LIKE_LENGTH = 12
"""Token sequences that are computed together where rows are sorted by length."""
SPOT_CHECKS = 5
"""Queries whose candidates torch scores where a library is the reference."""
Scores = dict[str, dict[str, float]]
"""Query id => item id => score."""


@dataclasses.dataclass(frozen=True)
class BuiltVariant:
    """A variant on disk, with what was measured of it.

    Attributes:
        models: graph name => (model name, scorer file: ``.onnx``, or ``.xml`` with its ``.bin`` beside it).
        figures: NDCG, difference from torch, gate, seconds and bytes; JSON.
        passed: whether it may be published.
    """

    variant: Variant
    models: Mapping[str, tuple[str, Path]]
    figures: Mapping[str, Any]
    passed: bool


@dataclasses.dataclass(frozen=True)
class BuiltRanker:
    """A ranker with its variants and what they were judged on; ``data`` also holds the items and users to store."""

    recipe: Recipe
    ranker: Ranker
    variants: Sequence[BuiltVariant]
    data: JudgedQueries

    def built(self, variant: Variant) -> BuiltVariant:
        """The variant as it was built. Raises: KeyError: it was not."""
        return {each.variant.name: each for each in self.variants}[variant.name]


def truncations(built: BuiltRanker) -> str:
    """One line: how many of the judged pairs are not read to their end; "" for a ranker that reads no text."""
    if not built.ranker.reads_text:
        return ""
    pairs = cut = 0
    for query_id, grades in built.data.judgements.items():
        pairs += len(grades)
        cut += built.ranker.truncated(built.data.request(query_id), [built.data.products[item] for item in grades])
    return f"{built.recipe.ranker}: {cut:,} of {pairs:,} judged pairs are truncated ({cut / max(pairs, 1):.1%})"


def torch_scores(
    recipe: Recipe, ranker: Ranker, judged: JudgedQueries, say: Say = print, workspace: Workspace = PROJECT
) -> Scores:
    """The torch module's own score of every judged candidate, computed once and kept under ``build/``: of all queries,
    or of a spot check where the library that made the checkpoint is the reference (builders/evaluate/reference.py)."""

    def compute() -> dict[str, Scores]:
        say(f"{recipe.ranker}: scoring {len(judged.queries)} queries with torch")
        return {
            "scores": {
                query_id: _scores_of(recipe, ranker, judged, query_id, list(grades))
                for query_id, grades in judged.judgements.items()
            }
        }

    judged = _spot_checked(ranker, judged)
    inputs = {**ranker_inputs(ranker), "data": judged.digest, "head_weights": recipe.postprocess.head_weights}
    state = workspace.ranker_folder(recipe.ranker) / "torch_scores.json"
    return dict(keep_figures(state, inputs, compute)["scores"])


def told_rounding(recipe: Recipe, ranker: Ranker, judged: JudgedQueries, workspace: Workspace = PROJECT) -> str:
    """One line: NDCG with items' vectors as they are stored beside that with FP32; "" where they are FP32."""
    exact = ranker.unrounded
    if exact is None:
        return ""

    def compute() -> dict[str, dict[str, float]]:
        return {"stored": _ndcg_by_torch(recipe, ranker, judged), "exact": _ndcg_by_torch(recipe, exact, judged)}

    inputs = {**ranker_inputs(ranker), "data": judged.digest, "head_weights": recipe.postprocess.head_weights}
    ndcg = keep_figures(workspace.ranker_folder(recipe.ranker) / "rounding.json", inputs, compute)
    cost = metrics.paired_interval(ndcg["stored"], ndcg["exact"])
    stored, whole = (metrics.mean_of(ndcg[name]) for name in ("stored", "exact"))
    return (
        f"{recipe.ranker}: NDCG@10 {stored:.4f} with items' vectors as stored, {whole:.4f} in FP32: "
        f"{cost.mean_difference:+.4f}, 95 % interval {cost.low:+.4f} to {cost.high:+.4f} over {cost.queries} queries"
    )


def _ndcg_by_torch(recipe: Recipe, ranker: Ranker, judged: JudgedQueries) -> dict[str, float]:
    order = first_stage(judged)
    scores = {query_id: _scores_of(recipe, ranker, judged, query_id, ids) for query_id, ids in order.items()}
    return metrics.ndcg_of_rankings(judged, metrics.rankings_from_scores(order, _finite(scores)))


def _spot_checked(ranker: Ranker, judged: JudgedQueries) -> JudgedQueries:
    return (
        judged.only(list(judged.queries)[:: -(-len(judged.queries) // SPOT_CHECKS)]) if ranker.has_library else judged
    )


def judged_variant(
    context: BuildContext, variant: Variant, made: Mapping[str, Artifact], judging: Judging
) -> BuiltVariant:
    """Its files, and what was measured of it, now or before."""
    models = {name: (one.model, one.path) for name, one in made.items()}
    files = _files(models)

    def compute() -> dict[str, Any]:
        context.say(f"{context.recipe.model_name(variant)}: quality over {len(judging.data.queries)} judged queries")
        measured = _measure(context, _sampler(context, variant), variant, models, judging)
        return {"fidelity_lists": judging.count, **measured}

    figures = keep_figures(
        context.folder / f"{variant.name}.json",
        _figures_inputs(context, variant, files, judging),
        compute,
        valid=lambda stored: _readable(stored) and stored["fidelity_lists"] >= judging.count,
        say=context.say,
    )
    passed, told = _verdict(context.recipe, variant, figures)
    figures |= {
        "gate": told,
        "build_s": round(sum(one.seconds for one in made.values()), 1),
        "size_bytes": sum(path.stat().st_size for path in files),
        "layers": [dataclasses.asdict(layer) for one in made.values() for layer in one.layers],
    }
    return BuiltVariant(variant, models, figures, passed)


def _figures_inputs(
    context: BuildContext, variant: Variant, files: Sequence[Path], judging: Judging
) -> dict[str, object]:
    """Everything that a variant's figures depend on, but for how many lists they are over. The limits of the gate judge
    figures and change none."""
    return {
        "files": list(files),
        "samples": network_inputs(context, _sampling_steps(variant)),
        "precision": variant.precision,
        **_scored_on(context, judging),
        "metric": context.recipe.gate.metric,
        "reference": judging.reference,
        "halves": [list(half.queries) for half in (judging.halves.validation, judging.halves.test)],
    }


def _scored_on(context: BuildContext, judging: Judging) -> dict[str, object]:
    """What lists are scored, and what of the recipe changes a score."""
    recipe = context.recipe
    return {
        "data": judging.data.digest,
        "kind of data": recipe.data,
        "head_weights": recipe.postprocess.head_weights,
        "threads": recipe.serving.threads,
        "processor": instruction_sets(),
        "fidelity_candidates": recipe.gate.fidelity_candidates,
        "fidelity seed": FIDELITY_SEED,
    }


def _readable(figures: Mapping[str, Any]) -> bool:
    """Not by a version whose reports had another form."""
    if not {"fidelity_lists", "not_finite", "validation"} <= figures.keys():
        return False
    try:
        if "report" in figures:
            gate.report_from_json(figures["report"])
    except pydantic.ValidationError:
        return False
    return True


def _verdict(recipe: Recipe, variant: Variant, figures: Mapping[str, Any]) -> tuple[bool, str]:
    """(passed, reasons): of what was measured, by the limits as they are now."""
    name = recipe.model_name(variant)
    if "report" not in figures:
        faults = figures["not_finite"]
        refused = f", but {faults} scores are NaN or infinite: not published" if faults else ""
        sampled = f" ({figures['sampled']})" if figures["sampled"] else ""
        return not faults, f"{name}: NDCG@10{sampled} {figures['ndcg_at_10']:.4f}, the reference{refused}"
    try:
        told = gate.verdict(name, gate.report_from_json(figures["report"]), recipe.gate_of(variant))
        told += ", on validation queries" if figures["half"] == "test" else ""
        own = ", ".join(f"{limit} {value:g}" for limit, value in variant.gate.model_dump(exclude_none=True).items())
        return True, f"{told} by limits of its own, {own}" if own else told
    except metrics.GateFailed as failure:
        return False, str(failure)


def _sampler(context: BuildContext, variant: Variant) -> Ranker:
    """Who makes the variant's samples: its own network, where a vector of the request is among them."""
    return compressed(context, _sampling_steps(variant)).ranker


def _sampling_steps(variant: Variant) -> list[NetworkStep]:
    return [step for step in variant.network_steps if step.keepable]


@dataclasses.dataclass
class Judging:
    """What every variant of a ranker is judged on.

    Attributes:
        data: the queries that may judge it.
        lists: without judgements; made when they are first needed.
        torch_scores: of the judged queries, by the network as trained.
        reference: rankings by the reference variant.
    """

    data: JudgedQueries
    recipe: Recipe
    count: int
    torch_scores: Scores
    reference: Mapping[str, list[str]] | None = None

    @functools.cached_property
    def halves(self) -> Halves:
        """Of ``data``: what gates, and what is reported."""
        return halves(self.data)

    @functools.cached_property
    def lists(self) -> list[UnlabeledList]:
        """Other lists than distillation's and calibration's."""
        return unlabeled_lists(self.data, self.count, self.recipe.gate.fidelity_candidates, FIDELITY_SEED)


def _measure(
    context: BuildContext, ranker: Ranker, variant: Variant, models: Mapping[str, tuple[str, Path]], judging: Judging
) -> dict[str, Any]:
    """NDCG, difference from torch query by query, and the gate's report."""
    recipe, data = context.recipe, judging.data
    sessions = open_sessions(recipe, variant, models, ranker.graphs)
    order = first_stage(data)
    scores: Scores = {}
    for query_id, candidates in order.items():
        products = [data.products[item_id] for item_id in candidates]
        request = data.request(query_id)
        found = as_served(
            recipe,
            ranker,
            request,
            products,
            score_in_process(ranker, sessions, request, products, by_length=variant.exact),
        )
        scores[query_id] = dict(zip(candidates, map(float, found), strict=True))
    not_finite = sum(not math.isfinite(score) for of_query in scores.values() for score in of_query.values())
    differences = {
        query_id: max(abs(score - judging.torch_scores[query_id][item_id]) for item_id, score in of_query.items())
        for query_id, of_query in scores.items()
        if query_id in judging.torch_scores
    }
    rankings = metrics.rankings_from_scores(order, _finite(scores))
    ndcg = metrics.ndcg_of_rankings(data, rankings)
    of_validation, of_test = judging.halves.names
    figures: dict[str, Any] = {
        "half": of_test,
        **_mean_ndcg(ndcg, judging.halves.test),
        "validation": {"half": of_validation, **_mean_ndcg(ndcg, judging.halves.validation)},
        "sampled": data.sampled,
        "ndcg_at_10_by_query": ndcg,
        "max_abs_difference_from_torch_by_query": differences,
        "rankings": rankings,
        "not_finite": not_finite,
    }
    if judging.reference is None:
        return figures
    fidelity = None
    if not variant.exact:
        unjudged = _unjudged_scores(context, ranker, variant, sessions, judging)
        not_finite += sum(not math.isfinite(score) for one in unjudged for score in one)
        fidelity = gate.fidelity_of(unjudged, _reference_scores(context, judging))
    gating = judging.halves.validation
    report = gate.gate_report(gating, recipe.data, rankings, judging.reference, recipe.gate, fidelity, not_finite)
    return {**figures, "report": dataclasses.asdict(report)}


def _mean_ndcg(ndcg: Mapping[str, float], half: JudgedQueries) -> dict[str, Any]:
    return {
        "queries": len(half.queries),
        "ndcg_at_10": metrics.mean_of({query_id: ndcg[query_id] for query_id in half.queries}),
    }


def _reference_scores(context: BuildContext, judging: Judging) -> list[list[float]]:
    """Of the unlabeled lists, by the reference variant; kept, since every other variant is compared with them."""
    reference = context.recipe.variants[0]
    models = {name: (one.model, one.path) for name, one in variant_files(context, reference).items()}

    def compute() -> dict[str, list[list[float]]]:
        sessions = open_sessions(context.recipe, reference, models, context.ranker.graphs)
        return {"scores": _unjudged_scores(context, context.ranker, reference, sessions, judging)}

    inputs = {
        "files": _files(models),
        "samples": ranker_inputs(context.ranker),
        "lists": judging.count,
        **_scored_on(context, judging),
    }
    state = context.folder / f"reference_scores_{judging.count}.json"
    found: list[list[float]] = keep_figures(state, inputs, compute)["scores"]
    return found


def _unjudged_scores(
    context: BuildContext, ranker: Ranker, variant: Variant, sessions: Mapping[str, Session], judging: Judging
) -> list[list[float]]:
    context.say(f"{context.recipe.model_name(variant)}: fidelity over {len(judging.lists):,} unlabeled lists")
    return [
        as_served(
            context.recipe, ranker, one.request, one.products,
            score_in_process(ranker, sessions, one.request, one.products, by_length=variant.exact),
        ).tolist()
        for one in judging.lists
    ]  # fmt: skip


def _finite(scores: Scores) -> Scores:
    """What is NaN or infinite counts as lowest, so that the rest can be told; the gate refuses it."""
    lowest = float(np.finfo(np.float32).min)
    return {
        query_id: {item_id: score if math.isfinite(score) else lowest for item_id, score in of_query.items()}
        for query_id, of_query in scores.items()
    }


def _files(models: Mapping[str, tuple[str, Path]]) -> list[Path]:
    """Each scorer's file, and what belongs beside it."""
    return [path for _, file in models.values() for path in runtime_of(file).files(file).values()]


def open_sessions(
    recipe: Recipe, variant: Variant, models: Mapping[str, tuple[str, Path]], graphs: Sequence[Graph]
) -> dict[str, Session]:
    """Graph name => session with the threads, the precision and the limits of a run that the served model has."""
    by_name = {graph.name: graph for graph in graphs}
    return {
        name: _as_limited(
            open_session(path, threads=recipe.serving.threads, precision=variant.precision), by_name[name], variant
        )
        for name, (_, path) in models.items()
    }


def _as_limited(session: Session, graph: Graph, variant: Variant) -> Session:
    return PartedSession(session, graph.limits) if _splits(graph, variant) else session


def _splits(graph: Graph, variant: Variant) -> bool:
    return (graph.batches or graph.splits) and variant.rows_independent and not variant.runtime.needs_gpu


def runs_of(graph: Graph, variant: Variant, sample: Sample) -> list[Sample]:
    """The runs that the served model computes one request's sample in, if it is joined with no other request."""
    return list(graph.parts(sample)) if _splits(graph, variant) else [sample]


def runs_without_padding(graph: Graph, sample: Sample) -> list[Sample]:
    """The same rows, each at its own length; the sample as it is where the graph has no padding to cut off."""
    if not (graph.padding_mask and (graph.batches or graph.splits)):
        return [sample]
    lengths = tuple(range(1, sample[graph.padding_mask].shape[1] + 1))
    limits = dataclasses.replace(graph.limits, rows=None, tokens=None, lengths=lengths)
    return [part for _, part in parts_of(sample, limits)]


def score_in_process(
    ranker: Ranker,
    sessions: Mapping[str, Session],
    request: Request,
    products: Sequence[Product],
    *,
    by_length: bool = False,
) -> np.ndarray:
    """FP32 [candidates, heads] without a server: graph by graph, each fed the ones before it.

    Args:
        by_length: compute rows of token sequences in groups of like length; only where a row's score is its own, as of
            an exact variant. A third quicker on product titles.
    """
    samples = ranker.sample(request, products)
    outputs: Sample = {}
    for graph in ranker.graphs:
        run = _run_by_length if by_length and _pads_rows(graph) else _run_whole
        outputs = run(sessions[graph.name], {**samples[graph.name], **outputs})
    return outputs[SCORE.name]


def _run_whole(session: Session, sample: Sample) -> Sample:
    return session.run(sample)


def _pads_rows(graph: Graph) -> bool:
    return graph.batches and bool(graph.lengths) and ATTENTION_MASK.name in graph.row_inputs


def _run_by_length(session: Session, sample: Sample) -> Sample:
    """Rows of like length together, each group without the padding that only longer rows need."""
    lengths = sample[ATTENTION_MASK.name].sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    groups = [order[start : start + ROWS_OF_LIKE_LENGTH] for start in range(0, len(order), ROWS_OF_LIKE_LENGTH)]
    found: list[Sample] = []
    for rows in groups:
        width = padded_length(int(lengths[rows].max()), sample[ATTENTION_MASK.name].shape[1])
        found.append(session.run({name: np.ascontiguousarray(array[rows, :width]) for name, array in sample.items()}))
    back = np.argsort(order, kind="stable")
    return {name: np.concatenate([one[name] for one in found])[back] for name in found[0]}


def as_served(
    recipe: Recipe, ranker: Ranker, request: Request, products: Sequence[Product], scores: np.ndarray
) -> np.ndarray:
    """FP32 [candidates]: what ``postprocess`` orders by: heads weighed as the recipe says, and the ranker's fallback
    where it has one for this request. scores: FP32 [candidates] or [candidates, heads]."""
    combined = scores if scores.ndim == 1 else _weighed(recipe, scores)
    fallback = ranker.fallback(request, products)
    return combined if fallback is None else np.where(np.isnan(fallback), combined, fallback)


def _weighed(recipe: Recipe, scores: np.ndarray) -> np.ndarray:
    weights = np.array(recipe.postprocess.head_weights or [1.0], dtype=np.float32)
    if len(weights) != scores.shape[1]:
        raise RecipeError(
            f"recipe of {recipe.ranker}: {len(weights)} head_weights, wanted one for each of {scores.shape[1]} heads"
        )
    return np.asarray(scores @ weights)


def _scores_of(
    recipe: Recipe, ranker: Ranker, judged: JudgedQueries, query_id: str, item_ids: Sequence[str]
) -> dict[str, float]:
    products = [judged.products[item_id] for item_id in item_ids]
    request = judged.request(query_id)
    scores = as_served(recipe, ranker, request, products, ranker.score(request, products))
    return dict(zip(item_ids, map(float, scores), strict=True))
