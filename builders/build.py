"""A recipe, start to end: ranker => ONNX => parity => INT8 => gate => item store => model repository."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import inspect
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from builders import model_config, quality
from builders.contract import ITEM_IDS, KNOWN, MAX_ROWS_PER_RUN, RANK, RANKED_IDS, SCORE, SCORES, TOP_K, Contract
from builders.datasets import JudgedQueries, Product
from builders.export_onnx import OPSET, check_onnx, onnx_from_ranker, run_onnx
from builders.files import fingerprint, sha256, write_atomically
from builders.first_stage import first_stage
from builders.item_store import ItemStore
from builders.quantize import int8_from_onnx
from builders.ranker import Graph, Ranker, Sample
from builders.recipe import REPOSITORY_ROOT, Recipe, RecipeError, Variant
from builders.repository import Ensemble, RepositoryError, ServedModel, publish_models, served_variant

SERVED_CODE = REPOSITORY_ROOT / "model_repository"
"""The hand-written ``model.py`` files and what they share."""
USUAL_CANDIDATES = 40
DEFAULT_PUBLISHED = "two_tower_fp32_onnx"
"""Of the kit's own rankers the best on the test queries, and the quickest."""
LIBRARIES = ("torch", "transformers", "peft", "onnx", "onnxscript", "onnxruntime", "numpy", "tokenizers")
Say = Callable[[str], None]
Scores = dict[str, dict[str, float]]
"""Query id => item id => score."""

POSTPROCESS = Contract(
    name="postprocess",
    inputs=(ITEM_IDS, dataclasses.replace(SCORE, dims=("candidates", 1)), KNOWN, TOP_K),
    outputs=(RANKED_IDS, SCORES),
    parameters={"unscored": RANK.parameters["unscored"]},
)


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


def in_project(path: Path) -> Path:
    """A recipe's relative path starts at the project's root."""
    return REPOSITORY_ROOT / path


def load_ranker(recipe: Recipe) -> Ranker:
    """Import the recipe's module and load its checkpoint.

    Raises:
        RecipeError: the file or the class is not there, or the class is no Ranker.
    """
    file_name, class_name = recipe.module.rsplit(":", 1)
    path = REPOSITORY_ROOT / file_name
    if not path.is_file():
        raise RecipeError(f"recipe of {recipe.ranker}: module '{path}' is not there; wanted <file>.py:<class>")
    loaded = getattr(_import_file(path), class_name, None)
    if not (isinstance(loaded, type) and issubclass(loaded, Ranker)):
        raise RecipeError(
            f"recipe of {recipe.ranker}: '{recipe.module}' is no class derived from builders.ranker.Ranker"
        )
    return loaded(
        checkpoint=recipe.checkpoint and in_project(recipe.checkpoint),
        backbone=recipe.backbone and in_project(recipe.backbone),
    )  # type: ignore[call-arg]


def build_variants(
    recipe: Recipe, ranker: Ranker, judged: JudgedQueries, say: Say = print, places: Places = PROJECT
) -> list[BuiltVariant]:
    """Export, check, quantize and gate every variant; what is built already is taken as it is."""
    folder = places.ranker_folder(recipe)
    evaluated = judged.subset("test" if recipe.trained_on_judgements else "all")
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
            query_id: _scores_of(ranker, judged, query_id, list(grades))
            for query_id, grades in judged.judgements.items()
        }
        stored = {"inputs": inputs, "scores": scores}
        write_atomically(state, json.dumps(stored) + "\n")
    return dict(stored["scores"])


def publish_rankers(
    rankers: Sequence[tuple[Recipe, Ranker, Sequence[BuiltVariant]]],
    published: str,
    data_note: str,
    say: Say = print,
    places: Places = PROJECT,
) -> dict[str, int]:
    """Write all rankers' models and endpoints; ``rank`` points at the variant called ``published``.

    Raises:
        RecipeError: no built variant that passed is called ``published``.
    """
    models: dict[str, ServedModel] = {}
    ensembles: list[Ensemble] = []
    for recipe, ranker, variants in rankers:
        for built in variants:
            if built.passed:
                steps = _served_steps(recipe, ranker, built, data_note)
                models.update({model.name: model for model in steps})
                ensembles.append(_ensemble(f"rank_{recipe.model_name(built.variant)}", steps))
    chosen = next((ensemble for ensemble in ensembles if ensemble.name == f"rank_{published}"), None)
    if chosen is None:
        passed = ", ".join(ensemble.name.removeprefix("rank_") for ensemble in ensembles)
        raise RecipeError(f"'{published}' is no variant that passed its gate; wanted one of {passed or 'none'}")
    ensembles.append(dataclasses.replace(chosen, name=RANK.name))
    versions = publish_models(places.repository, list(models.values()), ensembles, libraries())
    say(f"published {len(models)} models and {len(ensembles)} endpoints; rank = {published}")
    return versions


def published_variant(places: Places = PROJECT) -> str:
    """The variant that ``rank`` serves now; the kit's default where there is no ``rank`` yet."""
    try:
        return served_variant(places.repository)
    except RepositoryError:
        return DEFAULT_PUBLISHED


