"""The GPU report without a GPU: what it refuses, its arithmetic, and the columns that a CPU has too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from builders.core.contract import Contract, Tensor
from builders.core.workspace import Workspace
from builders.rankers.base import Graph, Sample
from perf import gpu_report
from perf.errors import PerfError
from perf.gpu_figures import (
    LEAST_RUNS,
    Latency,
    flops_of,
    latency_of,
    matmul_flops,
    measured_peak,
    profile_for,
    rows_of,
    sized,
    torch_run,
)
from perf.gpu_report import (
    COMPILED,
    EAGER,
    FP16,
    INT8,
    BuildTimes,
    Engine,
    Gpu,
    GpuReport,
    TestRun,
    check_machine,
    figures_to_reach,
    network_latencies,
    read_test_run,
    render_gpu_report,
    write_gpu_report,
)
from tests.support.figures import perf_report
from tests.support.onnx_models import save, tensor

CONTRACT = Contract(
    "scorer",
    (Tensor("features", "FP32", ("rows", 4), ""), Tensor("mask", "INT32", ("rows", "length"), "")),
    (Tensor("score", "FP32", ("rows", 1), ""),),
)
STATE = dict.fromkeys(gpu_report.GPU_FIELDS, "1") | {"name": "a made-up GPU", "clocks.sm": "1980"}


ONE_REQUEST = Contract(
    "scorer",
    (Tensor("features", "FP32", ("candidates", 4), ""), Tensor("mask", "INT32", (1, 3), "")),
    (Tensor("score", "FP32", ("candidates", 1), ""),),
)


class Scorer(nn.Module):
    """features float32 [rows, 4], mask int32 [rows, length] => float32 [rows, 1]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1, bias=False)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(features) * mask.to(features.dtype).mean(dim=1, keepdim=True)


GRAPH = Graph("scorer", Scorer().eval(), CONTRACT, batches=True, max_batch_size=8, lengths=(8, 16, 24))
SAMPLE: Sample = {
    "features": np.arange(12, dtype=np.float32).reshape(3, 4),
    "mask": np.array([[1, 1, 0]] * 3, np.int32),
}


def latency(column: str, p50_ms: float, rows: int = 40, length: int = 64) -> Latency:
    return Latency("scorer", column, rows, length, 30, p50_ms, 2 * p50_ms, 8e9)


def report(**fields: object) -> GpuReport:
    """Figures that no GPU gave, with every part."""
    latencies = [
        *(latency(EAGER, 3.0), latency(COMPILED, 1.5), latency(FP16, 1.0)),
        *(latency(FP16, 4.0, rows=512), latency(INT8, 5.0, rows=512)),
    ]
    manifest = {"tensorrt": "11.4", "build_seconds": 61.5, "plan_bytes": 2**20, "profiles": [{}], "options": {}}
    whole = GpuReport(
        Gpu(STATE, STATE | {"clocks.sm": "1410"}, "13.0", {"torch": "2.13.0"}),
        [Engine("scorer_fp16_trt", Path("model.plan"), manifest)],
        BuildTimes(100.0, 20.0, 6.0),
        TestRun(12, 1, ["tests.gpu::test_order"]),
        8e14,
        latencies,
        perf_report(),
        ["latencies: PerfError: no plan"],
    )
    return dataclasses.replace(whole, **fields)  # type: ignore[arg-type]


# ---------------------------------------------------------------- a machine without a GPU
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_says_all_that_is_missing_and_measures_nothing(tmp_path: Path) -> None:
    with pytest.raises(PerfError, match=r"sees no CUDA GPU; .*Run 'make gpu-report' on a machine with an NVIDIA GPU"):
        gpu_report.run_gpu_report(Workspace(tmp_path / "build", tmp_path / "models", tmp_path / "items"))
    assert not (tmp_path / "build").exists()


def test_each_missing_piece_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_report, "gpu_state", lambda: STATE)
    monkeypatch.setattr(gpu_report, "_installed", lambda name: name != "tensorrt")
    with pytest.raises(PerfError, match=r"on this machine: package tensorrt is not installed. Run"):
        check_machine()
    monkeypatch.setattr(gpu_report, "_installed", lambda name: True)
    check_machine()


def test_a_part_that_fails_leaves_its_reason_and_the_others_in_peace() -> None:
    failures: list[str] = []

    def fails() -> None:
        raise PerfError("no plan\nand a long trace")

    said: list[str] = []
    assert gpu_report._part("latencies", failures, lambda text, **_: said.append(text), fails) is None
    assert failures == ["latencies: PerfError: no plan"]
    assert gpu_report._part("builds", failures, lambda text, **_: said.append(text), lambda: 7) == 7


# ---------------------------------------------------------------- arithmetic
def test_the_rate_is_rows_over_the_median() -> None:
    assert latency(FP16, 2.0, rows=40).candidates_per_s == 20_000


