"""A recipe's ranker => its variants as ONNX files, each checked against torch, quantized where asked for, and gated.

:mod:`builders.publishing` puts them into the model repository.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from torch import nn

from builders import quality
from builders.beir import JudgedQueries, Product, Request
from builders.contract import MAX_CANDIDATES, MAX_ROWS_PER_RUN, SCORE, USUAL_CANDIDATES
from builders.evaluation import judging_queries
from builders.export_onnx import OPSET, check_onnx, onnx_from_ranker, run_onnx
from builders.feature_ranker import FeatureRanker
from builders.files import fingerprint, sha256, write_atomically
from builders.first_stage import first_stage
from builders.quantize import int8_from_onnx
from builders.ranker import Graph, Ranker, Sample
from builders.recipe import REPOSITORY_ROOT, Recipe, RecipeError, Variant

LIBRARIES = ("torch", "transformers", "peft", "onnx", "onnxscript", "onnxruntime", "numpy", "tokenizers")
Say = Callable[[str], None]
Scores = dict[str, dict[str, float]]
"""Query id => item id => score."""


@dataclasses.dataclass(frozen=True)
class Places:
    """Folders that a build writes: ONNX files and figures, Triton's repository, the item store."""

    build: Path = REPOSITORY_ROOT / "build"
    repository: Path = REPOSITORY_ROOT / "model_repository"
    item_store: Path = REPOSITORY_ROOT / "item_store"

    def ranker_folder(self, recipe: Recipe) -> Path:
        """ONNX files and figures of one recipe."""
        return self.build / "rankers" / recipe.ranker


PROJECT = Places()


@dataclasses.dataclass(frozen=True)
class BuiltVariant:
    """A variant on disk, with what was measured of it.

    Attributes:
        models: graph name => (model name, ONNX file).
        figures: NDCG, difference from torch, gate; JSON.
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


def build_ranker(recipe: Recipe, data: JudgedQueries, say: Say = print, places: Places = PROJECT) -> BuiltRanker:
    """Load the recipe's ranker and build its variants."""
    ranker = load_ranker(recipe)
    return BuiltRanker(recipe, ranker, build_variants(recipe, ranker, data, say, places), data)


def load_ranker(recipe: Recipe) -> Ranker:
    """Import the recipe's module and load its checkpoint.

    Raises:
        RecipeError: the file or the class is not there, or the class is neither a Ranker nor a torch.nn.Module.
        ContractError: a module whose declared features no network could take.
    """
    loaded = import_from(recipe, recipe.module)
    checkpoint = recipe.path(recipe.checkpoint) if recipe.checkpoint else None
    backbone = recipe.path(recipe.backbone) if recipe.backbone else None
    if isinstance(loaded, type) and issubclass(loaded, Ranker):
        return loaded(checkpoint=checkpoint, backbone=backbone)  # type: ignore[call-arg]
    if isinstance(loaded, type) and issubclass(loaded, nn.Module):
        return FeatureRanker.load(recipe.ranker, loaded, checkpoint, backbone)
    raise RecipeError(
        f"recipe of {recipe.ranker}: '{recipe.module}' is no class derived from torch.nn.Module or "
        "builders.ranker.Ranker"
    )


def import_from(recipe: Recipe, reference: str) -> Any:
    """What ``<file>:<name>`` of a recipe refers to. Raises: RecipeError."""
    file_name, name = reference.rsplit(":", 1)
    path = recipe.path(file_name)
    if not path.is_file():
        raise RecipeError(f"recipe of {recipe.ranker}: module '{path}' is not there; wanted <file>.py:<name>")
    found = getattr(_import_file(path), name, None)
    if found is None:
        raise RecipeError(f"recipe of {recipe.ranker}: '{path}' has no '{name}'")
    return found


def build_variants(
    recipe: Recipe, ranker: Ranker, judged: JudgedQueries, say: Say = print, places: Places = PROJECT
) -> list[BuiltVariant]:
    """Export, check, quantize and gate every variant; what is built already is taken as it is."""
    folder = places.ranker_folder(recipe)
    evaluated = judging_queries(recipe, judged)
    wanted = torch_scores(recipe, ranker, evaluated, say, places)
    built: list[BuiltVariant] = []
    reference: dict[str, list[str]] | None = None
    for variant in recipe.variants:
        models = {
            graph.name: _built_graph(recipe, ranker, graph, variant, judged, folder, say) for graph in ranker.graphs
        }
        state = folder / f"{variant.name}.json"
        inputs = fingerprint(
            [*(sha256(path) for _, path in models.values()), recipe.gate.model_dump_json(), _digest(evaluated)]
        )
        figures = _stored(state, inputs)
        if figures is None:
            say(f"{recipe.model_name(variant)}: quality over {len(evaluated.queries)} queries")
            figures = {"inputs": inputs, **_measure(recipe, ranker, variant, models, evaluated, wanted, reference)}
            write_atomically(state, json.dumps(figures, indent=2) + "\n")
        reference = reference or figures["rankings"]
        say(f"{recipe.model_name(variant)}: {figures['gate']}")
        built.append(BuiltVariant(variant, models, figures, figures["passed"]))
    return built


