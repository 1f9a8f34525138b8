"""In the machine's own Python: ONNX Runtime's scores of every judged list in every precision, on the CPU."""

from __future__ import annotations

import numpy as np
import onnxruntime

from deploy.airgap.stages.common import RESULTS, WORKLOAD, Results, judged, networks


def main() -> None:
    """Scores beside the results, as ``references_<recipe>.npz``."""
    results = Results("references")
    results.put("onnxruntime", onnxruntime.__version__)
    for facts in networks():
        scores = {}
        for precision, file in facts["files"].items():
            with results.part(f"{facts['recipe']} {precision}"):
                session = onnxruntime.InferenceSession(str(WORKLOAD / file), providers=["CPUExecutionProvider"])
                names = [value.name for value in session.get_inputs()]
                parts = [session.run(None, {name: one[name] for name in names})[0][:, 0] for one in judged(facts)]
                scores[precision] = np.concatenate(parts)
        np.savez(RESULTS / f"references_{facts['recipe']}.npz", **scores)
    results.put("done", not any(key.endswith("error") for key in results.found))


if __name__ == "__main__":
    main()