def test_the_share_of_the_peak_is_work_over_time_over_peak() -> None:
    assert latency(FP16, 1.0).share_of(8e14) == pytest.approx(0.01)  # 8 GFLOP in 1 ms is 8 TFLOP/s
    assert matmul_flops(10) == 2000


def test_flops_are_those_of_the_matrix_products() -> None:
    assert flops_of(GRAPH, sized(GRAPH, SAMPLE, 5, 8)) == 2 * 5 * 4


def test_the_peak_is_measured_on_the_device_at_hand() -> None:
    assert measured_peak("cpu", torch.float32, size=32) > 0


def test_a_latency_is_of_enough_runs() -> None:
    assert latency_of(lambda: None, seconds=0).size == LEAST_RUNS


def test_a_sample_is_repeated_and_cut_to_any_shape() -> None:
    tensors = sized(GRAPH, SAMPLE, 5, 8)
    assert tensors["features"].shape == (5, 4)
    np.testing.assert_array_equal(tensors["features"][3:], SAMPLE["features"][:2])
    assert tensors["mask"][0].tolist() == [1, 1, 0, 1, 1, 0, 1, 1]
    assert sized(GRAPH, SAMPLE, 1, 0)["mask"].shape == (1, 3)


def test_a_graph_that_does_not_batch_is_given_as_many_candidates_and_its_request_once() -> None:
    graph = dataclasses.replace(GRAPH, contract=ONE_REQUEST, batches=False, max_batch_size=0, lengths=())
    tensors = sized(graph, SAMPLE | {"mask": SAMPLE["mask"][:1]}, 5, 0)
    assert {name: array.shape for name, array in tensors.items()} == {"features": (5, 4), "mask": (1, 3)}
    assert list(rows_of(graph, (1, 40, 512))) == [1, 40, 512]


def test_a_graph_without_rows_and_candidates_has_one_shape() -> None:
    alone = dataclasses.replace(ONE_REQUEST, inputs=ONE_REQUEST.inputs[1:])
    graph = dataclasses.replace(GRAPH, contract=alone, batches=False, max_batch_size=0, lengths=())
    assert list(rows_of(graph, (1, 40, 512))) == [1]


def test_the_profile_is_the_first_that_takes_the_shapes() -> None:
    profiles = [{"mask": {"min": [1, n], "opt": [8, n], "max": [64, n]}} for n in (8, 16)]
    assert profile_for(profiles, sized(GRAPH, SAMPLE, 64, 16)) == 1
    with pytest.raises(PerfError, match=r"no profile of the plan takes mask \[65, 16\]"):
        profile_for(profiles, sized(GRAPH, SAMPLE, 65, 16))


def test_limits_are_held_against_the_shapes_that_they_are_for() -> None:
    found = {one.name: (round(one.value, 2), one.passed) for one in figures_to_reach(report())}
    assert found == {
        "repeated build of every engine": (6.0, False),
        "build with timing cache over without": (0.2, True),
        f"{FP16} over {EAGER}": (3.0, True),
        f"{FP16} over {COMPILED}": (1.5, True),
        f"{INT8} over {FP16}": (0.8, False),
    }
    assert figures_to_reach(report(builds=None, latencies=[])) == []


def test_the_results_of_the_gpu_tests_are_counted() -> None:
    results = """<testsuites><testsuite>
        <testcase classname="tests.gpu.a" name="one"/><testcase classname="tests.gpu.a" name="two"><skipped/></testcase>
        <testcase classname="tests.gpu.b" name="three"><failure/></testcase>
        <testcase classname="tests.gpu.b" name="four"><error/></testcase></testsuite></testsuites>"""
    assert read_test_run(results) == TestRun(1, 1, ["tests.gpu.b::three", "tests.gpu.b::four"])


