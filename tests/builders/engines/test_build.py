"""Engines without a GPU: which calls each TensorRT gets, which graphs and plans are refused, what is written.

The ``tensorrt`` here is a fake made of names recorded from the real releases; real engines are in ``tests/gpu``.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from builders.compress.fp16 import fp16_from_onnx
from builders.core import onnx_files
from builders.core.contract import MAX_CANDIDATES, SCORE, USUAL_CANDIDATES, Contract, ContractError, Tensor
from builders.core.files import sha256
from builders.core.versions import VersionError
from builders.engines import build as build_engine
from builders.engines.build import (
    SIZE_DECIDES_FROM,
    BuildOptions,
    EngineError,
    TensorRTMissing,
    WrongPrecision,
    check_graph_types,
    check_plan,
    engine_from_onnx,
    layer_precisions,
    skipped_engines,
)
from builders.engines.edge_graph import onnx_for_tensorrt_8
from builders.engines.gpu import Gpu, GpuMissing, visible_gpu
from builders.engines.profiles import Profile, profiles_of
from builders.export.plan_manifest import EngineManifest, ManifestError, read_manifest
from builders.rankers.base import Graph
from tests.support.fake_tensorrt_builder import RELEASES, FakeTensorRT, layer, read_interface
from tests.support.small_graphs import WIDTH, masked_attention_model, quantized_model, sample

GPU = Gpu("a GPU", "9.0", "550.54.15", "12.4")
PROFILES = [
    Profile({"x": ((1, WIDTH), (40, WIDTH), (64, WIDTH))}),
    Profile({"x": ((1, WIDTH), (1, WIDTH), (2, WIDTH))}),
]
HALF_LAYER = {"Name": "first", "LayerType": "gemm", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]}
FP32_LAYER = {"Name": "a_half_named", "LayerType": "gemm", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]}
INT8_LAYER = {"Name": "q", "LayerType": "gemm", "Outputs": [{"Format": "Row major linear", "DataType": "Int8"}]}
OPAQUE_LAYER = {"Name": "{ForeignNode[first...last]}", "LayerType": "Myelin", "Outputs": [{"DataType": "Float"}]}


@pytest.fixture(params=RELEASES)
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """A fake of every recorded release in turn."""
    module = FakeTensorRT(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    module = FakeTensorRT("tensorrt_11_4")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def major(trt: FakeTensorRT) -> int:
    return int(trt.__version__.split(".")[0])


def answer_layers(trt: FakeTensorRT, *layers: dict[str, object]) -> None:
    trt.engine_information = json.dumps({"Layers": layers})


def written(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, folder / "ranker.onnx")
    return folder / "ranker.onnx"


def fp16_file(folder: Path) -> Path:
    fp16_from_onnx(written(folder, masked_attention_model()), folder / "fp16.onnx", [sample()])
    return folder / "fp16.onnx"


def build(onnx_file: Path, folder: Path, options: BuildOptions | None = None, **named: object) -> EngineManifest:
    return engine_from_onnx(
        onnx_file, folder / "out" / "model.plan", PROFILES, options or BuildOptions(), gpu=GPU, **named
    )


# ---------------------------------------------------------------- recorded interfaces
@pytest.mark.parametrize("release", RELEASES)
def test_every_recorded_interface_names_its_documentation(release: str) -> None:
    interface = read_interface(release)
    assert interface["source"].startswith("https://docs.nvidia.com/deeplearning/tensorrt/")
    assert interface["version"].split(".")[0] == release.split("_")[1]


def test_three_majors_are_recorded() -> None:
    assert {read_interface(release)["version"].split(".")[0] for release in RELEASES} == {"8", "10", "11"}


# ---------------------------------------------------------------- flags
def test_an_fp32_graph_is_built_by_calls_that_every_release_has(trt: FakeTensorRT, tmp_path: Path) -> None:
    answer_layers(trt, FP32_LAYER)
    build(written(tmp_path, masked_attention_model()), tmp_path)
    assert (tmp_path / "out" / "model.plan").read_bytes() == b"a plan"


def test_a_graph_whose_weights_lie_beside_it_is_parsed_from_a_file(
    newest: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "ONE_FILE_BYTES", 0)
    monkeypatch.setattr(onnx_files, "_SMALL_BYTES", 64)
    path = tmp_path / "ranker.onnx"
    onnx_files.save_model(masked_attention_model(), path)
    answer_layers(newest, FP32_LAYER)
    manifest = build(path, tmp_path)
    assert newest.of("parse") == [] and len(newest.of("parse_from_file")) == 1
    assert manifest.onnx_sha256 == onnx_files.model_sha256(path)


def test_tensorrt_8_refuses_a_graph_that_cannot_be_converted_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT("tensorrt_8_5"))
    monkeypatch.setattr(onnx_files, "ONE_FILE_BYTES", 0)
    path = written(tmp_path, masked_attention_model())
    with pytest.raises(onnx_files.OnnxFileError, match="conversion to the opset of TensorRT 8 takes a model as one"):
        build(path, tmp_path)


def test_tensorrt_10_is_told_to_take_the_types_from_the_graph_and_11_does_so_unasked(
    trt: FakeTensorRT, tmp_path: Path
) -> None:
    answer_layers(trt, HALF_LAYER)
    build(fp16_file(tmp_path), tmp_path, BuildOptions(precision="fp16"))
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if major(trt) >= 10 else None
    explicit_batch = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) if major(trt) == 8 else None
    assert trt.of("create_network") == [({8: explicit_batch, 10: strongly_typed, 11: 0}[major(trt)],)]


def test_only_before_tensorrt_10_do_flags_allow_a_precision(trt: FakeTensorRT, tmp_path: Path) -> None:
    answer_layers(trt, HALF_LAYER)
    build(fp16_file(tmp_path), tmp_path, BuildOptions(precision="fp16"))
    wanted = ["FP16", "PREFER_PRECISION_CONSTRAINTS"] if major(trt) == 8 else []
    assert [flag.name for (flag,) in trt.of("set_flag")] == wanted


def test_an_int8_graph_gets_the_int8_flag_alone(trt: FakeTensorRT, tmp_path: Path) -> None:
    answer_layers(trt, INT8_LAYER)
    build(written(tmp_path, quantized_model()), tmp_path, BuildOptions(precision="int8"))
    assert [flag.name for (flag,) in trt.of("set_flag")] == (["INT8"] if major(trt) == 8 else [])


def test_before_tensorrt_10_layers_that_the_graph_keeps_in_fp32_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trt = FakeTensorRT("tensorrt_8_5")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    answer_layers(trt, HALF_LAYER)
    names = ["attention", "norm/mean", "first", "norm/epsilon", "add_mask"]
    kinds = ["", "", "", "CONSTANT", "SHAPE"]
    trt.layers = [layer(trt, name, kind) for name, kind in zip(names, kinds, strict=True)]
    build(fp16_file(tmp_path), tmp_path, BuildOptions(precision="fp16"))
    assert [one.name for one in trt.layers if "precision" in one.__dict__] == ["attention", "norm/mean"]


# ---------------------------------------------------------------- options
def test_options_that_are_not_given_are_left_to_tensorrt(trt: FakeTensorRT, tmp_path: Path) -> None:
    answer_layers(trt, FP32_LAYER)
    build(written(tmp_path, masked_attention_model()), tmp_path)
    for name in ("clear_flag", "set_memory_pool_limit", "set_tactic_sources", "builder_optimization_level"):
        assert trt.of(name) == []


def test_options_reach_the_builder(newest: FakeTensorRT, tmp_path: Path) -> None:
    answer_layers(newest, FP32_LAYER)
    options = BuildOptions(
        tf32=False,
        workspace_mib=2,
        tactic_sources=("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"),
        optimization_level=5,
        hardware_compatible=True,
        version_compatible=True,
    )
    build(written(tmp_path, masked_attention_model()), tmp_path, options)
    assert newest.of("clear_flag") == [(newest.BuilderFlag.TF32,)]
    assert newest.of("set_memory_pool_limit") == [(newest.MemoryPoolType.WORKSPACE, 2 * 2**20)]
    sources = newest.TacticSource
    assert newest.of("set_tactic_sources") == [(1 << sources.EDGE_MASK_CONVOLUTIONS | 1 << sources.JIT_CONVOLUTIONS,)]
    assert newest.of("builder_optimization_level") == [(5,)]
    assert newest.of("hardware_compatibility_level") == [(newest.HardwareCompatibilityLevel.AMPERE_PLUS,)]
    assert newest.of("set_flag") == [(newest.BuilderFlag.VERSION_COMPATIBLE,)]


@pytest.mark.parametrize(
    ("release", "options", "lacking"),
    [
        ("tensorrt_8_5", {"optimization_level": 5}, "builder_optimization_level"),
        ("tensorrt_8_5", {"hardware_compatible": True}, "HardwareCompatibilityLevel"),
        ("tensorrt_8_5", {"version_compatible": True}, "VERSION_COMPATIBLE"),
        ("tensorrt_11_4", {"tactic_sources": ("CUBLAS",)}, "CUBLAS"),
    ],
)
def test_an_option_that_a_release_lacks_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: str, options: dict[str, object], lacking: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(release))
    with pytest.raises(EngineError, match=f"has no (option|tactic source) '{lacking}'"):
        build(written(tmp_path, masked_attention_model()), tmp_path, dataclasses.replace(BuildOptions(), **options))


def test_no_tactic_source_at_all_is_something_else_than_tensorrts_choice(trt: FakeTensorRT, tmp_path: Path) -> None:
    answer_layers(trt, FP32_LAYER)
    build(written(tmp_path, masked_attention_model()), tmp_path, BuildOptions(tactic_sources=()))
    assert trt.of("set_tactic_sources") == [(0,)]


# ---------------------------------------------------------------- profiles
def graph(inputs: list[Tensor], lengths: tuple[int, ...] = (), max_batch_size: int = 0) -> Graph:
    contract = Contract("ranker", tuple(inputs), (SCORE,))
    return Graph("ranker", None, contract, bool(max_batch_size), max_batch_size, lengths)  # type: ignore[arg-type]


def test_each_length_bucket_has_a_profile_in_the_buckets_order() -> None:
    ids = Tensor("input_ids", "INT32", ("rows", "length"), "ids", "per_candidate")
    found = [profile.shapes["input_ids"] for profile in profiles_of(graph([ids], (8, 16, 24), 1024))]
    assert found == [((1, n), (USUAL_CANDIDATES, n), (1024, n)) for n in (8, 16, 24)]


def test_rows_that_are_requests_are_tuned_for_one() -> None:
    history = Tensor("history", "INT32", ("rows", 100), "items", "per_request")
    assert profiles_of(graph([history], max_batch_size=64)) == [Profile({"history": ((1, 100), (1, 100), (64, 100))})]


def test_a_graph_of_one_request_has_one_profile_up_to_all_candidates() -> None:
    user = Tensor("user", "INT32", (1, 7), "fields", "per_request")
    item = Tensor("item", "INT32", ("candidates", 19), "fields", "per_candidate")
    shapes = ((1, 19), (USUAL_CANDIDATES, 19), (MAX_CANDIDATES, 19))
    assert profiles_of(graph([user, item])) == [Profile({"user": ((1, 7),) * 3, "item": shapes})]


def test_a_free_dimension_without_a_range_is_refused() -> None:
    with pytest.raises(ContractError, match="free dimension 'pixels' has no range"):
        profiles_of(graph([Tensor("image", "FP32", ("pixels",), "image")]))


def test_profiles_reach_the_builder_in_their_order(trt: FakeTensorRT, tmp_path: Path) -> None:
    answer_layers(trt, FP32_LAYER)
    build(written(tmp_path, masked_attention_model()), tmp_path)
    assert trt.of("set_shape") == [("x", *profile.shapes["x"]) for profile in PROFILES]
    assert len(trt.of("add_optimization_profile")) == len(PROFILES)


# ---------------------------------------------------------------- types before the build
@pytest.mark.parametrize(
    ("wanted", "fault"),
    [("fp16", "FP16 is not in its types"), ("int8", "INT8 is not in its types"), ("mixed", "FP16 is not.*INT8 is not")],
)
def test_an_fp32_graph_is_not_built_for_a_lower_precision(wanted: build_engine.Precision, fault: str) -> None:
    with pytest.raises(WrongPrecision, match=f"wanted a graph in {wanted}.*{fault}"):
        check_graph_types(masked_attention_model(), wanted)


def test_a_quantized_graph_is_not_built_as_fp32_or_mixed() -> None:
    check_graph_types(quantized_model(), "int8")
    with pytest.raises(WrongPrecision, match="INT8 is in its types"):
        check_graph_types(quantized_model(), "fp32")
    with pytest.raises(WrongPrecision, match="FP16 is not in its types"):
        check_graph_types(quantized_model(), "mixed")


def test_a_quantized_graph_with_fp16_between_is_mixed(tmp_path: Path) -> None:
    source = written(tmp_path, quantized_model())
    fp16_from_onnx(source, tmp_path / "mixed.onnx", [{"x": sample()["x"]}])
    check_graph_types(onnx.load(tmp_path / "mixed.onnx"), "mixed")


def test_int8_that_tensorrt_does_not_have_is_refused() -> None:
    with pytest.raises(WrongPrecision, match="zero points are UINT8; wanted INT8 around 0"):
        check_graph_types(quantized_model(np.uint8, zero_point=128), "int8")
    with pytest.raises(WrongPrecision, match="some zero points are not 0"):
        check_graph_types(quantized_model(np.int8, zero_point=3), "int8")


def test_a_graph_of_the_wrong_types_builds_nothing(newest: FakeTensorRT, tmp_path: Path) -> None:
    with pytest.raises(WrongPrecision, match=r"ranker\.onnx: wanted a graph in fp16"):
        build(written(tmp_path, masked_attention_model()), tmp_path, BuildOptions(precision="fp16"))
    assert newest.of("build_serialized_network") == []
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the plan after the build
def test_layers_are_counted_by_what_they_read_and_write_in_either_schema() -> None:
    layers = [HALF_LAYER, FP32_LAYER, INT8_LAYER, OPAQUE_LAYER]
    found = layer_precisions(json.dumps({"Layers": layers}))
    assert found == {"FP16": 1, "FP32": 2, "INT8": 1, "opaque": 1}


def test_a_plan_without_a_layer_in_its_precision_is_refused_and_not_written(
    newest: FakeTensorRT, tmp_path: Path
) -> None:
    answer_layers(newest, FP32_LAYER)
    with pytest.raises(WrongPrecision, match="built for fp16, but no layer reads or writes FP16"):
        build(fp16_file(tmp_path), tmp_path, BuildOptions(precision="fp16"))
    assert not (tmp_path / "out").exists()


def test_a_plan_as_large_as_fp32s_is_refused() -> None:
    large = SIZE_DECIDES_FROM
    with pytest.raises(WrongPrecision, match=r"are 95% of FP32's"):
        check_plan("fp16", {"FP16": 3}, int(0.95 * large), large, large)
    check_plan("fp16", {"FP16": 3}, int(0.6 * large), large, large)
    check_plan("fp32", {"FP32": 3}, large, large, large)


def test_where_the_inspector_sees_nothing_the_size_decides() -> None:
    large = SIZE_DECIDES_FROM
    check_plan("fp16", {"FP32": 1, "opaque": 1}, int(0.6 * large), large, large)
    with pytest.raises(WrongPrecision, match="Weights stayed FP32"):
        check_plan("fp16", {"FP32": 1, "opaque": 1}, large, large, large)


def test_the_size_of_a_small_plan_says_nothing() -> None:
    check_plan("fp16", {"FP16": 1}, 1000, 1000, 1000)


# ---------------------------------------------------------------- failures of TensorRT
def test_what_the_parser_found_is_in_the_error(trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.parse_errors = ["no such operator", "and another"]
    with pytest.raises(EngineError, match="cannot read it: no such operator; and another"):
        build(written(tmp_path, masked_attention_model()), tmp_path)


def test_a_build_that_gives_nothing_writes_nothing(trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.plan = None
    with pytest.raises(EngineError, match="built nothing"):
        build(written(tmp_path, masked_attention_model()), tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_opset_beyond_the_release_is_refused_before_the_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trt = FakeTensorRT("tensorrt_10_0")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    model = masked_attention_model()
    model.opset_import[0].version = 21
    with pytest.raises(VersionError, match="TensorRT 10 reads opset up to 20"):
        build(written(tmp_path, model), tmp_path)
    assert trt.calls == []


# ---------------------------------------------------------------- timing cache and manifest
def test_the_timing_cache_is_read_and_written_anew(trt: FakeTensorRT, tmp_path: Path) -> None:
    answer_layers(trt, FP32_LAYER)
    cache = tmp_path / "timing" / "a.cache"
    for _ in range(2):
        build(written(tmp_path, masked_attention_model()), tmp_path, timing_cache=cache)
    assert trt.of("create_timing_cache") == [(b"",), (b"timings",)]
    assert cache.read_bytes() == b"timings"


def test_a_timing_cache_that_tensorrt_refuses_is_replaced(newest: FakeTensorRT, tmp_path: Path) -> None:
    answer_layers(newest, FP32_LAYER)
    newest.knows_timing_cache = False
    cache = tmp_path / "a.cache"
    cache.write_bytes(b"of another GPU")
    build(written(tmp_path, masked_attention_model()), tmp_path, timing_cache=cache)
    assert newest.of("create_timing_cache") == [(b"of another GPU",), (b"",)]
    assert cache.read_bytes() == b"timings"


def test_the_manifest_lies_beside_the_plan_with_the_names_that_the_server_reads(
    newest: FakeTensorRT, tmp_path: Path
) -> None:
    answer_layers(newest, FP32_LAYER)
    source = written(tmp_path, masked_attention_model())
    manifest = build(source, tmp_path, fallback="ranker_fp32_onnx")
    stored = json.loads((tmp_path / "out" / "model.plan.json").read_text())
    assert (
        stored.items()
        >= {
            "tensorrt": "11.4.0.106",
            "cuda": "12.4",
            "driver": "550.54.15",
            "compute_capability": "9.0",
            "gpu": "a GPU",
            "onnx_sha256": sha256(source),
            "plan_bytes": len(b"a plan"),
            "fallback": "ranker_fp32_onnx",
        }.items()
    )
    assert stored["profiles"][0] == {"x": {"min": [1, WIDTH], "opt": [40, WIDTH], "max": [64, WIDTH]}}
    assert stored["options"]["precision"] == "fp32"
    assert stored["build_seconds"] >= 0
    assert read_manifest(tmp_path / "out" / "model.plan").onnx_sha256 == manifest.onnx_sha256


def test_a_manifest_with_an_unknown_or_a_missing_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="has no model"):
        read_manifest(tmp_path / "model.plan")
    (tmp_path / "model.plan.json").write_text('{"tensorrt": "11.4.0.106"}')
    with pytest.raises(ManifestError, match="run 'make build-engines'"):
        read_manifest(tmp_path / "model.plan")


# ---------------------------------------------------------------- machines without
def test_a_machine_without_tensorrt_says_what_it_skips_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert skipped_engines(require=False, models=["ranker_fp16_trt"]) == (
        "TensorRT engines skipped (ranker_fp16_trt): package 'tensorrt' is not installed here; the ONNX variants are "
        "built and serve instead"
    )
    with pytest.raises(TensorRTMissing, match="Unset REQUIRE_TENSORRT"):
        skipped_engines(require=True)


def test_a_machine_without_a_gpu_says_so(tmp_path: Path) -> None:
    with pytest.raises(GpuMissing, match="no NVIDIA driver here"):
        visible_gpu(library=str(tmp_path / "libcuda.so.1"))


def test_tensorrt_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(TensorRTMissing, match="cannot be imported"):
        build(written(tmp_path, masked_attention_model()), tmp_path)


# ---------------------------------------------------------------- the edge
def test_the_edge_graph_computes_the_same_in_the_older_opset(tmp_path: Path) -> None:
    older = onnx_for_tensorrt_8(masked_attention_model())
    assert (older.opset_import[0].version, older.ir_version) == (17, 8)
    assert "LayerNormalization" not in {node.op_type for node in older.graph.node}
    before, after = (
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, sample())[0]
        for model in (masked_attention_model(), older)
    )
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_a_converter_that_is_known_to_be_wrong_is_refused_before_it_converts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "__version__", "1.21.0")
    with pytest.raises(VersionError, match=r"onnx 1.21.0 converts graphs wrongly .*; wanted 1.22 or later. Run .pip"):
        onnx_for_tensorrt_8(masked_attention_model())


def test_fp16_between_int8_products_has_no_edge_graph(tmp_path: Path) -> None:
    source = written(tmp_path, quantized_model())
    fp16_from_onnx(source, tmp_path / "mixed.onnx", [{"x": sample()["x"]}])
    with pytest.raises(VersionError, match="Build the INT8 variant there"):
        onnx_for_tensorrt_8(onnx.load(tmp_path / "mixed.onnx"))


def test_a_tensorrt_that_starts_no_builder_says_where_the_reason_stands() -> None:
    """As the bindings of 8.6 answered on a GPU, by a FAKE."""

    def refused(logger: object) -> object:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    broken = types.SimpleNamespace(__version__="8.6.0", Builder=refused)
    with pytest.raises(EngineError, match=r"TensorRT 8.6.0 starts no builder .*its log above has the reason"):
        build_engine._builder(broken, None)
