"""The thin layer of the tensorrt drop-in on a FAKE TensorRT and CUDA runtime: which calls it makes, in which order."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support import fake_tensorrt_runtime as fake_tensorrt
from tests.support.fake_gpu import import_drop_in
from tests.support.plans import LENGTHS, ROWS, TENSORS, fake_plan

VERSIONS = ("8.5.3.1", "10.0.1", "10.13.3.9", "11.4.0.106")


@pytest.fixture(params=VERSIONS)
def cuda_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    with monkeypatch.context() as patches:
        yield import_drop_in(patches, "cuda_engine", request.param)


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    return import_drop_in(monkeypatch, "cuda_engine")


def write_plan(folder: Path, text: str) -> Path:
    (folder / "model.plan").write_text(text)
    return folder / "model.plan"


def opened(module: types.ModuleType, folder: Path, **further: object) -> tuple[object, list]:
    """An engine ready to run, and its profiles."""
    engine = module.CudaEngine(write_plan(folder, fake_plan(**further)), 0)
    profiles = [engine.profile(index) for index in range(engine.profile_count)]
    engine.allocate(profiles)
    fake_tensorrt.CUDA.calls.clear()
    return engine, profiles


def tokens(rows: int, length: int) -> dict[str, np.ndarray]:
    return {"tokens": np.arange(rows * length, dtype=np.int32).reshape(rows, length)}


def test_reads_tensors_and_profiles_of_the_plan(cuda_engine: types.ModuleType, tmp_path: Path) -> None:
    engine, profiles = opened(cuda_engine, tmp_path)
    assert [(t.name, t.is_input, t.type, t.shape) for t in engine.tensors] == [
        (name, mode == "INPUT", kind, tuple(shape)) for name, mode, kind, shape in TENSORS
    ]
    assert [profile.inputs["tokens"].optimum for profile in profiles] == [(ROWS[1], length) for length in LENGTHS]


def test_copies_in_enqueues_once_copies_out_and_waits_once(cuda_engine: types.ModuleType, tmp_path: Path) -> None:
    engine, profiles = opened(cuda_engine, tmp_path)
    outputs = engine.run(profiles[-1], tokens(3, 16))
    assert fake_tensorrt.CUDA.calls == ["to device", "enqueue", "to host", "to host", "to host", "synchronize"]
    np.testing.assert_array_equal(outputs["score"], tokens(3, 16)["tokens"].sum(axis=1, keepdims=True))
    assert outputs["rows_in_run"].tolist() == [[3]] * 3
    assert outputs["score"].dtype == np.float32


def test_buffers_are_allocated_once_for_the_largest_profile(cuda_engine: types.ModuleType, tmp_path: Path) -> None:
    engine, profiles = opened(cuda_engine, tmp_path)
    sizes = sorted(block._length_ for block in fake_tensorrt.CUDA.memory.values())
    largest = ROWS[2] * LENGTHS[-1] * 4
    assert sizes == sorted([ROWS[2] * 4] * 6 + [largest] * 2)  # on the device and pinned on the host
    for rows in (8, 1, 5):
        engine.run(profiles[1], tokens(rows, 16))
    assert not [call for call in fake_tensorrt.CUDA.calls if "malloc" in call]


def test_a_profile_is_set_only_when_it_changes(cuda_engine: types.ModuleType, tmp_path: Path) -> None:
    engine, profiles = opened(cuda_engine, tmp_path)
    for index in (0, 0, 1, 1, 0):
        rows = engine.run(profiles[index], tokens(2, LENGTHS[index]))["profile"]
        assert rows.tolist() == [[index]] * 2
    assert [call for call in fake_tensorrt.CUDA.calls if call.startswith("profile")] == [
        *("profile 0", "profile 1", "profile 0")
    ]


def test_outputs_outlive_the_next_run(newest: types.ModuleType, tmp_path: Path) -> None:
    engine, profiles = opened(newest, tmp_path)
    first = engine.run(profiles[0], tokens(1, 8))["score"]
    engine.run(profiles[0], {"tokens": np.zeros((1, 8), np.int32)})
    assert first.tolist() == [[28.0]]


def test_gives_everything_back(cuda_engine: types.ModuleType, tmp_path: Path) -> None:
    engine, _ = opened(cuda_engine, tmp_path)
    engine.free()
    assert fake_tensorrt.CUDA.memory == {}
    assert fake_tensorrt.CUDA.calls == ["destroy stream"]


def test_runs_on_the_gpu_of_the_instance(newest: types.ModuleType, tmp_path: Path) -> None:
    newest.CudaEngine(write_plan(tmp_path, fake_plan()), 1)
    assert fake_tensorrt.CUDA.calls[0] == "device 1"
    with pytest.raises(newest.EngineError, match="cudaSetDevice failed: CUDA Error: 101"):
        newest.CudaEngine(write_plan(tmp_path, fake_plan()), 5)


def test_what_tensorrt_says_of_a_plan_stands_in_the_error(cuda_engine: types.ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        cuda_engine.EngineError, match=r"build it here with 'make build-engines'; TensorRT .* not compatible"
    ):
        cuda_engine.CudaEngine(write_plan(tmp_path, "not a plan"), 0)


def test_the_memory_strategy_is_handed_on_where_tensorrt_has_one(newest: types.ModuleType, tmp_path: Path) -> None:
    newest.CudaEngine(write_plan(tmp_path, fake_plan()), 0, "ON_PROFILE_CHANGE")
    assert "context ON_PROFILE_CHANGE" in fake_tensorrt.CUDA.calls


def test_the_memory_strategy_is_refused_before_tensorrt_10(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = import_drop_in(monkeypatch, "cuda_engine", "8.5.3.1")
    with pytest.raises(old.EngineError, match=r"is ON_PROFILE_CHANGE, TensorRT 8.5.3.1 has STATIC only"):
        old.CudaEngine(write_plan(tmp_path, fake_plan()), 0, "ON_PROFILE_CHANGE")


def test_refuses_an_output_whose_shape_depends_on_values(newest: types.ModuleType, tmp_path: Path) -> None:
    tensors = [*TENSORS[:1], ["score", "OUTPUT", "FLOAT", [-1, -1]]]
    engine = newest.CudaEngine(write_plan(tmp_path, fake_plan(tensors)), 0)
    with pytest.raises(newest.EngineError, match="the shape of score depends on values"):
        engine.allocate([engine.profile(0)])


def test_refuses_shapes_that_do_not_fit_the_buffers(newest: types.ModuleType, tmp_path: Path) -> None:
    engine = newest.CudaEngine(write_plan(tmp_path, fake_plan()), 0)
    small, large = engine.profile(0), engine.profile(1)
    engine.allocate([small])
    with pytest.raises(newest.EngineError, match="do not fit into a buffer"):
        engine.run(large, tokens(8, 16))


def test_an_enqueue_that_tensorrt_refuses_is_an_error(newest: types.ModuleType, tmp_path: Path) -> None:
    engine, profiles = opened(newest, tmp_path)
    with pytest.raises(newest.EngineError, match=r"input 'tokens' was refused with shape \(9, 8\)"):
        engine.run(profiles[0], tokens(9, 8))
