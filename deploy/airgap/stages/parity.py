"""Every judged list through every plan, by the drop-in's engine and by Polygraphy's runner, against ONNX Runtime's
scores of the same file (references.py): largest difference, NDCG@10, share of lists with the same first ten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from builders.core.cuda_runtime import offer_cuda_runtime
from builders.data.beir import GAINS
from deploy.airgap.stages.common import RESULTS, Results, engines_built, judged, networks, opened, use_drop_in

TOP_K = 10


def main() -> None:
    """Every engine that was built."""
    results = Results("parity")
    results.require_gpu()
    use_drop_in()
    engines = engines_built()
    for facts in networks():
        references = RESULTS / f"references_{facts['recipe']}.npz"
        reference = dict(np.load(references)) if references.is_file() else {}
        for precision in facts["files"]:
            model = f"{facts['graph']}_{precision}_trt"
            if model in engines:
                with results.part(model):
                    check(results, facts, model, Path(engines[model]["plan"]), precision, reference)


def check(
    results: Results, facts: dict[str, Any], model: str, plan: Path, precision: str, reference: dict[str, np.ndarray]
) -> None:
    """Put down how far one engine is from its ONNX file and from FP32's."""
    lists, grades = judged(facts), list(facts["grades"].values())
    with opened(plan) as (engine, profiles, profile_for):
        scores = [next(iter(engine.run(profile_for(one), one).values()))[:, 0] for one in lists]
        last_profile = len(profiles) - 1
    together = np.concatenate(scores)
    np.savez(RESULTS / f"scores_{model}.npz", together)
    found: dict[str, Any] = {"finite": bool(np.isfinite(together).all()), "ndcg": mean_ndcg(grades, scores)}
    for other in sorted({precision, "fp32"} & set(reference)):
        wanted = np.split(reference[other], np.cumsum([len(one) for one in scores])[:-1])
        found[f"largest difference from {other} ONNX"] = float(np.abs(together - reference[other]).max())
        found[f"scores' deviation {other}"] = float(reference[other].std())
        found[f"ndcg of {other} ONNX"] = mean_ndcg(grades, wanted)
        found[f"same first ten as {other} ONNX"] = float(np.mean(list(map(same_order, scores, wanted))))
    results.put(model, found)
    with results.part(f"{model} polygraphy"):
        answer = by_polygraphy(plan, last_profile, lists[0])
        results.put(f"{model} polygraphy", float(np.abs(answer - scores[0]).max()))


def by_polygraphy(plan: Path, profile: int, sample: dict[str, np.ndarray]) -> np.ndarray:
    """float32 [rows], by another runner than the drop-in's."""
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    offer_cuda_runtime()
    with TrtRunner(EngineFromBytes(BytesFromPath(str(plan))), optimization_profile=profile) as runner:
        return np.asarray(next(iter(runner.infer(sample).values())))[:, 0]


def same_order(scores: np.ndarray, wanted: np.ndarray) -> bool:
    """Of the first ten."""
    first, second = (np.argsort(-one, kind="stable")[:TOP_K] for one in (scores, wanted))
    return bool((first == second).all())


def mean_ndcg(grades: Sequence[Sequence[float]], scores: Sequence[np.ndarray]) -> float:
    """NDCG@10 over lists; here by hand, since scikit-learn is not carried."""
    return float(np.mean([_ndcg(one, of_list) for one, of_list in zip(grades, scores, strict=True)]))


def _ndcg(grades: Sequence[float], scores: np.ndarray) -> float:
    gains = np.array([GAINS[int(grade)] for grade in grades])
    discounts = 1 / np.log2(np.arange(2, TOP_K + 2))
    taken = gains[np.argsort(-scores, kind="stable")][:TOP_K]
    best = np.sort(gains)[::-1][:TOP_K]
    return float(taken @ discounts[: len(taken)] / max(best @ discounts[: len(best)], 1e-12))


if __name__ == "__main__":
    main()
