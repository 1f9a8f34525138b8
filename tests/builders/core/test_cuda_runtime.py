"""Where Polygraphy is told to find the CUDA runtime; no GPU, and no runtime is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builders.core import cuda_runtime
from builders.core.cuda_runtime import CudaRuntimeMissing, offer_cuda_runtime


@pytest.fixture(autouse=True)
def nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "")


def runtime(folder: Path, name: str = "libcudart.so.12") -> Path:
    folder.mkdir(parents=True)
    (folder / name).touch()
    return folder


def test_the_folder_of_the_package_is_where_polygraphy_looks_next(tmp_path: Path) -> None:
    from polygraphy.cuda.cuda import _find_cuda_lib_dirs

    folder = runtime(tmp_path / "nvidia" / "cuda_runtime" / "lib")
    assert offer_cuda_runtime([tmp_path], system=[]) == folder
    assert str(folder) in _find_cuda_lib_dirs()


def test_of_two_runtimes_the_older_is_taken_since_any_driver_runs_it(tmp_path: Path) -> None:
    runtime(tmp_path / "nvidia" / "cu13" / "lib", "libcudart.so.13")
    older = runtime(tmp_path / "nvidia" / "cuda_runtime" / "lib")
    assert offer_cuda_runtime([tmp_path], system=[]) == older


@pytest.mark.parametrize("named", [True, False])
def test_what_polygraphy_finds_by_itself_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    own = runtime(tmp_path / "cuda", "libcudart.so")
    runtime(tmp_path / "packages" / "nvidia" / "cuda_runtime" / "lib")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(own) if named else "")
    before = os.environ["LD_LIBRARY_PATH"]
    assert offer_cuda_runtime([tmp_path / "packages"], system=[] if named else [own]) is None
    assert os.environ["LD_LIBRARY_PATH"] == before


def test_without_a_runtime_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_runtime, "_LINKER_NAME", "libnone_of_cuda.so")
    with pytest.raises(CudaRuntimeMissing, match="Run 'pip install nvidia-cuda-runtime-cu12'"):
        offer_cuda_runtime([tmp_path], system=[])
