"""Host to host by the drop-in's engine, and the bare enqueue, at every shape."""

from __future__ import annotations

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
            results.put(f"{model} {rows}x{length}", found)


def enqueue(engine: Any) -> None:
    """The last run once more, without its copies."""
    engine._context.execute_async_v3(engine._stream)
    engine._cuda.stream_synchronize(engine._stream)


if __name__ == "__main__":
    main()
