"""What every stage needs: where things are, results as JSON, real rows of any number, and whether there is a GPU."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from builders.core.contract import Contract
from builders.engines.gpu import GpuMissing, visible_gpu

TARGET = Path(os.environ["AIRGAP_TARGET"])
PROJECT = Path(os.environ["AIRGAP_PROJECT"])
WORKLOAD, RESULTS = TARGET / "workload", TARGET / "results"
ROWS = (1, 8, 40, 128, 512)
WARM_UP_RUNS, LEAST_RUNS, SECONDS_PER_POINT = 5, 20, 0.25
MS_PER_S = 1e3
TACTICS = ("CUBLAS", "CUBLAS_LT", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
"""TensorRT 8's own choice without cuDNN, of which the kit has a stub alone."""
NO_GPU = 3
"""Exit code of a stage that needs a GPU and has none."""


class Results:
    """A JSON file of a stage, written anew at each change: what was found before a stage is stopped stays."""

    def __init__(self, stage: str) -> None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        self._path = RESULTS / f"{stage}.json"
        self.found: dict[str, Any] = json.loads(self._path.read_text()) if self._path.is_file() else {}

    def put(self, key: str, value: Any) -> None:
        """Add or replace one finding."""
        self.found[key] = value
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(self.found, indent=1, default=float))
        fresh.rename(self._path)
        print(key, json.dumps(value, default=float)[:400], flush=True)

    @contextlib.contextmanager
    def part(self, key: str) -> Iterator[None]:
        """An error of one part is noted under its name, and the next one runs."""
        start_s = time.perf_counter()
        try:
            yield
        except Exception as error:  # every library has exceptions of its own
            self.put(f"{key} error", f"{type(error).__name__}: {str(error)[:1500]}")
        self.put(f"{key} seconds", round(time.perf_counter() - start_s, 2))

    def require_gpu(self) -> None:
        """End the stage, saying so, where there is no GPU. Raises: SystemExit with NO_GPU."""
        try:
            self.put("gpu", vars(visible_gpu()))
        except GpuMissing as error:
            self.put("no GPU", str(error))
            sys.exit(NO_GPU)


# ---------------------------------------------------------------- the project's drop-in backend
def use_drop_in() -> None:
    """Make the modules of backends/tensorrt importable, as Triton's stub does."""
    sys.path[1:1] = [str(PROJECT / "backends/tensorrt"), str(PROJECT / "backends/common")]
    utilities = types.SimpleNamespace(TritonModelException=RuntimeError)
    sys.modules["triton_python_backend_utils"] = utilities  # type: ignore[assignment]
    if "bool" not in vars(np):
        np.bool = bool  # type: ignore[misc]  # TensorRT 8.5 asks for it


@contextlib.contextmanager
def opened(plan: Path) -> Iterator[tuple[Any, list[Any], Callable[[Mapping[str, np.ndarray]], Any]]]:
    """(the drop-in's engine, its profiles, inputs => the profile that takes them); call :func:`use_drop_in` before."""
    from cuda_engine import CudaEngine
    from profiles import choose_profile

    engine = CudaEngine(plan, 0)
    profiles = [engine.profile(index) for index in range(engine.profile_count)]
    engine.allocate(profiles)
    try:
        yield engine, profiles, lambda inputs: choose_profile(profiles, {n: a.shape for n, a in inputs.items()})
    finally:
        engine.free()


def engines_built() -> dict[str, Any]:
    """Model => what the stage ``engine`` found of it; empty before."""
    path = RESULTS / "engines.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {model: facts for model, facts in found.items() if isinstance(facts, dict) and "plan" in facts}


# ---------------------------------------------------------------- the workload
def networks() -> list[dict[str, Any]]:
    """The facts that deploy/airgap/workload.py has written."""
    found: list[dict[str, Any]] = json.loads((WORKLOAD / "workload.json").read_text())
    return found


def graph_of(facts: Mapping[str, Any], module: Any = None) -> Any:
    """As :class:`builders.rankers.base.Graph`, without torch."""
    return types.SimpleNamespace(
        name=facts["graph"],
        module=module,
        contract=Contract.from_json(json.dumps(facts["contract"])),
        batches=facts["batches"],
        max_batch_size=facts["max_batch_size"],
        lengths=tuple(facts["lengths"]),
        keep_fp32=False,
    )


def judged(facts: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
    """One sample a judged query."""
    arrays = dict(np.load(WORKLOAD / f"{facts['recipe']}.npz"))
    names = [tensor["name"] for tensor in facts["contract"]["inputs"]]
    if not facts["batches"]:
        return [{name: arrays[f"{number}/{name}"] for name in names} for number in range(len(facts["grades"]))]
    counts = arrays["rows_of_query"]
    return [
        {name: arrays[name][end - rows : end] for name in names}
        for rows, end in zip(counts, np.cumsum(counts), strict=True)
    ]


def sized(facts: Mapping[str, Any], rows: int, length: int) -> dict[str, np.ndarray]:
    """Real rows, repeated in turn, cut to ``length`` where there are lengths; of a graph that does not batch, ``rows``
    candidates of one request."""
    if not facts["batches"]:
        first = judged(facts)[0]
        return {tensor["name"]: _repeated(first[tensor["name"]], tensor["dims"], rows)
                for tensor in facts["contract"]["inputs"]}  # fmt: skip
    lists = judged(facts)
    found = {}
    for name in lists[0]:
        array = np.concatenate([one[name] for one in lists])
        array = np.take(array, np.arange(rows) % len(array), axis=0)
        found[name] = np.ascontiguousarray(array[:, :length] if length else array)
    return found


def _repeated(array: np.ndarray, dims: list[int | str], rows: int) -> np.ndarray:
    for axis, dim in enumerate(dims):
        if dim == "candidates":
            array = np.take(array, np.arange(rows) % array.shape[axis], axis=axis)
    return np.ascontiguousarray(array)


def shapes_to_measure(facts: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(rows, length); length 0 of a graph without lengths."""
    return [(rows, length) for length in facts["lengths"] or (0,) for rows in ROWS]


def latency_ms(run: Callable[[], object]) -> dict[str, float]:
    """Host to host, after a warm-up: p50 and p99 in milliseconds of at least LEAST_RUNS runs."""
    for _ in range(WARM_UP_RUNS):
        run()
    taken: list[float] = []
    end_s = time.perf_counter() + SECONDS_PER_POINT
    while len(taken) < LEAST_RUNS or time.perf_counter() < end_s:
        start_s = time.perf_counter()
        run()
        taken.append((time.perf_counter() - start_s) * MS_PER_S)
    p50, p99 = np.percentile(taken, (50, 99))
    return {"p50_ms": float(p50), "p99_ms": float(p99), "runs": len(taken)}