def test_a_store_that_was_set_aside_comes_back_when_a_build_fails(tmp_path: Path) -> None:
    (tmp_path / "engines" / "plan").mkdir(parents=True)
    with pytest.raises(PerfError), gpu_report._emptied(tmp_path / "engines") as store:
        store.mkdir()
        raise PerfError
    assert (tmp_path / "engines" / "plan").is_dir()
    with gpu_report._emptied(tmp_path / "engines") as store:
        (store / "new").mkdir(parents=True)
    assert [path.name for path in (tmp_path / "engines").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["engines"]


# ---------------------------------------------------------------- the columns that a CPU has
@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network by hand: torch's exporter takes seconds."""
    path = tmp_path_factory.mktemp("onnx") / "scorer_fp32_onnx.onnx"
    weight = numpy_helper.from_array(GRAPH.module.layer.weight.detach().numpy().T, "weight")
    nodes = [
        helper.make_node("MatMul", ["features", "weight"], ["product"]),
        helper.make_node("Cast", ["mask"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["product", "mean"], ["score"]),
    ]
    inputs = [
        tensor("features", TensorProto.FLOAT, ["rows", 4]),
        tensor("mask", TensorProto.INT32, ["rows", "length"]),
    ]
    save(helper.make_graph(nodes, "scorer", inputs, [tensor("score", TensorProto.FLOAT, ["rows", 1])], [weight]), path)
    return path


def test_torch_and_onnx_runtime_are_measured_at_every_shape(onnx_file: Path) -> None:
    found, failures = network_latencies(GRAPH, SAMPLE, onnx_file, [], "cpu", rows=(1, 40), lengths=(8, 16, 64))
    assert failures == []
    assert [(one.column, one.rows, one.length) for one in found] == [
        (column, rows, length)
        for column in ("torch eager fp32", "ONNX Runtime fp32 (CPU)")
        for length in (8, 16)
        for rows in (1, 40)
    ]
    assert all(0 < one.p50_ms <= one.p99_ms for one in found)


def test_a_graph_that_does_not_batch_is_measured_at_every_number_of_candidates(onnx_file: Path) -> None:
    graph = dataclasses.replace(GRAPH, contract=ONE_REQUEST, batches=False, max_batch_size=0, lengths=())
    sample = SAMPLE | {"mask": SAMPLE["mask"][:1]}
    found, failures = network_latencies(graph, sample, onnx_file, [], "cpu", rows=(1, 8, 40))
    assert failures == []
    assert [(one.rows, one.length, one.flops) for one in found] == [(n, 0, 8.0 * n) for n in (1, 8, 40)] * 2


def test_a_runtime_that_is_not_there_is_told_once_and_the_others_are_measured(onnx_file: Path, tmp_path: Path) -> None:
    engine = Engine("scorer_int8_trt", tmp_path / "model.plan", {"profiles": []})
    found, failures = network_latencies(GRAPH, SAMPLE, onnx_file, [engine], "cpu", rows=(1,), lengths=(8,))
    assert len(found) == 2
    [failure] = failures
    assert failure.startswith("scorer, TensorRT int8: ")


def test_a_network_in_half_precision_still_takes_and_gives_fp32() -> None:
    sample = sized(GRAPH, SAMPLE, 3, 8)
    half, whole = torch_run(GRAPH, "cpu", half=True)(sample), torch_run(GRAPH, "cpu")(sample)
    assert half["score"].dtype == np.float32
    np.testing.assert_allclose(half["score"], whole["score"], rtol=1e-2)
    assert GRAPH.module.layer.weight.dtype == torch.float32


def test_half_precision_takes_what_a_network_makes_in_fp32_itself() -> None:
    """As the mask that a text ranker makes of its tokens, and the indicators of dcn_v2's fields."""

    class Masked(Scorer):
        def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            known = (features != 0).float()
            return super().forward(known, mask)

    graph = dataclasses.replace(GRAPH, module=Masked().eval())
    sample = sized(GRAPH, SAMPLE, 3, 8)
    half, whole = torch_run(graph, "cpu", half=True)(sample), torch_run(graph, "cpu")(sample)
    np.testing.assert_allclose(half["score"], whole["score"], rtol=1e-2)


# ---------------------------------------------------------------- what is written
def test_every_figure_stands_in_the_report() -> None:
    text = render_gpu_report(report())
    for wanted in (
        *("a made-up GPU", "| clocks.sm | 1980 | 1410 |", "torch 2.13.0", "latencies: PerfError: no plan"),
        *("| TensorRT fp16 over torch eager fp16 (scorer, 40 rows of length 64) | 3.00 x | at least 2.0 | reached |",),
        *("| repeated build of every engine | 6.00 s | at most 5.0 | **missed** |", "20.0 s with it"),
        *("| scorer_fp16_trt | 11.4 | 61.5 | 1.0 | 1 |", "12 passed, 1 failed, 1 skipped", "tests.gpu::test_order"),
        *("800 TFLOP/s", "| TensorRT fp16 | 40 | 64 | 30 | 1.000 | 2.000 | 40,000 | 1.0 % |"),
        "| rank | 1 at once | 50 | 41 | 61.50 |",
    ):
        assert wanted in text


def test_a_report_of_nothing_says_so() -> None:
    text = render_gpu_report(
        report(engines=[], builds=None, tests=None, peak_flops_per_s=None, latencies=[], served=None, failures=[])
    )
    assert "none could be measured" in text
    assert "Not run." in text
    assert "## Not measured" not in text


def test_is_written_as_json_and_as_text(tmp_path: Path) -> None:
    figures, text = write_gpu_report(report(), Workspace(tmp_path / "build", tmp_path / "models", tmp_path / "items"))
    written = json.loads(figures.read_text())
    assert written["gpu"]["before"]["name"] == "a made-up GPU"
    assert written["latencies"][0]["p50_ms"] == 3.0
    assert text.read_text().startswith("# GPU report")
