"""The pip-only Triton serves the plans by backends/tensorrt: scores against this process's, then perf_analyzer.

Without a GPU it still says whether this Triton runs here at all.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from deploy.airgap.stages.common import (
    TARGET,
    Results,
    engines_built,
    networks,
    opened,
    sized,
    use_drop_in,
)
from server import TritonServer
from server.plans import MANIFEST, PLAN, Machine, refusals, visible_gpus
from server.self_test import MODEL
from server.self_test import write_repository as write_self_test

REPOSITORY = TARGET / "models"
CONCURRENCIES = (1, 4, 16)
WINDOW_MS = 1000
CANDIDATES = 40
PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
MOST_MODELS = 2
LOG_END = 1500


def main() -> None:
    """Every batching network that has engines."""
    results = Results("serve")
    shutil.rmtree(REPOSITORY, ignore_errors=True)
    with results.part("server without a plan"):
        server_without_a_plan(results)
    results.require_gpu()
    use_drop_in()
    for facts in networks():
        engines = engines_built()
        models = [f"{facts['graph']}_{precision}_trt" for precision in facts["files"]]
        models = [model for model in models if model in engines and model in facts["served"]][:MOST_MODELS]
        if models:
            shutil.rmtree(REPOSITORY, ignore_errors=True)
            write_repository(facts, models, engines)
            with results.part("manifests"):
                altered_manifest_is_refused(results, models[0])
            with results.part("server"):
                serve(results, facts, models, engines)
    results.put("done", True)


def server_without_a_plan(results: Results) -> None:
    """The server's own self-test model."""
    write_self_test(REPOSITORY)
    with TritonServer(REPOSITORY, [MODEL], **PORTS) as server:
        results.put("server without a plan", f"ready at {server.grpc_url}")


def write_repository(facts: dict[str, Any], models: list[str], engines: dict[str, Any]) -> None:
    """Each plan with its manifest and configuration, and an ensemble that perf_analyzer can send rows to."""
    for model in models:
        version = REPOSITORY / model / "1"
        version.mkdir(parents=True)
        for name in (PLAN, MANIFEST):
            shutil.copy(Path(engines[model]["plan"]).with_name(name), version / name)
        (REPOSITORY / model / "config.pbtxt").write_text(facts["served"][model])
        (REPOSITORY / f"rank_{model}" / "1").mkdir(parents=True)
        (REPOSITORY / f"rank_{model}" / "config.pbtxt").write_text(facts["served"][f"rank_{model}"])


def altered_manifest_is_refused(results: Results, model: str) -> None:
    """The plan as built is taken, one for another GPU is not."""
    path = REPOSITORY / model / "1" / MANIFEST
    kept = path.read_text()
    manifest = json.loads(kept)
    machine = Machine(visible_gpus(), manifest["tensorrt"])
    results.put("plans refused here", [refusal.line for refusal in refusals(REPOSITORY, machine)])
    path.write_text(json.dumps({**manifest, "compute_capability": "1.0"}))
    results.put("altered plan refused", [refusal.line for refusal in refusals(REPOSITORY, machine)])
    path.write_text(kept)


def serve(results: Results, facts: dict[str, Any], models: list[str], engines: dict[str, Any]) -> None:
    """Served scores against the same plan in this process; then load."""
    import tritonclient.grpc as grpc

    inputs = sized(facts, CANDIDATES, facts["lengths"][-1] if facts["lengths"] else 0)
    with TritonServer(REPOSITORY, [f"rank_{model}" for model in models], **PORTS) as server:
        client = grpc.InferenceServerClient(server.grpc_url)
        for model in models:
            served = infer(client, f"rank_{model}", inputs)
            with opened(Path(engines[model]["plan"])) as (engine, _, profile_for):
                bare = engine.run(profile_for(inputs), inputs)["score"]
            results.put(f"{model} served difference", float(np.abs(served - bare).max()))
            load(results, server, model, inputs)
        results.put("log's end", server.log()[-LOG_END:])


def load(results: Results, server: TritonServer, model: str, inputs: dict[str, np.ndarray]) -> None:
    """perf_analyzer, closed loop."""
    from perf.analyzer import measure

    request = {n: {"content": a.ravel().tolist(), "shape": list(a.shape)} for n, a in inputs.items()}
    file = TARGET / "requests.json"
    file.write_text(json.dumps({"data": [request]}))
    for concurrency in CONCURRENCIES:
        key = f"{model} perf_analyzer {concurrency}"
        with results.part(key):
            found = measure(server.grpc_url, f"rank_{model}", file, concurrency=concurrency, window_ms=WINDOW_MS)
            results.put(key, {
                "requests": found.latencies_ms.size,
                "p50_ms": float(np.median(found.latencies_ms)),
                "p99_ms": float(np.percentile(found.latencies_ms, 99)),
                "candidates_per_s": found.requests_per_s * CANDIDATES,
                "steps": [vars(step) for step in found.steps],
            })  # fmt: skip


def infer(client: Any, model: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """float32 [rows, 1]."""
    import tritonclient.grpc as grpc
    from tritonclient.utils import np_to_triton_dtype

    inputs = []
    for name, array in arrays.items():
        inputs.append(grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    found: np.ndarray = client.infer(model, inputs).as_numpy("score")
    return found


if __name__ == "__main__":
    main()
