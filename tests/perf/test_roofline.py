"""The arithmetic of limits."""

from __future__ import annotations

import pytest

from builders.core.runtimes import ONNX, OPENVINO, TRT
from perf.errors import PerfError
from perf.graph_cost import Cost
from perf.peaks import Bandwidth, Peak
from perf.roofline import Roof, as_multiplied, multiplied_in, roof_of

ROOF = Roof({"fp32": 100.0, "int8": 400.0}, bytes_per_s=10.0)


def peak(runtime: str, type_: str, gops_per_s: float | None, threads: int = 2, computed_in: str | None = None) -> Peak:
    return Peak(
        runtime=runtime,
        type=type_,
        threads=threads,
        computed_in=type_ if computed_in is None else computed_in,
        gops_per_s=gops_per_s,
    )


def memory(threads: int, copy: float, triad: float, device: str = "cpu") -> Bandwidth:
    return Bandwidth(
        device=device,
        threads=threads,
        copy_gb_per_s=copy,
        triad_gb_per_s=triad,
        array_bytes=1,
        runs=1,
        foreign_share=0.0,
    )


PEAKS = [
    *(peak("onnx", "fp32", 150.0), peak("onnx", "fp16", None, computed_in="fp32"), peak("onnx", "int8", 300.0)),
    peak("onnx", "bf16", None, computed_in="").model_copy(update={"why": "refused: no kernel"}),
    *(peak("openvino", "fp32", 160.0), peak("openvino", "bf16", None, computed_in="fp32")),
    *(peak("openvino", "int8", 120.0), peak("onnx", "fp32", 80.0, threads=1), peak("trt", "fp32", 9e4, threads=0)),
]
MEMORY = [memory(1, 9.0, 8.0), memory(2, 10.0, 12.0), memory(0, 3000.0, 3100.0, "cuda")]


def test_below_the_ridge_memory_is_the_limit_and_above_it_the_peak() -> None:
    assert [ROOF.at(intensity, "fp32") for intensity in (1.0, 10.0, 50.0)] == [10.0, 100.0, 100.0]


def test_a_run_takes_its_arithmetic_or_its_bytes_whichever_takes_longer() -> None:
    bound_by_arithmetic = Cost({"fp32": 200.0}, weight_bytes=10.0, tensor_bytes=5.0)
    bound_by_memory = Cost({"fp32": 50.0}, weight_bytes=10.0, tensor_bytes=5.0)
    assert ROOF.least_s([bound_by_arithmetic]) == 2.0
    assert ROOF.least_s([bound_by_memory]) == 1.5
    assert ROOF.least_s([bound_by_arithmetic, bound_by_memory]) == 3.5


def test_types_of_one_run_follow_each_other() -> None:
    assert ROOF.least_s([Cost({"fp32": 100.0, "int8": 800.0}, 0.0, 0.0)]) == 3.0


def test_a_roof_is_the_best_of_all_runtimes_on_the_same_device_and_threads() -> None:
    assert roof_of(OPENVINO, 2, PEAKS, MEMORY) == Roof({"fp32": 160e9, "int8": 300e9}, 12e9)
    assert roof_of(ONNX, 1, PEAKS, MEMORY) == Roof({"fp32": 80e9}, 9e9)
    assert roof_of(TRT, 0, PEAKS, MEMORY) == Roof({"fp32": 9e13}, 3.1e12)
    with pytest.raises(PerfError, match="no bandwidth of 7 threads for onnx"):
        roof_of(ONNX, 7, PEAKS, MEMORY)


def test_the_limit_is_that_of_the_type_that_is_really_multiplied() -> None:
    assert multiplied_in(ONNX, "fp32", "int8", PEAKS) == "int8"
    assert multiplied_in(ONNX, "fp16", "fp16", PEAKS) == "fp32"
    assert multiplied_in(OPENVINO, "bf16", "fp32", PEAKS) == "fp32"  # asked for by a hint, and not there
    assert multiplied_in(OPENVINO, "bf16", "int8", PEAKS) == "int8"
    with pytest.raises(PerfError, match="onnx has no peak of bf16: refused: no kernel; so its variants of bf16"):
        multiplied_in(ONNX, "fp32", "bf16", PEAKS)


def test_work_of_types_that_are_multiplied_alike_is_one() -> None:
    cost = as_multiplied(Cost({"fp16": 3.0, "fp32": 2.0, "int8": 1.0}, 7.0, 5.0), {
        "fp16": "fp32", "fp32": "fp32", "int8": "int8",
    })  # fmt: skip
    assert cost == Cost({"fp32": 5.0, "int8": 1.0}, 7.0, 5.0)
