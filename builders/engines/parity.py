"""Does a plan compute what its graph says? Torch, ONNX Runtime and TensorRT on real rows, at every profile's shapes.

Polygraphy runs and compares: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/polygraphy/. Ranking quality
is not judged here: that is the gate's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from builders.core.cuda_runtime import offer_cuda_runtime
from builders.engines.build import Precision
from builders.engines.profiles import Profile, Shape
from builders.export.parity import ValueMismatch

if TYPE_CHECKING:
    from builders.rankers.base import Graph, Sample

ENGINE_ATOL: dict[Precision, float] = {"fp32": 2e-2, "fp16": 5e-2, "int8": 2.5e-1, "mixed": 2.5e-1}
"""Between the plan and ONNX Runtime on the plan's own ONNX file. Wide, and set before any GPU has run it: they find a
plan that is wrong, the gate finds one that ranks worse. TF32 and FP16 round to 10 bits, which on a CPU moved the
cross-encoder's scores by up to 0.01; a value at the border between two INT8 steps may fall on either side."""


@dataclasses.dataclass(frozen=True)
class ShapeParity:
    """One profile at one of its shapes; the differences are the largest of any output.

    Attributes:
        from_onnx: TensorRT against ONNX Runtime on the same ONNX file.
        from_torch: TensorRT against the FP32 module; what compression costs is in it.
    """

    profile: int
    shape: str
    from_onnx: float
    from_torch: float


def check_engine(
    graph: Graph, onnx_file: Path, plan: Path, profiles: Sequence[Profile], sample: Sample, precision: Precision
) -> list[ShapeParity]:
    """Run torch, ONNX Runtime and TensorRT at min, opt and max of every profile.

    Args:
        onnx_file: what the plan was built from.
        sample: a real request, input name => array; its rows are repeated or cut to each shape, its padding too.

    Raises:
        ValueMismatch: the plan is further from its ONNX file than ENGINE_ATOL, or a value is NaN or infinite; names
            profiles and shapes, all of them.
    """
    found, faults = [], []
    for place, profile in enumerate(profiles):
        for kind, fitted in samples_of(profile, sample):
            parity, agrees = _compare(graph, onnx_file, plan, place, kind, fitted, ENGINE_ATOL[precision])
            found.append(parity)
            if not agrees:
                faults.append(f"profile {place} at {kind}: {parity.from_onnx:.1e} from ONNX Runtime")
    if faults:
        raise ValueMismatch(
            f"{plan}: wanted at most {ENGINE_ATOL[precision]:.0e}; " + "; ".join(faults) + ". Find the layers with "
            "'python -m builders bisect VARIANT'"
        )
    return found


def samples_of(profile: Profile, sample: Sample) -> Iterator[tuple[str, Sample]]:
    """``min``, ``opt`` and ``max`` with real rows fitted to the shapes."""
    for place, kind in enumerate(("min", "opt", "max")):
        yield kind, {name: _fitted(sample[name], shapes[place]) for name, shapes in profile.shapes.items()}


def _fitted(array: np.ndarray, shape: Shape) -> np.ndarray:
    """Rows repeated in turn or cut; longer sequences padded with 0, which every mask reads as padding."""
    rows = np.resize(array, (shape[0], *array.shape[1:]))
    cut = rows[tuple(slice(0, size) for size in shape)]
    return np.pad(cut, [(0, wanted - found) for wanted, found in zip(shape, cut.shape, strict=True)])


def _compare(
    graph: Graph, onnx_file: Path, plan: Path, place: int, kind: str, sample: Sample, atol: float
) -> tuple[ShapeParity, bool]:
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, SimpleCompareFunc

    from builders.export.onnx import run_torch

    runners = [
        OnnxrtRunner(SessionFromOnnx(str(onnx_file), providers=["CPUExecutionProvider"]), name="onnx"),
        _plan_runner(plan, place),
    ]
    results = Comparator.run(runners, data_loader=[sample])
    outputs = {name: dict(iterations[0].items()) for name, iterations in results.items()}
    of_torch = run_torch(graph, sample)
    agrees = bool(
        Comparator.compare_accuracy(results, compare_func=SimpleCompareFunc(atol=atol, rtol=0.0))
    ) and Comparator.validate(results, check_inf=True, check_nan=True)
    of_plan, of_onnx = outputs[runners[1].name], outputs["onnx"]
    return ShapeParity(place, kind, _largest(of_plan, of_onnx), _largest(of_plan, of_torch)), bool(agrees)


def _plan_runner(plan: Path, profile: int) -> Any:
    """A Polygraphy runner of one profile of a plan; the only part that needs a GPU."""
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    offer_cuda_runtime()
    return TrtRunner(EngineFromBytes(BytesFromPath(str(plan))), name="tensorrt", optimization_profile=profile)


def _largest(found: Sample, wanted: Sample) -> float:
    return max(float(np.max(np.abs(found[name] - array), initial=0.0)) for name, array in wanted.items())
