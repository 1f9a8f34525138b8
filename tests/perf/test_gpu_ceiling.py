"""The GPU's part of the ceiling on a machine without one: it says what is missing, and gives no figure."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from builders.core.onnx_files import model_sha256
from builders.core.workspace import Workspace
from builders.export.plan_manifest import EngineManifest, write_manifest
from perf.errors import PerfError
from perf.gpu_ceiling import TYPES, gpu_peaks, missing_gpu, onnx_of_plan
from tests.support.small_graphs import masked_attention_model, quantized_model


@pytest.mark.skipif(not missing_gpu(), reason="this machine has a GPU")
def test_without_a_gpu_every_peak_has_a_reason_and_no_figure() -> None:
    found = list(gpu_peaks())
    assert [peak.type for peak in found] == list(TYPES)
    assert all(peak.gops_per_s is None and peak.why.startswith("refused: ") for peak in found)


def test_the_graph_of_a_plan_is_found_by_what_it_was_built_from(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "build", tmp_path / "models", tmp_path / "store")
    (workspace.build / "rankers").mkdir(parents=True)
    for name, model in (("a", masked_attention_model()), ("b", quantized_model())):
        onnx.save(model, workspace.build / "rankers" / f"{name}.onnx")
    source = workspace.build / "rankers" / "b.onnx"
    write_manifest(tmp_path / "model.plan", _manifest(model_sha256(source)))
    assert onnx_of_plan(tmp_path / "model.plan", workspace) == source
    source.unlink()
    with pytest.raises(PerfError, match=r"built from an ONNX file of SHA-256 .*; run 'make export build-engines'"):
        onnx_of_plan(tmp_path / "model.plan", workspace)


def _manifest(onnx_sha256: str) -> EngineManifest:
    return EngineManifest(
        tensorrt="11.4",
        cuda="13.0",
        driver="580",
        compute_capability="9.0",
        gpu="none",
        onnx_sha256=onnx_sha256,
        profiles=[],
        build_seconds=1.0,
        plan_bytes=1,
        options={},
        fallback="",
    )
