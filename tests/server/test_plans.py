"""TensorRT plans for another machine, by altered manifests: refused, their ONNX fallback served under the same name."""

from __future__ import annotations

import ctypes
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from server import EnvironmentUnfit, RepositoryError, TritonServer, plans
from server.environment import REPOSITORY_ROOT, TENSORRT_VARIABLE, find_environment
from server.plans import Gpu, Machine, refusals, servable_repository, served_versions, write_view
from tests.support.admin import admin_client
from tests.support.onnx_models import save_summing_model, write_config
from tests.support.repositories import infer

GPU = Gpu("NVIDIA H100 80GB HBM3", "9.0")
MACHINE = Machine((GPU,), "11.4.0.106")
PLAN_BYTES = b"a plan for no GPU of this machine"
MANIFEST = {
    "tensorrt": "11.4.0.106",
    "cuda": "13.0",
    "driver": "580.65.06",
    "compute_capability": "9.0",
    "gpu": "NVIDIA H100 80GB HBM3",
    "onnx_sha256": "0" * 64,
    "profiles": [],
    "build_seconds": 61.5,
    "plan_bytes": len(PLAN_BYTES),
    "options": {},
    "fallback": "scorer_fp32_onnx",
}

SCORER = """
name: "{name}"
version_policy {{
  specific {{
    versions: [{version}]
  }}
}}
max_batch_size: 64
input {{ name: "tokens" data_type: TYPE_INT64 dims: [-1] }}
output {{ name: "score" data_type: TYPE_FP32 dims: [1] reshape {{ shape: [] }} }}
instance_group {{ count: 1 kind: {kind} }}
backend: "{backend}"
"""
ENSEMBLE = """
name: "rank_scorer_fp16_trt" platform: "ensemble" max_batch_size: 64
input { name: "tokens" data_type: TYPE_INT64 dims: [-1] }
output { name: "score" data_type: TYPE_FP32 dims: [1] }
ensemble_scheduling { step { model_name: "scorer_fp16_trt" model_version: 3
  input_map { key: "tokens" value: "tokens" } output_map { key: "score" value: "score" } } }
"""


