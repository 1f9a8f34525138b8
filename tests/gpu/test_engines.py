"""Real engines on a GPU: built in each precision, inspected, held against torch and ONNX Runtime, and gated.

`make test-gpu` runs it, on a machine with TensorRT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from builders.compress.bisect import bisect
from builders.compress.fp16 import fp16_from_onnx
from builders.compress.quantize_graph import int8_from_onnx
from builders.core.recipe import load_recipes
from builders.core.steps import Int8
from builders.data.bm25 import first_stage
from builders.data.find import JudgedQueries
from builders.engines.build import BuildOptions, Precision, WrongPrecision, engine_from_onnx, missing_reason
from builders.engines.build_all import WantedEngine, build_engines
from builders.engines.parity import check_engine
from builders.engines.profiles import profiles_of
from builders.engines.store import StoredEngine
from builders.evaluate.gate import fidelity_of, gate_report, verdict
from builders.evaluate.metrics import rankings_from_scores
from builders.export.onnx import onnx_from_ranker
from builders.rankers.base import Graph, Ranker, Sample
from builders.rankers.load import load_ranker

RANKER = "cross_encoder"
LENGTHS = (32, 64)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "mixed")
MAX_ROWS = 64
Scores = dict[str, dict[str, float]]
"""Query id => item id => score."""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(missing_reason() != "", reason=f"no engine can be built: {missing_reason()}"),
]


@pytest.fixture(scope="module")
def ranker() -> Ranker:
    return load_ranker(load_recipes()[RANKER])


@pytest.fixture(scope="module")
def graph(ranker: Ranker) -> Graph:
    """The scorer, with two length buckets: each profile takes its time to build."""
    return dataclasses.replace(ranker.graphs[-1], lengths=LENGTHS)


@pytest.fixture(scope="module")
def sample(ranker: Ranker, graph: Graph, judged: JudgedQueries) -> Sample:
    query_id, grades = next(iter(judged.judgements.items()))
    return ranker.sample(judged.request(query_id), [judged.products[item] for item in grades])[graph.name]


@pytest.fixture(scope="module")
def wanted(graph: Graph, sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> list[WantedEngine]:
    folder = tmp_path_factory.mktemp("onnx")
    files = {precision: folder / f"{precision}.onnx" for precision in PRECISIONS}
    onnx_from_ranker(graph, sample, files["fp32"])
    fp16_from_onnx(files["fp32"], files["fp16"], [sample])
    int8_from_onnx(files["fp32"], files["int8"], [sample], Int8(activations="int8"))
    fp16_from_onnx(files["int8"], files["mixed"], [sample])
    return [
        WantedEngine(f"{RANKER}_{precision}_trt", graph, file, precision, f"{RANKER}_fp32_onnx")
        for precision, file in files.items()
    ]


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def built(wanted: list[WantedEngine], store_folder: Path) -> Mapping[str, StoredEngine]:
    """Every precision; building already refuses a plan that is not of its own."""
    return build_engines(wanted, store_folder, require=True)


def test_a_second_run_builds_nothing(
    wanted: list[WantedEngine], built: Mapping[str, StoredEngine], store_folder: Path
) -> None:
    again = build_engines(wanted, store_folder, require=True)
    assert [engine.built for engine in again.values()] == [False] * len(PRECISIONS)
    assert {model: engine.plan for model, engine in again.items()} == {m: engine.plan for m, engine in built.items()}


def test_fp16_and_int8_plans_are_smaller_than_fp32s(built: Mapping[str, StoredEngine]) -> None:
    sizes = {model: engine.manifest.plan_bytes for model, engine in built.items()}
    assert sizes[f"{RANKER}_fp16_trt"] < sizes[f"{RANKER}_fp32_trt"]
    assert sizes[f"{RANKER}_mixed_trt"] < sizes[f"{RANKER}_fp32_trt"]


def test_an_fp32_graph_is_not_sold_as_fp16(wanted: list[WantedEngine], graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(WrongPrecision):
        engine_from_onnx(
            wanted[0].onnx_file, tmp_path / "model.plan", profiles_of(graph), BuildOptions(precision="fp16")
        )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_plan_agrees_with_torch_and_onnx_runtime_at_every_profile(
    wanted: list[WantedEngine],
    built: Mapping[str, StoredEngine],
    graph: Graph,
    sample: Sample,
    precision: Precision,
) -> None:
    each = next(one for one in wanted if one.precision == precision)
    found = check_engine(graph, each.onnx_file, built[each.model].plan, profiles_of(graph), sample, precision)
    assert len(found) == 3 * len(LENGTHS)


@pytest.fixture(scope="module")
def of_torch(ranker: Ranker, judged: JudgedQueries) -> Scores:
    """Of the FP32 module, every judged candidate."""
    return {
        query: _by_item(candidates, ranker.score(judged.request(query), [judged.products[item] for item in candidates]))
        for query, candidates in first_stage(judged).items()
    }


@pytest.mark.parametrize("precision", ["fp16", "int8", "mixed"])
def test_a_plan_passes_the_gate_of_every_other_variant(
    ranker: Ranker,
    graph: Graph,
    judged: JudgedQueries,
    built: Mapping[str, StoredEngine],
    of_torch: Scores,
    precision: Precision,
) -> None:
    recipe, order = load_recipes()[RANKER], first_stage(judged)
    found = _scores(ranker, graph, judged, built[f"{RANKER}_{precision}_trt"].plan)
    report = gate_report(
        judged,
        recipe.data,
        rankings_from_scores(order, found),
        rankings_from_scores(order, of_torch),
        recipe.gate,
        fidelity_of([list(one.values()) for one in found.values()], [list(one.values()) for one in of_torch.values()]),
        not_finite=0,  # rankings_from_scores has refused them
    )
    assert verdict(f"{RANKER}_{precision}_trt", report, recipe.gate)


def test_bisect_names_no_layer_of_the_fp16_graph(wanted: list[WantedEngine], sample: Sample) -> None:
    files = {one.precision: one.onnx_file for one in wanted}
    assert "there is nothing to exclude" in bisect(files["fp32"], files["fp16"], [sample])


def _scores(ranker: Ranker, graph: Graph, judged: JudgedQueries, plan: Path) -> Scores:
    """Of a plan, by its longest profile; every judged candidate."""
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    scores: Scores = {}
    with TrtRunner(EngineFromBytes(BytesFromPath(str(plan))), optimization_profile=len(LENGTHS) - 1) as runner:
        for query, candidates in first_stage(judged).items():
            scores[query] = {}
            for start in range(0, len(candidates), MAX_ROWS):
                part = candidates[start : start + MAX_ROWS]
                inputs = ranker.sample(judged.request(query), [judged.products[item] for item in part])[graph.name]
                feeds = {name: _to_length(array, LENGTHS[-1]) for name, array in inputs.items()}
                scores[query] |= _by_item(part, runner.infer(feeds)["score"][:, 0])
    return scores


def _by_item(candidates: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    return dict(zip(candidates, map(float, scores), strict=True))


def _to_length(array: np.ndarray, length: int) -> np.ndarray:
    """[rows, any] => [rows, length], cut or padded with 0."""
    return np.pad(array[:, :length], [(0, 0), (0, max(0, length - array.shape[1]))])
