"""A plan of the cross-encoder served by the pip-only Triton with the drop-in, on a GPU; `make test-gpu` runs it.

The server's environment needs the packages tensorrt and polygraphy, of the TensorRT that builds the plan here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.grpc import model_config_pb2 as triton

from builders.core.recipe import load_recipes
from builders.data.beir import Product, Request
from builders.engines.build import BuildOptions, engine_from_onnx, missing_reason
from builders.engines.profiles import Profile
from builders.export.onnx import onnx_from_ranker, run_torch
from builders.export.plan_manifest import EngineManifest
from builders.publish import model_config, pbtxt
from builders.publish.tensorrt_config import tensorrt_config
from builders.rankers.base import Graph, Sample
from builders.rankers.load import load_ranker
from perf.analyzer import Measurement, measure
from perf.gpu_figures import Run, latency_of, sized, tensorrt_run
from server import TritonServer
from tests.support.repositories import infer

MODEL, ENSEMBLE = "cross_encoder_fp32_trt", "rank_cross_encoder_fp32_trt"
LENGTHS, MAX_ROWS, USUAL_ROWS = (32, 64), 128, 40
TF32_ATOL, JOINED_ATOL = 2e-2, 2e-2
"""TensorRT's FP32 products round their operands to 10 bits; other kernels run where requests are joined."""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.server,
    pytest.mark.skipif(missing_reason() != "", reason=f"no engine can be built: {missing_reason()}"),
]


@dataclasses.dataclass(frozen=True)
class Served:
    """A running server, and the same plan in this process."""

    graph: Graph
    sample: Sample
    manifest: EngineManifest
    bare: Run
    server: TritonServer
    client: grpc.InferenceServerClient

    def inputs(self, rows: int, length: int) -> Sample:
        return sized(self.graph, self.sample, rows, length)

    def scores(self, inputs: Sample) -> np.ndarray:
        """FP32 [rows, 1], as served."""
        return infer(self.client, MODEL, **inputs).as_numpy("score")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served_plans")
    graph, sample = _graph_and_sample()
    onnx_from_ranker(graph, sample, folder / "model.onnx")
    profiles = [_profile(graph, length) for length in LENGTHS]
    version = folder / "models" / MODEL / "1"
    version.mkdir(parents=True)
    manifest = engine_from_onnx(folder / "model.onnx", version / "model.plan", profiles, BuildOptions())
    config = tensorrt_config(graph, MODEL, profiles, cuda_graphs=False)
    (version.parent / "config.pbtxt").write_text(pbtxt.render(config))
    _write_ensemble(folder / "models", graph, config)
    with (
        TritonServer(folder / "models", [ENSEMBLE], grpc_port=0, http_port=0, metrics_port=0) as server,
        tensorrt_run(version / "model.plan", manifest.profiles) as bare,
    ):
        yield Served(graph, sample, manifest, bare, server, grpc.InferenceServerClient(server.grpc_url))


def _graph_and_sample() -> tuple[Graph, Sample]:
    """The kit's cross-encoder for two lengths, and what it is sent for three items."""
    ranker = load_ranker(load_recipes()["cross_encoder"])
    items = [Product(name, f"{name} steel bottle with a long brush") for name in ("red", "blue", "green")]
    [graph] = ranker.graphs
    sample = ranker.sample(Request("long bottle brush"), items)[graph.name]
    return dataclasses.replace(graph, lengths=LENGTHS, max_batch_size=MAX_ROWS), sample


def _write_ensemble(repository: Path, graph: Graph, config: triton.ModelConfig) -> None:
    """perf_analyzer's requests bring rows of their own only to a model that does not batch, as the kit's endpoints."""
    ensemble = model_config.ensemble_config(dataclasses.replace(graph.contract, name=ENSEMBLE), [(config, 1)])
    (repository / ENSEMBLE / "1").mkdir(parents=True)
    (repository / ENSEMBLE / "config.pbtxt").write_text(pbtxt.render(ensemble))


