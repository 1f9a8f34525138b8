"""The kit for a GPU machine without a network, on a machine without one: packed, carried, unpacked, run to "no GPU".

In the normal tier its stages run from the source tree with the tests' own Python in the place of the carried one; the
slow test packs everything and runs the carried Python, TensorRT and Triton. What a GPU has shown: perf/gpu/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from builders.core.workspace import REPOSITORY_ROOT, Workspace
from builders.engines.build import missing_reason
from deploy.airgap import blobs, environment, interpreter, pack, run, weights
from deploy.airgap.environment import CUBLAS, RUNNER, TENSORRT_RELEASES, ToolMissing, check_tools
from deploy.airgap.interpreter import PythonMissing, find_python
from deploy.airgap.pack import Piece, compress_all, folder_limit, spread, write_folders
from deploy.airgap.workload import NothingToCarry, trimmed, write_workload
from tests.support import kit
from tests.support.python310 import PYTHON_310, WHY_NO_PYTHON_310

RECIPE = "dcn_v2"
GPU_STAGES = ("smoke", "engines", "parity", "latency", "torch", "serve", "again")
without_a_gpu = pytest.mark.skipif(missing_reason() == "", reason="this machine has a GPU")


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


# ---------------------------------------------------------------- the stages, from the source tree
@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small recipe's, without its weights' being taken apart."""
    folder = tmp_path_factory.mktemp("airgap")
    workspace = Workspace(folder / "build", folder / "models", folder / "items")
    write_workload(folder / "workload", [RECIPE], workspace)
    weights.join(folder / "workload")
    return folder / "workload"


@pytest.fixture(scope="module")
def found(workload: Path) -> dict[str, Any]:
    """results.json of a run of every stage."""
    target = workload.parent
    (target / "project").symlink_to(REPOSITORY_ROOT)
    write_program(target / "trtpy", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    assert run.main([str(target), str(target / "out")]) == 0
    answer: dict[str, Any] = json.loads((target / "out" / "results.json").read_text())
    answer["log"] = (target / "out" / "log.txt").read_text()
    return answer


@without_a_gpu
@pytest.mark.server
@pytest.mark.parametrize("stage", GPU_STAGES)
def test_a_stage_that_needs_a_gpu_says_that_there_is_none(found: dict[str, Any], stage: str) -> None:
    assert {one["ended"] for one in found["stages"][stage]} == {"no GPU"}, found["log"][-3000:]


@without_a_gpu
@pytest.mark.server
def test_a_run_without_a_gpu_ends_with_results_that_say_so_and_hold_no_figure_of_one(found: dict[str, Any]) -> None:
    assert "no NVIDIA driver here" in found["no GPU"]
    assert "p50_ms" not in json.dumps(found)
    assert "no GPU, so no figure of one" in run.summary(found)


@without_a_gpu
@pytest.mark.server
def test_what_needs_no_gpu_is_run_all_the_same(found: dict[str, Any]) -> None:
    assert found["references"]["done"] is True
    assert found["serve"]["server without a plan"].startswith("ready at ")
    assert [one["ended"] for one in found["stages"]["machine"]] == ["code 0"]


def test_what_an_earlier_run_has_finished_is_kept(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "references.json").write_text('{"done": true}')
    assert run.done(tmp_path, "references")
    assert not run.done(tmp_path, "torch")


def test_a_process_that_runs_too_long_is_stopped_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    ended = run.run(run.Command(1, "sh", ["-c", "sleep 60"]), 0.2, tmp_path, tmp_path / "log.txt")
    assert ended["ended"] == "stopped after 0 s"


def test_engines_are_built_in_the_order_of_what_matters_most() -> None:
    networks = [{"recipe": "a", "files": {"fp32": "", "fp16": ""}}, {"recipe": "b", "files": {"int8": "", "fp16": ""}}]
    commands = [command.arguments[1:] for command in run.stages_of(networks)["engines"]]
    assert commands == [["a", "fp16"], ["b", "fp16"], ["b", "int8"], ["a", "fp32"]]


def test_the_summary_puts_the_medians_of_one_shape_side_by_side() -> None:
    figures = {"latency": {"net_fp16_trt 8x32": {"p50_ms": 1.5}, "net_fp16_trt seconds": 3.0},
               "torch": {"net eager fp16 8x32": {"p50_ms": 2.5}}}  # fmt: skip
    [line] = [line for line in run.summary(figures).splitlines() if line.startswith("net 8x32")]
    assert line.split()[2:] == ["1.500", "-", "-", "2.500", "-"]


# ---------------------------------------------------------------- the workload
def test_carried_files_score_nearly_as_the_projects_own_and_fp16_comes_back_to_the_bit(workload: Path) -> None:
    [facts] = json.loads((workload / "workload.json").read_text())
    assert next(iter(facts["files"])) == "fp16"
    sample = {name.partition("/")[2]: array for name, array in np.load(workload / f"{RECIPE}.npz").items()
              if name.startswith("0/")}  # fmt: skip
    scores = {}
    for precision, file in facts["files"].items():
        onnx.checker.check_model(onnx.load(workload / file))
        session = onnxruntime.InferenceSession(workload / file, providers=["CPUExecutionProvider"])
        feeds = {tensor.name: sample[tensor.name] for tensor in session.get_inputs()}
        scores[precision] = session.run(None, feeds)[0]
    made = workload.parent / "build" / "rankers" / RECIPE / f"{RECIPE}_fp32_onnx.onnx"
    wanted = onnxruntime.InferenceSession(made).run(None, feeds)[0]
    np.testing.assert_allclose(scores["fp32"], wanted, atol=1e-3)
    np.testing.assert_allclose(scores["fp16"], wanted, atol=5e-2)


def test_weights_that_are_taken_out_come_back_as_they_were(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    whole = generator.normal(size=(200, 100)).astype(np.float32)
    half = whole.T.astype(np.float16)
    half[3, 4] = 0.25
    models = {"fp32.onnx": {"w": whole, "again": whole, "bias": whole[0]}, "fp16.onnx": {"w": half}}
    for name, tensors in models.items():
        initializers = [onnx.numpy_helper.from_array(array, key) for key, array in tensors.items()]
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], initializers)), tmp_path / name)
    weights.split([tmp_path / name for name in models], tmp_path)
    assert (tmp_path / weights.STREAM).stat().st_size == whole.nbytes  # once for all four
    weights.join(tmp_path)
    for name, tensors in models.items():
        for tensor in onnx.load(tmp_path / name).graph.initializer:
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), tensors[tensor.name])