def torch_scores(
    recipe: Recipe, ranker: Ranker, judged: JudgedQueries, say: Say = print, places: Places = PROJECT
) -> Scores:
    """The torch module's own score of every judged candidate, computed once and kept under ``build/``."""
    state = places.ranker_folder(recipe) / "torch_scores.json"
    inputs = fingerprint([*map(sha256, ranker.checkpoint_files), _code_of(ranker), _digest(judged)])
    stored = _stored(state, inputs)
    if stored is None:
        say(f"{recipe.ranker}: scoring {len(judged.queries)} queries with torch")
        scores = {
            query_id: _scores_of(recipe, ranker, judged, query_id, list(grades))
            for query_id, grades in judged.judgements.items()
        }
        stored = {"inputs": inputs, "scores": scores}
        write_atomically(state, json.dumps(stored) + "\n")
    return dict(stored["scores"])


def libraries() -> dict[str, str]:
    """Name => version of what a build depends on, for the manifest."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def parity_samples(ranker: Ranker, judged: JudgedQueries) -> list[dict[str, Sample]]:
    """Real requests: one candidate, a usual request, and the largest at the longest texts: MAX_CANDIDATES, or the
    MAX_ROWS_PER_RUN rows that a scorer which joins requests ever runs at once."""
    query_id, grades = next(iter(judged.judgements.items()))
    request = judged.request(query_id)
    candidates = [judged.products[item_id] for item_id in grades]
    largest = MAX_ROWS_PER_RUN if ranker.graphs[-1].batches else MAX_CANDIDATES
    longest = sorted(judged.products.values(), key=lambda product: len(product.title))[-largest:]
    return [
        ranker.sample(request, candidates[:1]),
        ranker.sample(request, candidates[:USUAL_CANDIDATES]),
        ranker.sample(judged.request(max(judged.queries, key=lambda each: len(judged.queries[each]))), longest),
    ]


def _built_graph(
    recipe: Recipe, ranker: Ranker, graph: Graph, variant: Variant, judged: JudgedQueries, folder: Path, say: Say
) -> tuple[str, Path]:
    """(model name, ONNX file); a precise graph of an INT8 variant is that of the reference."""
    reference = recipe.variants[0]
    model = f"{graph.name}_{reference.name if graph.precise else variant.name}"
    source = _exported(ranker, graph, f"{graph.name}_{reference.name}", judged, folder, say)
    if variant.int8 is None or graph.precise:
        return model, source
    target = folder / f"{model}.onnx"
    inputs = fingerprint([sha256(source), variant.int8.model_dump_json(), onnxruntime.__version__])
    if not _is_current(target, inputs):
        queries = variant.int8.calibration_queries
        say(f"{model}: calibrating on {queries} training queries, {variant.int8.method}")
        int8_from_onnx(source, target, _calibration(ranker, graph, judged, queries), variant.int8)
        _mark(target, inputs)
    return model, target


def _exported(ranker: Ranker, graph: Graph, model: str, judged: JudgedQueries, folder: Path, say: Say) -> Path:
    target = folder / f"{model}.onnx"
    inputs = fingerprint(
        [
            *map(sha256, ranker.checkpoint_files),
            _code_of(graph.module),
            graph.contract.to_json(),
            str(OPSET),
            str(libraries()),
        ]
    )
    if not _is_current(target, inputs):
        say(f"{model}: exporting to ONNX")
        samples = [sample[graph.name] for sample in parity_samples(ranker, judged)]
        onnx_from_ranker(graph, _two_rows(samples[1]) if graph.batches else samples[1], target)
        reports = check_onnx(graph, target, samples)
        worst = max(difference for report in reports for difference in report.max_abs_difference.values())
        say(f"{model}: parity with torch over {len(samples)} shapes, largest difference {worst:.1e}")
        _mark(target, inputs)
    return target


def _code_of(thing: object) -> str:
    """Changes with the files that define its class and, of a network, those of its parts: an edited one is exported
    anew. What is installed as a package is not looked at: its version is a fact of the environment."""
    parts = [thing, *(thing.modules() if isinstance(thing, nn.Module) else ())]
    files = {Path(inspect.getfile(type(part))) for part in parts}
    return fingerprint(sha256(path) for path in sorted(files) if "site-packages" not in path.parts)


def _two_rows(sample: Sample) -> Sample:
    """The exporter takes a dimension of 1 for a constant."""
    return {name: np.concatenate([array, array])[: max(2, len(array))] for name, array in sample.items()}


def _calibration(ranker: Ranker, graph: Graph, judged: JudgedQueries, count: int) -> list[Sample]:
    """Real candidates of training queries; the test queries stay unseen."""
    train = judged.subset("train")
    return [
        ranker.sample(train.request(query_id), [judged.products[item_id] for item_id in train.judgements[query_id]])[
            graph.name
        ]
        for query_id in list(train.queries)[:count]
    ]


def _measure(
    recipe: Recipe,
    ranker: Ranker,
    variant: Variant,
    models: Mapping[str, tuple[str, Path]],
    judged: JudgedQueries,
    torch_reference: Scores,
    reference: Mapping[str, list[str]] | None,
) -> dict[str, Any]:
    """NDCG, difference from torch query by query, and the gate's answer."""
    sessions = {name: onnxruntime.InferenceSession(path) for name, (_, path) in models.items()}
    order = first_stage(judged)
    scores: Scores = {}
    for query_id, candidates in order.items():
        products = [judged.products[item_id] for item_id in candidates]
        request = judged.request(query_id)
        found = as_served(recipe, ranker, request, products, score_in_process(ranker, sessions, request, products))
        scores[query_id] = dict(zip(candidates, map(float, found), strict=True))
    differences = {
        query_id: max(abs(score - torch_reference[query_id][item_id]) for item_id, score in of_query.items())
        for query_id, of_query in scores.items()
    }
    rankings = quality.rankings_from_scores(order, scores)
    ndcg = quality.ndcg_of_rankings(judged, rankings)
    figures: dict[str, Any] = {
        "queries": len(ndcg),
        "ndcg_at_10": float(np.mean(list(ndcg.values()))),
        "ndcg_at_10_by_query": ndcg,
        "max_abs_difference_from_torch_by_query": differences,
        "rankings": rankings,
    }
    return {**figures, **_gate(recipe, variant, judged, rankings, reference, figures)}