def _profile(graph: Graph, length: int) -> Profile:
    shapes = ((1, length), (USUAL_ROWS, length), (MAX_ROWS, length))
    return Profile(dict.fromkeys((tensor.name for tensor in graph.contract.inputs), shapes))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rows", [1, 8, USUAL_ROWS, MAX_ROWS])
def test_serves_what_the_plan_computes_in_this_process(served: Served, rows: int, length: int) -> None:
    inputs = served.inputs(rows, length)
    np.testing.assert_allclose(served.scores(inputs), served.bare(inputs)["score"], rtol=1e-5, atol=1e-5)


def test_serves_what_torch_computes(served: Served) -> None:
    inputs = served.inputs(USUAL_ROWS, 32)
    np.testing.assert_allclose(served.scores(inputs), run_torch(served.graph, inputs)["score"], atol=TF32_ATOL)


def test_joined_requests_get_their_own_rows(served: Served) -> None:
    requests = [served.inputs(rows, length) for rows in range(1, 9) for length in LENGTHS]
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(served.scores, requests))
    for inputs, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer, served.bare(inputs)["score"], atol=JOINED_ATOL)


def test_lengths_in_turn_change_the_profile_and_nothing_else(served: Served) -> None:
    wanted = {length: served.bare(served.inputs(3, length))["score"] for length in LENGTHS}
    for length in LENGTHS * 20:
        np.testing.assert_allclose(served.scores(served.inputs(3, length)), wanted[length], rtol=1e-5, atol=1e-5)


def test_the_gpus_memory_does_not_grow_over_requests(served: Served) -> None:
    def used_bytes() -> float:
        return max(float(value) for value in _metric(served.server, "nv_gpu_memory_used_bytes"))

    served.scores(served.inputs(MAX_ROWS, 64))
    before = used_bytes()
    for turn in range(500):
        served.scores(served.inputs(1 + turn % MAX_ROWS, LENGTHS[turn % 2]))
    assert used_bytes() <= before * 1.01


def test_perf_analyzer_drives_the_plan(served: Served, tmp_path: Path) -> None:
    found = _measured(served, tmp_path, concurrency=4)
    assert found.latencies_ms.size > 0
    print(
        f"\n{MODEL} on {served.manifest.gpu}, TensorRT {served.manifest.tensorrt}, {USUAL_ROWS} rows of length 64, 4 "
        f"at once: p50 {np.median(found.latencies_ms):.3f} ms, {found.requests_per_s * USUAL_ROWS:,.0f} candidates/s"
    )


def test_added_latency_over_the_bare_enqueue_is_told(served: Served, tmp_path: Path) -> None:
    """Printed, not asserted: the machine decides."""
    inputs = served.inputs(USUAL_ROWS, 64)
    bare_ms = float(np.median(latency_of(lambda: served.bare(inputs))))
    found = _measured(served, tmp_path, concurrency=1)
    [step] = found.steps
    print(
        f"\n{MODEL} on {served.manifest.gpu}, {USUAL_ROWS} rows of length 64: bare enqueue with its copies p50 "
        f"{bare_ms:.3f} ms; in the drop-in, mean, {step.compute_ms:.3f} ms, added {step.compute_ms - bare_ms:.3f} ms "
        f"(to reach: 0.4); at the client p50 {np.median(found.latencies_ms):.3f} ms"
    )
    assert step.compute_ms > 0


def _measured(served: Served, folder: Path, concurrency: int) -> Measurement:
    requests_file = folder / "requests.json"
    requests_file.write_text(json.dumps(requests_of(served.inputs(USUAL_ROWS, 64))))
    return measure(served.server.grpc_url, ENSEMBLE, requests_file, concurrency=concurrency, window_ms=1000)


def requests_of(inputs: Sample) -> dict[str, Any]:
    """perf_analyzer's input file with one request."""
    tensors = {n: {"content": array.ravel().tolist(), "shape": list(array.shape)} for n, array in inputs.items()}
    return {"data": [tensors]}


def _metric(server: TritonServer, name: str) -> list[str]:
    """The values of a metric, one a GPU."""
    with urlopen(server.metrics_url) as answer:
        lines = answer.read().decode().splitlines()
    return [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{name}{{")]