def test_words_that_no_sample_reads_are_zero_and_the_others_nearly_as_they_were() -> None:
    table = np.random.default_rng(0).normal(size=(30_000, 4)).astype(np.float32)
    graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(table, "words")])
    [tensor] = trimmed(onnx.helper.make_model(graph), np.array([5, 7])).graph.initializer
    kept = onnx.numpy_helper.to_array(tensor)
    assert np.flatnonzero(kept.any(axis=1)).tolist() == [5, 7]
    np.testing.assert_allclose(kept[[5, 7]], table[[5, 7]], rtol=2e-5)


def test_a_recipe_that_is_not_known_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(NothingToCarry, match=r"no recipe named unheard; wanted some of .*cross_encoder"):
        write_workload(tmp_path / "workload", ["unheard"])


# ---------------------------------------------------------------- folders
def piece(name: str, size: int, tree: str = "") -> Piece:
    return Piece(name, size, tree, None if tree else {})


PIECES = [piece("project", 3, "project"), piece("python", 6, "python"), *(piece(f"b{n}", n) for n in (2, 9, 4, 5))]


def test_trees_come_first_and_in_order_and_no_folder_is_too_large() -> None:
    folders = spread(PIECES, 10)
    assert [[one.name for one in folder] for folder in folders] == [["project", "python"], ["b9"], ["b5", "b4"], ["b2"]]


def test_no_library_comes_before_the_last_tree() -> None:
    folders = spread([piece("project", 3, "project"), piece("python", 8, "python"), piece("b2", 2)], 10)
    assert [[one.name for one in folder] for folder in folders] == [["project"], ["python", "b2"]]


def test_weights_come_before_libraries_since_stages_without_tensorrt_wait_for_them() -> None:
    weight = Piece("w", 4, "", {"file": "workload/weights.bin", "kind": "workload", "offset": 0})
    folders = spread([piece("project", 3, "project"), weight, piece("python", 3, "python"), piece("b9", 9)], 10)
    assert [[one.name for one in folder] for folder in folders] == [["project", "w", "python"], ["b9"]]