def write_plan(repository: Path, manifest: dict[str, Any] | str | None = MANIFEST, version: int = 3) -> Path:
    """A model with a plan and its manifest (None: none); returns the model's folder."""
    config = SCORER.format(name="scorer_fp16_trt", version=version, kind="KIND_GPU", backend="tensorrt")
    write_config(repository, "scorer_fp16_trt", config)
    folder = repository / "scorer_fp16_trt" / str(version)
    folder.mkdir(exist_ok=True)
    (folder / "model.plan").write_bytes(PLAN_BYTES)
    if manifest is not None:
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        (folder / "model.plan.json").write_text(text)
    return repository / "scorer_fp16_trt"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An ensemble that names version 3 of a scorer with a plan, and version 2 of the scorer that is its fallback."""
    folder = tmp_path / "models"
    write_plan(folder)
    config = SCORER.format(name="scorer_fp32_onnx", version=2, kind="KIND_CPU", backend="onnxruntime")
    write_config(folder, "scorer_fp32_onnx", config)
    save_summing_model(folder / "scorer_fp32_onnx" / "2" / "model.onnx")
    write_config(folder, "rank_scorer_fp16_trt", ENSEMBLE)
    return folder


# ---------------------------------------------------------------- what is refused
def without(key: str) -> str:
    return json.dumps({name: value for name, value in MANIFEST.items() if name != key})


ALTERED = {
    "another GPU of the same compute capability": (
        MANIFEST | {"gpu": "NVIDIA GH200 480GB"},
        "built for NVIDIA GH200 480GB (compute capability 9.0), this machine has NVIDIA H100 80GB HBM3 (compute cap",
    ),
    "another compute capability": (MANIFEST | {"compute_capability": "8.0"}, "(compute capability 8.0), this machine"),
    "an older TensorRT": (
        MANIFEST | {"tensorrt": "10.13.3.9"},
        "built by TensorRT 10.13.3.9, this machine has TensorRT 11.4.0.106",
    ),
    "another build of the same TensorRT": (MANIFEST | {"tensorrt": "11.4.0.99"}, "built by TensorRT 11.4.0.99"),
    "a plan that was cut short": (MANIFEST | {"plan_bytes": 10**8}, "33 bytes, model.plan.json says 100000000"),
    "no manifest": (None, "no model.plan.json beside model.plan"),
    "a manifest that is no JSON": ('{"tensorrt": "11.4', "model.plan.json cannot be read"),
    "a manifest that is a list": ("[]", "model.plan.json lacks tensorrt"),
    "a manifest without the GPU": (without("gpu"), "model.plan.json lacks gpu"),
}


@pytest.mark.parametrize("fault", ALTERED)
def test_refuses_a_plan_with(fault: str, repository: Path) -> None:
    manifest, reason = ALTERED[fault]
    (repository / "scorer_fp16_trt" / "3" / "model.plan.json").unlink()
    write_plan(repository, manifest)
    [refusal] = refusals(repository, MACHINE)
    assert reason in refusal.line
    assert (refusal.model, refusal.versions, refusal.fallback) == ("scorer_fp16_trt", (3,), "scorer_fp32_onnx")
    assert refusal.line.endswith("Run 'make build-engines' on this machine.")


def test_takes_a_plan_that_was_built_here(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusals(repository, MACHINE) == []
    monkeypatch.setattr(plans, "visible_gpus", lambda: (GPU, GPU))
    served, refused = servable_repository(repository, tmp_path / "view", lambda: "11.4.0")
    assert (served, refused) == (repository, [])
    assert not (tmp_path / "view").exists()


def test_a_machine_with_one_other_gpu_is_another_machine(repository: Path) -> None:
    [refusal] = refusals(repository, Machine((GPU, Gpu("NVIDIA T4", "7.5")), "11.4.0.106"))
    assert "this machine has NVIDIA H100 80GB HBM3 (compute capability 9.0), NVIDIA T4" in refusal.reason


def test_a_hardware_compatible_plan_runs_on_ampere_and_later(repository: Path) -> None:
    write_plan(repository, MANIFEST | {"options": {"hardware_compatible": True}})
    assert refusals(repository, Machine((Gpu("NVIDIA A10", "8.6"), GPU), "11.4.0.106")) == []
    [refusal] = refusals(repository, Machine((Gpu("NVIDIA T4", "7.5"),), "11.4.0.106"))
    assert "this machine has NVIDIA T4" in refusal.reason


def test_a_machine_without_gpu_or_tensorrt_takes_no_plan(repository: Path) -> None:
    [refusal] = refusals(repository, Machine((), None))
    assert refusal.reason.endswith("this machine has no NVIDIA GPU")
    [refusal] = refusals(repository, Machine((GPU,), None))
    assert refusal.reason.endswith("built by TensorRT 11.4.0.106, this machine has no TensorRT")


def test_a_version_that_is_not_served_may_be_of_another_machine(repository: Path) -> None:
    write_plan(repository, MANIFEST | {"gpu": "NVIDIA T4"}, version=2)
    write_plan(repository)
    assert refusals(repository, MACHINE) == []


def test_tensorrt_in_a_folder_of_its_own_is_the_one_that_plans_are_held_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = tmp_path / "trt" / "tensorrt-8.6.0.dist-info" / "METADATA"
    facts.parent.mkdir(parents=True)
    facts.write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 8.6.0\n")
    monkeypatch.setenv(TENSORRT_VARIABLE, str(tmp_path / "trt"))
    assert find_environment().tensorrt_version() == "8.6.0"
    monkeypatch.setenv(TENSORRT_VARIABLE, str(tmp_path))
    with pytest.raises(EnvironmentUnfit, match=r"where no package tensorrt is installed; fill it with .*--target"):
        find_environment().tensorrt_version()


def test_polygraphys_name_for_the_cuda_runtime_leads_to_the_one_that_the_environment_has(tmp_path: Path) -> None:
    folder = find_environment().link_cuda_runtime(tmp_path / "cuda")
    assert (folder / "libcudart.so").resolve().name.startswith("libcudart-")
    assert ctypes.CDLL(str(folder / "libcudart.so")).cudaRuntimeGetVersion is not None


def test_nothing_is_asked_of_the_machine_where_there_is_no_plan(tmp_path: Path) -> None:
    def never() -> str:
        raise AssertionError

    save_summing_model(write_config(tmp_path, "scorer", 'backend: "onnxruntime"') / "model.onnx")
    assert servable_repository(tmp_path, tmp_path / "view", never) == (tmp_path, [])


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", (10,)),
        ("version_policy { specific { versions: [2, 9] } }", (9,)),
        ("version_policy: { specific: { versions: 9 versions: 10 } }", (9, 10)),
        ("version_policy { all { } }", (9, 10)),
        ("version_policy { latest { num_versions: 1 } }", (10,)),
    ],
)
def test_served_versions_are_those_that_the_configuration_names(
    policy: str, versions: tuple[int, ...], tmp_path: Path
) -> None:
    write_config(tmp_path, "model", policy).rename(tmp_path / "model" / "9")
    (tmp_path / "model" / "10").mkdir()
    assert served_versions(tmp_path / "model") == versions


# ---------------------------------------------------------------- what takes its place
def test_without_a_readable_fallback_the_onnx_variant_of_the_nearest_name_is_taken(repository: Path) -> None:
    write_plan(repository, "{}")
    save_summing_model(write_config(repository, "scorer_fp16_onnx", 'backend: "onnxruntime"') / "model.onnx")
    [refusal] = refusals(repository, MACHINE)
    assert refusal.fallback == "scorer_fp16_onnx"


def test_a_plan_without_fallback_is_left_out_and_the_line_says_so(repository: Path, tmp_path: Path) -> None:
    (repository / "scorer_fp32_onnx" / "2" / "model.onnx").unlink()
    [refusal] = refused = refusals(repository, Machine((), None))
    assert "nothing can take its place" in refusal.line
    view = write_view(repository, tmp_path / "view", refused)
    assert not (view / "scorer_fp16_trt").exists()


def test_the_fallbacks_machine_tuning_comes_along(repository: Path, tmp_path: Path) -> None:
    (repository / "scorer_fp32_onnx" / "configs").mkdir()
    tuned = SCORER.format(name="scorer_fp32_onnx", version=2, kind="KIND_CPU", backend="onnxruntime")
    (repository / "scorer_fp32_onnx" / "configs" / "here.pbtxt").write_text(tuned.replace("count: 1", "count: 2"))
    view = write_view(repository, tmp_path / "view", refusals(repository, Machine((), None)))
    written = (view / "scorer_fp16_trt" / "configs" / "here.pbtxt").read_text()
    assert "count: 2" in written
    assert 'name: "scorer_fp16_trt"' in written


# ---------------------------------------------------------------- on the real server, without a GPU
@pytest.fixture
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(
        repository, ["rank_scorer_fp16_trt", "scorer_fp32_onnx"], grpc_port=0, http_port=0, metrics_port=0
    ) as running:
        yield running
        running.kill()  # quicker than a clean stop


def scores(client: grpc.InferenceServerClient, model: str) -> list[list[float]]:
    return infer(client, model, tokens=np.array([[1, 2], [3, 4]])).as_numpy("score").tolist()


@pytest.mark.server
def test_the_fallback_answers_under_the_ensembles_and_the_models_own_name(server: TritonServer) -> None:
    client = grpc.InferenceServerClient(server.grpc_url)
    wanted = scores(client, "scorer_fp32_onnx")
    assert scores(client, "rank_scorer_fp16_trt") == scores(client, "scorer_fp16_trt") == wanted == [[3.0], [7.0]]
    assert client.get_model_config("scorer_fp16_trt", as_json=True)["config"]["backend"] == "onnxruntime"


@pytest.mark.server
def test_the_log_says_what_was_found_and_what_to_run(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)  # quantizers raise it for the whole process
    with TritonServer(repository, ["scorer_fp32_onnx"], grpc_port=0, http_port=0, metrics_port=0) as running:
        running.kill()
    [line] = caplog.messages
    assert line == (
        "plan of 'scorer_fp16_trt' not loaded: version 3: built for NVIDIA H100 80GB HBM3 (compute capability 9.0), "
        "this machine has no NVIDIA GPU; 'scorer_fp32_onnx' is served in its place. Run 'make build-engines' on this "
        "machine."
    )


@pytest.mark.server
def test_publishing_and_rolling_back_by_rename_are_seen_through_the_view(
    repository: Path, server: TritonServer
) -> None:
    client = admin_client(server)
    model = repository / "scorer_fp32_onnx"
    save_summing_model(model / ".new" / "model.onnx")
    (model / ".new").rename(model / "5")
    config = (model / "config.pbtxt").read_text()
    for version in ("5", "2"):
        (model / "config.new").write_text(config.replace("versions: [2]", f"versions: [{version}]"))
        (model / "config.new").replace(model / "config.pbtxt")
        client.load_model("scorer_fp32_onnx")
        assert client.is_model_ready("scorer_fp32_onnx", version)
    assert not client.is_model_ready("scorer_fp32_onnx", "5")


@pytest.mark.server
def test_a_view_is_gone_when_the_server_is(repository: Path) -> None:
    with TritonServer(repository, ["scorer_fp16_trt"], grpc_port=0, http_port=0, metrics_port=0) as running:
        view = running._served
        assert view.is_dir()
        running.kill()
    assert not view.exists()
    assert (repository / "scorer_fp32_onnx" / "2" / "model.onnx").is_file()


def test_a_wanted_model_that_nothing_can_take_the_place_of_is_an_error(repository: Path) -> None:
    (repository / "scorer_fp32_onnx" / "2" / "model.onnx").unlink()
    with pytest.raises(RepositoryError, match="no model scorer_fp16_trt"):
        TritonServer(repository, ["scorer_fp16_trt"], grpc_port=0, http_port=0, metrics_port=0).start()


# ---------------------------------------------------------------- as the container's entry point runs it
def run_alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(REPOSITORY_ROOT / "server" / "plans.py")
    return subprocess.run([sys.executable, "-IS", script, *arguments], capture_output=True, text=True)


def test_as_a_program_prints_the_view_and_says_why_on_stderr(repository: Path, tmp_path: Path) -> None:
    ended = run_alone("--repository", str(repository), "--view", str(tmp_path / "view"))
    view = Path(ended.stdout.strip())
    assert (ended.returncode, view.parent) == (0, tmp_path / "view")
    assert "plan of 'scorer_fp16_trt' not loaded" in ended.stderr
    assert (view / "scorer_fp16_trt" / "3" / "model.onnx").is_file()
    assert (view / "rank_scorer_fp16_trt" / "config.pbtxt").is_file()


def test_as_a_program_prints_the_repository_itself_where_no_plan_is_refused(repository: Path, tmp_path: Path) -> None:
    (repository / "scorer_fp16_trt" / "3" / "model.plan").unlink()
    ended = run_alone("--repository", str(repository), "--view", str(tmp_path / "view"))
    assert (ended.stdout.strip(), ended.stderr) == (str(repository), "")


def test_as_a_program_ends_with_an_error_where_there_is_no_repository(tmp_path: Path) -> None:
    ended = run_alone("--repository", str(tmp_path / "none"), "--view", str(tmp_path / "view"))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "no such folder; mount one there" in ended.stderr


# ---------------------------------------------------------------- what the machine has
class FakeCudaDriver:
    """A FAKE of libcuda.so.1 with two GPUs, one call each as cuda.h declares it."""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> int:
        name.value = [b"NVIDIA H100 80GB HBM3", b"NVIDIA T4"][device.value]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:
        value._obj.value = {75: [9, 7], 76: [0, 5]}[attribute][device.value]
        return 0


def test_the_gpus_are_those_that_the_driver_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans.ctypes, "CDLL", lambda name: FakeCudaDriver())
    assert plans.visible_gpus() == (GPU, Gpu("NVIDIA T4", "7.5"))


@pytest.mark.parametrize(
    ("number", "text"), [(8503, "8.5.3"), (8601, "8.6.1"), (100001, "10.0.1"), (101303, "10.13.3"), (110400, "11.4.0")]
)
def test_a_librarys_version_number_as_text(number: int, text: str) -> None:
    assert plans._version_text(number) == text
