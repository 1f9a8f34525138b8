"""Comparing a plan with its graph. ONNX Runtime stands in for TensorRT here, as a fake: this machine has no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from builders.core.contract import Contract, Tensor
from builders.engines import parity as engine_parity
from builders.engines.parity import check_engine, samples_of
from builders.engines.profiles import Profile
from builders.export.onnx import onnx_from_ranker
from builders.export.parity import ValueMismatch
from builders.rankers.base import Graph, Sample

SAMPLE: Sample = {
    "ids": np.arange(12, dtype=np.int32).reshape(3, 4),
    "mask": np.ones((3, 4), dtype=np.int32),
}
PROFILES = [Profile(dict.fromkeys(SAMPLE, ((1, length), (2, length), (5, length)))) for length in (3, 8)]


class Pooled(torch.nn.Module):
    """ids, mask int32 [rows, length] => score float32 [rows, 1]: mean embedding of the unmasked, one product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.last = torch.nn.Embedding(12, 4), torch.nn.Linear(4, 1)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = mask.float().unsqueeze(-1)
        return self.last((self.table(ids) * weights).sum(1) / weights.sum(1))


@pytest.fixture(scope="module")
def graph() -> Graph:
    inputs = tuple(Tensor(name, "INT32", ("rows", "length"), "tokens", "per_candidate") for name in SAMPLE)
    score = Tensor("score", "FP32", ("rows", 1), "higher is better", "per_candidate")
    return Graph("pooled", Pooled().eval(), Contract("pooled", inputs, (score,)), True, 64, (3, 8))


@pytest.fixture(scope="module")
def onnx_file(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parity") / "pooled.onnx"
    onnx_from_ranker(graph, SAMPLE, path)
    return path


@pytest.fixture(autouse=True)
def onnx_runtime_in_place_of_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    monkeypatch.setattr(
        engine_parity, "_plan_runner", lambda plan, profile: OnnxrtRunner(SessionFromOnnx(str(plan)), name="fake")
    )


def test_real_rows_are_repeated_cut_and_padded_to_each_shape() -> None:
    fitted = dict(samples_of(PROFILES[1], SAMPLE))
    assert {kind: sample["ids"].shape for kind, sample in fitted.items()} == {
        "min": (1, 8),
        "opt": (2, 8),
        "max": (5, 8),
    }
    np.testing.assert_array_equal(fitted["max"]["ids"][3], [0, 1, 2, 3, 0, 0, 0, 0])
    np.testing.assert_array_equal(fitted["max"]["mask"].sum(1), [4] * 5)
    np.testing.assert_array_equal(dict(samples_of(PROFILES[0], SAMPLE))["min"]["ids"], [[0, 1, 2]])


def test_every_profile_is_compared_at_its_three_shapes(graph: Graph, onnx_file: Path) -> None:
    found = check_engine(graph, onnx_file, onnx_file, PROFILES, SAMPLE, "fp32")
    assert [(one.profile, one.shape) for one in found] == [(p, kind) for p in (0, 1) for kind in ("min", "opt", "max")]
    assert max(one.from_onnx for one in found) == 0
    assert max(one.from_torch for one in found) < 1e-5


def test_a_plan_that_computes_something_else_is_refused_with_profiles_and_shapes(
    graph: Graph, onnx_file: Path, tmp_path: Path
) -> None:
    model = onnx.load(onnx_file)
    for one in model.graph.initializer:
        if "last.bias" in one.name:
            one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one) + 1, one.name))
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ValueMismatch, match=r"profile 0 at min: 1\.0e\+00 from ONNX Runtime;.*profile 1 at max"):
        check_engine(graph, onnx_file, tmp_path / "other.onnx", PROFILES, SAMPLE, "fp32")


def test_a_plan_that_gives_no_number_is_refused(graph: Graph, onnx_file: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_file)
    for one in model.graph.initializer:
        if "last.bias" in one.name:
            one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one) * np.float32("nan"), one.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(ValueMismatch, match="profile 0 at min"):
        check_engine(graph, onnx_file, tmp_path / "nan.onnx", PROFILES, SAMPLE, "fp16")
