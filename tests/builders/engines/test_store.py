"""The engine store: what is built again and what is not, two builds at once, and a build that is killed."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import onnx
import pytest

from builders.core.contract import SCORE, Contract, Tensor
from builders.engines import build as build_engine
from builders.engines import build_all as engines
from builders.engines.build import BuildOptions, EngineError, TensorRTMissing
from builders.engines.build_all import WantedEngine, build_engines
from builders.engines.gpu import Gpu
from builders.engines.profiles import Profile
from builders.engines.store import EngineStore, StoredEngine, StoreLocked
from builders.export.plan_manifest import EngineManifest, write_manifest
from builders.rankers.base import Graph
from tests.support.fake_tensorrt_builder import FakeTensorRT
from tests.support.small_graphs import WIDTH, masked_attention_model, quantized_model

ROOT = Path(__file__).parents[3]
GPU = Gpu("a GPU", "9.0", "550.54.15", "12.4")
PROFILES = [Profile({"x": ((1, WIDTH), (40, WIDTH), (64, WIDTH))})]
OPTIONS = BuildOptions()
MANIFEST = EngineManifest("11.4.0.106", "12.4", "550.54.15", "9.0", "a GPU", "ab", [], 1.0, 6, {}, "ranker_fp32_onnx")


def store(folder: Path, tensorrt: str = "11.4.0.106", gpu: Gpu = GPU) -> EngineStore:
    return EngineStore(folder, tensorrt, gpu)


def build(target: Path) -> EngineManifest:
    target.write_bytes(b"a plan")
    write_manifest(target, MANIFEST)
    return MANIFEST


def never(target: Path) -> EngineManifest:
    raise AssertionError(f"{target} was built although it is there")


# ---------------------------------------------------------------- one process
def test_a_plan_is_built_once(tmp_path: Path) -> None:
    assert store(tmp_path).engine("key", build).built
    again = store(tmp_path).engine("key", never)
    assert again == StoredEngine(tmp_path / "key" / "model.plan", again.manifest, built=False)
    assert again.plan.read_bytes() == b"a plan"


def test_the_key_changes_with_all_that_makes_another_plan(tmp_path: Path) -> None:
    other_profiles = [Profile({"x": ((1, WIDTH), (2, WIDTH), (64, WIDTH))})]
    keys = [
        store(tmp_path).key("ab", PROFILES, OPTIONS),
        store(tmp_path).key("cd", PROFILES, OPTIONS),
        store(tmp_path).key("ab", other_profiles, OPTIONS),
        store(tmp_path).key("ab", PROFILES, OPTIONS, fallback="other"),
        store(tmp_path, tensorrt="11.3.0.99").key("ab", PROFILES, OPTIONS),
        store(tmp_path, gpu=dataclasses.replace(GPU, compute_capability="8.9")).key("ab", PROFILES, OPTIONS),
        *(
            store(tmp_path).key("ab", PROFILES, dataclasses.replace(OPTIONS, **{field.name: "other"}))
            for field in dataclasses.fields(OPTIONS)
        ),
    ]
    assert len(set(keys)) == len(keys)


def test_the_key_does_not_change_with_the_driver(tmp_path: Path) -> None:
    updated = dataclasses.replace(GPU, driver="560.1", cuda="12.6")
    assert store(tmp_path).key("ab", PROFILES, OPTIONS) == store(tmp_path, gpu=updated).key("ab", PROFILES, OPTIONS)


def test_each_tensorrt_gpu_and_driver_has_a_timing_cache_of_its_own(tmp_path: Path) -> None:
    caches = {
        store(tmp_path).timing_cache,
        store(tmp_path, tensorrt="11.3.0.99").timing_cache,
        store(tmp_path, gpu=dataclasses.replace(GPU, name="NVIDIA H100/80GB")).timing_cache,
        store(tmp_path, gpu=dataclasses.replace(GPU, driver="")).timing_cache,
    }
    assert len(caches) == 4
    assert {cache.parent for cache in caches} == {tmp_path / "timing"}


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(target: Path) -> EngineManifest:
        target.write_bytes(b"half a pl")
        raise EngineError("no memory")

    with pytest.raises(EngineError):
        store(tmp_path).engine("key", fail)
    assert list(tmp_path.iterdir()) == []
    assert store(tmp_path).engine("key", build).built


# ---------------------------------------------------------------- two processes
def run(folder: Path, code: str) -> subprocess.Popen[str]:
    """Another process in which ``store`` is the store of ``folder``; it says what it prints, line by line."""
    head = f"""
        import sys
        from pathlib import Path
        from builders.engines.store import EngineStore
        from builders.engines.gpu import Gpu
        store = EngineStore(Path({str(folder)!r}), "11.4.0.106", Gpu("a GPU", "9.0", "1.2", "12.4"))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


HALF_BUILT = """
    def build(target):
        target.write_bytes(b"half a pl")
        print("half", flush=True)
        sys.stdin.readline()
    with store.locked():
        store.engine("key", build)
"""