def test_as_many_folders_as_asked_for_are_made() -> None:
    for folders in (1, 2, 3):
        limit = folder_limit(PIECES, argparse.Namespace(folders=folders, folder_mib=0))
        assert len(spread(PIECES, limit)) <= folders


def test_a_piece_that_no_folder_takes_is_an_error_that_names_the_option() -> None:
    with pytest.raises(ValueError, match=r"piece b9 .* give a larger --folder-mib"):
        spread(PIECES, 8)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """The tree that is packed, with a FAKE Python, TensorRT and Triton."""
    work = tmp_path / "work"
    for path in ("env/bin", "stubs", "trt", *pack.SERVED_BY):
        (work / path).mkdir(parents=True, exist_ok=True)
    (work / "trt" / "tensorrt").mkdir()
    (work / "trt" / "tensorrt" / "__init__.py").write_text('__version__ = "8.6.0, a fake"\n')
    paths = '"$(dirname "$0")/trt:$PYTHONPATH"'
    write_program(work / "trtpy", f'#!/bin/sh\nPYTHONPATH={paths} exec "{sys.executable}" "$@"\n')
    (work / "workload").mkdir()
    (work / "workload" / "workload.json").write_text("[]")
    yield work


LARGE = {
    "trt/tensorrt/libnvinfer.so.8": np.random.default_rng(0).bytes(5000),
    "trt/cublas/libcublasLt.so.12": np.random.default_rng(1).bytes(3000),
    "workload/weights.bin": np.random.default_rng(2).bytes(2500),
}


@pytest.fixture
def folders(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """``work`` with LARGE, packed into several folders."""
    monkeypatch.setattr(pack, "PROJECT_FOLDERS", ("server",))
    monkeypatch.setattr(pack, "LARGE_FILE", 2000)
    monkeypatch.setattr(blobs, "CODE_CHUNK", 1024)
    for name, content in LARGE.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(content)
    options = argparse.Namespace(tensorrt="8.6.0", preset=0, jobs=2, folders=1, folder_mib=0)
    pieces, facts = compress_all(work, tmp_path / "pieces", options)
    assert len([one for one in pieces if one.blob]) == 5 + 3 + 3
    largest = max(one.size for one in pieces)
    written = write_folders(pieces, tmp_path / "pieces", tmp_path / "out", largest, facts)
    assert len(written) > 1
    return written


def unpacked(folder: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.airgap.unpack", str(folder), str(target)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})


def test_every_folder_is_taken_over_by_its_own_scripts_and_the_last_one_loads_tensorrt(
    folders: list[Path], tmp_path: Path
) -> None:
    target, said = tmp_path / "target", []
    for folder in folders:
        ended = unpacked(folder, target)
        assert ended.returncode == 0, ended.stderr
        said.append(ended.stdout)
    assert "still to come" in said[0]
    assert "TensorRT 8.6.0, a fake loads" in said[-1]
    assert (target / "project" / "server" / "plans.py").is_file()
    assert (target / "workload" / "workload.json").is_file()
    for name, content in LARGE.items():
        assert (target / name).read_bytes() == content, name


def test_folders_may_come_in_any_order(folders: list[Path], tmp_path: Path) -> None:
    for folder in reversed(folders):
        ended = unpacked(folder, tmp_path / "target")
    assert "TensorRT 8.6.0, a fake loads" in ended.stdout, ended.stderr


def test_a_library_that_comes_out_otherwise_is_told_with_both_digests(folders: list[Path], tmp_path: Path) -> None:
    for folder in folders:
        index = json.loads((folder / "index.json").read_text())
        index["kit"]["libraries"]["trt/tensorrt/libnvinfer.so.8"]["sha256"] = "f00"
        (folder / "index.json").write_text(json.dumps(index))
        ended = unpacked(folder, tmp_path / "target")
    assert ended.returncode == 1
    assert "libnvinfer.so.8 has 5000 bytes with SHA-256 " in ended.stderr
    assert "packed were 5000 with f00\ncopy the folders anew" in ended.stderr
    assert "loads" not in ended.stdout


def test_the_packer_says_what_it_carries_and_how_to_unpack_it() -> None:
    options = pack.parse(["out"])
    assert "TensorRT 8.6.0 and nvidia-cublas-cu12==12.0.1.189" in pack.contents_line("python3.10", options)
    said = pack.last_lines([Path("out/1"), Path("out/2")], 3 * pack.MIB)
    assert said.startswith("2 folders, 3 MiB;")
    assert "for n in 1 2; do PYTHONPATH=$n python3 -m deploy.airgap.unpack $n /tmp/kit; done" in said


# ---------------------------------------------------------------- cuBLAS
def fake_pip(*names: str) -> Callable[..., None]:
    """Installs FAKE libraries of these names."""

    def install(python: str, target: Path, *packages: str) -> None:
        (target / "nvidia/cublas/lib").mkdir(parents=True)
        for name in names:
            (target / "nvidia/cublas/lib" / name).touch()

    return install


def install_cublas(work: Path) -> None:
    (work / "trt").mkdir()
    environment.install_cublas(work, "python3.10", CUBLAS["8.6.0"])


def test_of_cublas_its_two_libraries_are_carried_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "install", fake_pip("libcublas.so.12", "libcublasLt.so.12", "libnvblas.so.12"))
    install_cublas(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.so.*")) == ["libcublas.so.12", "libcublasLt.so.12"]
    assert "$root/trt/cublas:" in RUNNER


def test_a_cublas_package_that_holds_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "install", fake_pip("libcublas.so.12"))
    with pytest.raises(ToolMissing, match=r"cublas-cu12==12.0.1.189 holds 0 files libcublasLt.so.N .* wanted one"):
        install_cublas(tmp_path)


def test_each_tensorrt_has_a_cublas_of_its_cuda() -> None:
    assert list(CUBLAS) == list(TENSORRT_RELEASES)


# ---------------------------------------------------------------- what the packing machine needs
def test_without_a_python_3_10_the_error_says_where_it_was_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "PYENV", Path("/nowhere"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PythonMissing, match=r"no Python 3.10 found, neither below /nowhere nor on PATH; .*--python"):
        find_python(None)


def test_a_python_of_another_release_is_refused() -> None:
    with pytest.raises(PythonMissing, match=r"is Python 3.1[12], wanted 3.10"):
        find_python(sys.executable)


def test_a_machine_without_a_compiler_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolMissing, match="not found on PATH: gcc"):
        check_tools()


