"""Host to host by the drop-in's engine, the bare enqueue, and the same as a CUDA graph, at every shape."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deploy.airgap.stages.common import (
    MS_PER_S,
    Results,
    engines_built,
    latency_ms,
    networks,
    opened,
    shapes_to_measure,
    sized,
    use_drop_in,
)

RELAXED_CAPTURE = 2
"""cudaStreamCaptureModeRelaxed."""


def main() -> None:
    """Every engine that was built."""
    results = Results("latency")
    results.require_gpu()
    use_drop_in()
    engines = engines_built()
    for facts in networks():
        for precision in facts["files"]:
            model = f"{facts['graph']}_{precision}_trt"
            if model in engines:
                with results.part(model):
                    measure(results, facts, model, Path(engines[model]["plan"]))


def measure(results: Results, facts: dict[str, Any], model: str, plan: Path) -> None:
    """Put down one engine's figures."""
    with opened(plan) as (engine, _, profile_for):
        for rows, length in shapes_to_measure(facts):
            inputs = sized(facts, rows, length)
            profile = profile_for(inputs)
            found = latency_ms(lambda inputs=inputs, profile=profile: engine.run(profile, inputs))
            found["enqueue_p50_ms"] = latency_ms(lambda: enqueue(engine))["p50_ms"]
            found["rows_per_s"] = rows / found["p50_ms"] * MS_PER_S
            with results.part(f"{model} {rows}x{length} graph"), captured(engine) as launch:
                found["graph_p50_ms"] = latency_ms(launch)["p50_ms"]
            results.put(f"{model} {rows}x{length}", found)


def enqueue(engine: Any) -> None:
    """The last run once more, without its copies."""
    engine._context.execute_async_v3(engine._stream)
    engine._cuda.stream_synchronize(engine._stream)


@contextlib.contextmanager
def captured(engine: Any) -> Iterator[Callable[[], None]]:
    """The enqueue as one launch of a CUDA graph: what the container's C++ backend does for its graph specifications."""
    stream = ctypes.c_void_p(engine._stream)
    graph, launchable = ctypes.c_void_p(), ctypes.c_void_p()
    engine._call("cudaStreamBeginCapture", stream, ctypes.c_int(RELAXED_CAPTURE))
    try:
        engine._context.execute_async_v3(engine._stream)
    finally:
        engine._call("cudaStreamEndCapture", stream, ctypes.byref(graph))
    engine._call("cudaGraphInstantiate", ctypes.byref(launchable), graph, ctypes.c_ulonglong(0))

    def launch() -> None:
        engine._call("cudaGraphLaunch", launchable, stream)
        engine._cuda.stream_synchronize(engine._stream)

    try:
        yield launch
    finally:
        engine._call("cudaGraphExecDestroy", launchable)
        engine._call("cudaGraphDestroy", graph)


if __name__ == "__main__":
    main()
