"""`engine RECIPE PRECISION [again]`: one engine by builders.engines.build_all, with the project's store.

With ``again`` the stored plan is asked for once more, then thrown away and built with the timing cache.
"""

from __future__ import annotations

import shutil
import sys
import time

from builders.engines.build import BuildOptions
from builders.engines.build_all import WantedEngine, build_engines
from builders.engines.store import StoredEngine
from deploy.airgap.stages.common import TACTICS, TARGET, WORKLOAD, Results, graph_of, networks


def main(recipe: str, precision: str, again: bool) -> None:
    """Build, and put down what the manifest says."""
    results = Results("engines")
    results.require_gpu()
    facts = next(one for one in networks() if one["recipe"] == recipe)
    model = f"{facts['graph']}_{precision}_trt"
    file = WORKLOAD / facts["files"][precision]
    wanted = WantedEngine(model, graph_of(facts), file, precision, f"{facts['graph']}_fp32_onnx")  # type: ignore[arg-type]
    with results.part(model):
        seconds, engine = build(wanted)
        manifest = engine.manifest
        results.put(model, {
            "seconds": seconds, "build_seconds": manifest.build_seconds, "bytes": manifest.plan_bytes,
            "layers": dict(manifest.layer_precisions), "gpu": manifest.gpu, "driver": manifest.driver,
            "cuda": manifest.cuda, "tensorrt": manifest.tensorrt, "plan": str(engine.plan),
        })  # fmt: skip
        if again:
            results.put(f"{model} repeated seconds", build(wanted)[0])
            shutil.rmtree(engine.plan.parent)
            results.put(f"{model} with timing cache seconds", build(wanted)[0])


def build(wanted: WantedEngine) -> tuple[float, StoredEngine]:
    """(seconds, the engine)."""
    start_s = time.perf_counter()
    options = BuildOptions(tactic_sources=TACTICS)
    built = build_engines([wanted], TARGET / "engines", require=True, options=options)
    return time.perf_counter() - start_s, built[wanted.model]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "again" in sys.argv[3:])