def test_packing_ends_with_one_line_where_something_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack.main([str(tmp_path), "--python", sys.executable]) == 1
    assert capsys.readouterr().err.startswith(f"error: {sys.executable} is Python 3.1")


def test_the_runner_names_the_carried_tensorrt_for_the_server() -> None:
    assert 'TRITONRANK_TENSORRT="$root/trt"' in RUNNER


# ---------------------------------------------------------------- all of it
@pytest.mark.slow
@pytest.mark.skipif(PYTHON_310 is None, reason=WHY_NO_PYTHON_310)
def test_the_whole_kit_is_packed_carried_and_run_up_to_no_gpu(tmp_path: Path) -> None:
    """With the real TensorRT 8.6, its Python 3.10 and Triton; downloads about 1.5 GB."""
    out, target = tmp_path / "out", tmp_path / "target"
    command = [sys.executable, "-m", "deploy.airgap.pack", str(out), "--preset", "0", "--folders", "2",
               "--recipes", RECIPE, "--build", str(kit.WORKSPACE.build)]  # fmt: skip
    packed = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True)
    if "is PyPI reachable?" in packed.stderr:
        pytest.skip(packed.stderr)
    assert packed.returncode == 0, packed.stderr[-2000:]
    for folder in (out / "1", out / "2"):
        ended = subprocess.run([sys.executable, "-m", "deploy.airgap.unpack", str(folder), str(target)], cwd=folder,
                               capture_output=True, text=True)  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "TensorRT 8.6.0 loads" in ended.stdout
    program = "import ctypes; print(ctypes.CDLL('libcublasLt.so.12').cublasLtGetVersion())"
    assert int(subprocess.check_output([str(target / "trtpy"), "-c", program])) >= 120_000
    command = [sys.executable, "-m", "deploy.airgap.run", str(target), str(tmp_path / "found")]
    subprocess.run(command, cwd=target / "project", check=True)
    found = json.loads((tmp_path / "found" / "results.json").read_text())
    assert found["smoke"]["tensorrt"] == "8.6.0"
    assert found["serve"]["server without a plan"].startswith("ready at ")
    if missing_reason():
        assert {one["ended"] for stage in GPU_STAGES for one in found["stages"][stage]} == {"no GPU"}