def fill_item_store(
    rankers: Sequence[Ranker], products: Sequence[Product], say: Say = print, places: Places = PROJECT
) -> None:
    """Compute and store the features of the products that the store does not hold in these rankers' versions."""
    with ItemStore(places.item_store) as store:
        for ranker in rankers:
            version = ranker.preprocess.parameters["item_features_version"]
            there = store.ids(ranker.name, version)
            missing = [product for product in products if product.item_id not in there]
            if missing:
                say(f"item store: features of {len(missing)} items for {ranker.name}")
                store.put(ranker.name, version, ranker.item_features(missing))


def add_items(rankers: Sequence[Ranker], products: Sequence[Product], places: Places = PROJECT) -> None:
    """Add or replace products while the store is being served; the next request sees them."""
    with ItemStore(places.item_store) as store:
        for ranker in rankers:
            version = ranker.preprocess.parameters["item_features_version"]
            store.put(ranker.name, version, ranker.item_features(products))


def libraries() -> dict[str, str]:
    """Name => version of what a build depends on, for the manifest."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def parity_samples(ranker: Ranker, judged: JudgedQueries) -> list[dict[str, Sample]]:
    """Real requests: one candidate, a usual request, and the largest (MAX_ROWS_PER_RUN rows at the longest texts)."""
    query_id, grades = next(iter(judged.judgements.items()))
    query = judged.queries[query_id]
    candidates = [judged.products[item_id] for item_id in grades]
    longest = sorted(judged.products.values(), key=lambda product: len(product.title))[-MAX_ROWS_PER_RUN:]
    return [
        ranker.sample(query, candidates[:1]),
        ranker.sample(query, candidates[:USUAL_CANDIDATES]),
        ranker.sample(max(judged.queries.values(), key=len), longest),
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
    """SHA-256 of the file that defines its class: an edited network is exported anew."""
    return sha256(Path(inspect.getfile(type(thing))))


def _two_rows(sample: Sample) -> Sample:
    """The exporter takes a dimension of 1 for a constant."""
    return {name: np.concatenate([array, array])[: max(2, len(array))] for name, array in sample.items()}


def _calibration(ranker: Ranker, graph: Graph, judged: JudgedQueries, count: int) -> list[Sample]:
    """Real candidates of training queries; the test queries stay unseen."""
    train = judged.subset("train")
    return [
        ranker.sample(query, [judged.products[item_id] for item_id in train.judgements[query_id]])[graph.name]
        for query_id, query in list(train.queries.items())[:count]
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
        found = score_in_process(ranker, sessions, judged.queries[query_id], products)
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
    ranker: Ranker, sessions: Mapping[str, onnxruntime.InferenceSession], query: str, products: Sequence[Product]
) -> np.ndarray:
    """FP32 [candidates] from ONNX Runtime, without a server: graph by graph, each fed the ones before it."""
    samples = ranker.sample(query, products)
    outputs: Sample = {}
    for graph in ranker.graphs:
        outputs = run_onnx(sessions[graph.name], {**samples[graph.name], **outputs})
    return outputs[SCORE.name][:, 0]


def _scores_of(ranker: Ranker, judged: JudgedQueries, query_id: str, item_ids: Sequence[str]) -> dict[str, float]:
    scores = ranker.score(judged.queries[query_id], [judged.products[item_id] for item_id in item_ids])
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


def _served_steps(recipe: Recipe, ranker: Ranker, built: BuiltVariant, data_note: str) -> list[ServedModel]:
    """Pre-processing, the graphs in order, post-processing."""
    serving = recipe.serving
    common = {"recipe": f"recipes/{recipe.ranker}.toml", "data": data_note}
    checkpoint = {path.name: sha256(path) for path in ranker.checkpoint_files}
    steps = [_python_model(ranker.preprocess, {"tokenizer.json": ranker.tokenizer_file}, common)]
    for graph in ranker.graphs:
        name, path = built.models[graph.name]
        config = model_config.onnx_config(graph, name, serving)
        contract = dataclasses.replace(graph.contract, name=name)
        built_from = {**common, "checkpoint": checkpoint, "variant": built.variant.model_dump(), "opset": OPSET}
        steps.append(ServedModel(config, contract, {"model.onnx": path}, built_from))
    return [*steps, _python_model(POSTPROCESS, {}, {})]


def _python_model(contract: Contract, files: Mapping[str, Path], built_from: Mapping[str, Any]) -> ServedModel:
    code = {"model.py": SERVED_CODE / contract.name / "model.py", "served.py": SERVED_CODE / "served.py"}
    return ServedModel(model_config.python_config(contract), contract, {**code, **files}, built_from)


def _ensemble(name: str, steps: Sequence[ServedModel]) -> Ensemble:
    return Ensemble(name, [step.name for step in steps], dataclasses.replace(RANK, name=name))


def _import_file(path: Path) -> Any:
    """The module of a file of this project under its dotted name, of any other file under its own."""
    if path.is_relative_to(REPOSITORY_ROOT):
        return importlib.import_module(".".join(path.relative_to(REPOSITORY_ROOT).with_suffix("").parts))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _digest(judged: JudgedQueries) -> str:
    return fingerprint([json.dumps(judged.judgements), json.dumps(judged.queries)])


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