def score_in_process(
    ranker: Ranker,
    sessions: Mapping[str, onnxruntime.InferenceSession],
    request: Request,
    products: Sequence[Product],
) -> np.ndarray:
    """FP32 [candidates, heads] from ONNX Runtime, without a server: graph by graph, each fed the ones before it."""
    samples = ranker.sample(request, products)
    outputs: Sample = {}
    for graph in ranker.graphs:
        outputs = run_onnx(sessions[graph.name], {**samples[graph.name], **outputs})
    return outputs[SCORE.name]


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


def _gate(
    recipe: Recipe,
    variant: Variant,
    judged: JudgedQueries,
    rankings: Mapping[str, list[str]],
    reference: Mapping[str, list[str]] | None,
    figures: Mapping[str, Any],
) -> dict[str, Any]:
    if reference is None:
        return {"gate": f"NDCG@10 {figures['ndcg_at_10']:.4f}, the reference", "passed": True}
    comparison = quality.compare(judged, rankings, reference)
    try:
        return {
            "gate": quality.gate(recipe.model_name(variant), comparison, recipe.gate.min_ndcg_ratio),
            "passed": True,
        }
    except quality.GateFailed as failure:
        return {"gate": str(failure), "passed": False}


def _import_file(path: Path) -> Any:
    """The module of a file of this project under its dotted name, of any other file under its own."""
    if path.is_relative_to(REPOSITORY_ROOT):  # so that pickles, patches and isinstance meet one module
        return importlib.import_module(".".join(path.relative_to(REPOSITORY_ROOT).with_suffix("").parts))
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{fingerprint([str(path)])}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # inspect and torch's exporter look classes up there
    spec.loader.exec_module(module)
    return module


def _digest(judged: JudgedQueries) -> str:
    requests = [dataclasses.asdict(judged.request(query_id)) for query_id in judged.queries]
    return fingerprint([json.dumps(judged.judgements), json.dumps(requests)])


def _stored(path: Path, inputs: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures if figures["inputs"] == inputs else None


def _is_current(target: Path, inputs: str) -> bool:
    mark = target.with_suffix(".inputs")
    return target.is_file() and mark.is_file() and mark.read_text() == inputs


def _mark(target: Path, inputs: str) -> None:
    """Written last: without it the target counts as not built."""
    write_atomically(target.with_suffix(".inputs"), inputs)