def test_a_second_build_waits_for_the_first(tmp_path: Path) -> None:
    holder = run(tmp_path, "with store.locked():\n    print('locked', flush=True)\n    sys.stdin.readline()\n")
    try:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(StoreLocked, match="another process"), store(tmp_path).locked(timeout_s=0):
            pass
        holder.stdin.write("\n")
        holder.stdin.flush()
        with store(tmp_path).locked(timeout_s=60):
            assert store(tmp_path).engine("key", build).built
    finally:
        holder.kill()
        holder.wait()


def test_a_killed_build_leaves_no_half_plan_and_no_lock(tmp_path: Path) -> None:
    killed = run(tmp_path, HALF_BUILT)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "half\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "key").exists()
    with store(tmp_path).locked(timeout_s=0):
        assert store(tmp_path).engine("key", build).built
    assert [path.read_bytes() for path in tmp_path.rglob("model.plan")] == [b"a plan"]


# ---------------------------------------------------------------- many engines
@pytest.fixture
def fake_tensorrt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """A fake TensorRT and GPU, as the engines' builder meets them."""
    module = FakeTensorRT("tensorrt_11_4")
    module.engine_information = json.dumps({"Layers": [{"Outputs": [{"DataType": "Int8"}, {"DataType": "Float"}]}]})
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(build_engine, "missing_reason", lambda: "")
    monkeypatch.setattr(engines, "visible_gpu", lambda: GPU)
    return module


def wanted(folder: Path) -> list[WantedEngine]:
    contract = Contract("ranker", (Tensor("x", "FP32", ("rows", WIDTH), "features", "per_candidate"),), (SCORE,))
    graph = Graph("ranker", None, contract, True, 64)  # type: ignore[arg-type]
    onnx.save(quantized_model(), folder / "int8.onnx")
    onnx.save(masked_attention_model(), folder / "fp32.onnx")
    return [
        WantedEngine("ranker_int8_trt", graph, folder / "int8.onnx", "int8", "ranker_int8_onnx"),
        WantedEngine("ranker_fp32_trt", graph, folder / "fp32.onnx", "fp32", "ranker_fp32_onnx"),
    ]


def test_a_second_run_builds_nothing(fake_tensorrt: FakeTensorRT, tmp_path: Path) -> None:
    said: list[str] = []
    first = build_engines(wanted(tmp_path), tmp_path / "engines", said.append)
    built = len(fake_tensorrt.of("build_serialized_network"))
    second = build_engines(wanted(tmp_path), tmp_path / "engines", said.append)
    assert (built, len(fake_tensorrt.of("build_serialized_network"))) == (2, 2)
    assert {model: engine.plan for model, engine in first.items()} == {name: e.plan for name, e in second.items()}
    assert [line.split(" in ")[0] for line in said[:2]] == ["ranker_fp32_trt: built", "ranker_int8_trt: built"]
    assert all("as built before for a GPU, TensorRT 11.4.0.106" in line for line in said[2:])


def test_an_engine_that_cannot_be_built_is_named_after_the_others_are_built(
    fake_tensorrt: FakeTensorRT, tmp_path: Path
) -> None:
    fake_tensorrt.engine_information = json.dumps({"Layers": [{"Outputs": [{"DataType": "Float"}]}]})
    with pytest.raises(
        EngineError, match=r"1 of 2 engines not built: ranker_int8_trt: .*no layer reads or writes INT8"
    ):
        build_engines(wanted(tmp_path), tmp_path / "engines", lambda line: None)
    assert len(list((tmp_path / "engines").rglob("model.plan"))) == 1


def test_a_graph_that_this_tensorrt_does_not_read_is_skipped_unless_required(
    fake_tensorrt: FakeTensorRT, tmp_path: Path
) -> None:
    engines_wanted = wanted(tmp_path)
    model = masked_attention_model()
    model.opset_import[0].version = 26
    onnx.save(model, tmp_path / "fp32.onnx")
    said: list[str] = []
    assert list(build_engines(engines_wanted, tmp_path / "engines", said.append)) == ["ranker_int8_trt"]
    assert "ranker_fp32_trt: not built, " in said[0]
    with pytest.raises(EngineError, match="TensorRT 11 reads opset up to 24"):
        build_engines(engines_wanted, tmp_path / "engines", said.append, require=True)


def test_a_machine_without_tensorrt_succeeds_unless_required(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build_engine, "missing_reason", lambda: "package 'tensorrt' is not installed here")
    said: list[str] = []
    assert build_engines(wanted(tmp_path), tmp_path / "engines", said.append) == {}
    assert said[0].startswith("TensorRT engines skipped (ranker_int8_trt, ranker_fp32_trt): package 'tensorrt'")
    assert not (tmp_path / "engines").exists()
    with pytest.raises(TensorRTMissing):
        build_engines(wanted(tmp_path), tmp_path / "engines", said.append, require=True)
