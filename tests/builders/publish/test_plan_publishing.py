"""Finished plans on their way to the server: engines => gate => repository => what a machine without a GPU serves.

TensorRT is fake: a "plan" here is the ONNX file that it would be built from, and runs in ONNX Runtime.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpc

from builders.build import build_variants
from builders.core.files import sha256
from builders.core.recipe import OwnLimits, Recipe, Variant
from builders.core.runtimes import RUNTIMES, TRT
from builders.core.runtimes.onnx import OnnxSession
from builders.core.steps import Fp16, PruneMagnitude
from builders.core.workspace import Workspace
from builders.engines import build_all as engines
from builders.engines import of_recipe as engine_variants
from builders.engines import parity as engine_parity
from builders.engines.build import BuildOptions, EngineError
from builders.engines.gpu import Gpu
from builders.engines.of_recipe import build_plans
from builders.engines.profiles import profiles_of
from builders.evaluate.judge import BuiltRanker, BuiltVariant
from builders.export.plan_manifest import EngineManifest, read_manifest, write_manifest
from builders.publish import pbtxt
from builders.publish.endpoints import publish_rankers
from builders.publish.manifest import read_manifest as read_published
from server import TritonServer
from tests.support import tiny_xlm_roberta
from tests.support.endpoint import rank
from tests.support.tiny_xlm_roberta import Built

GPU = Gpu("a fake GPU", "9.0", "550.54.15", "12.4")
TENSORRT = "11.4.0.106"
FP32, FP16 = Variant(name="fp32_trt"), Variant(name="fp16_trt", steps=(Fp16(step="fp16"),))


def fake_engine(onnx_file: Path, target: Path, profiles: Any, options: Any, **named: Any) -> EngineManifest:
    """In the place of ``engine_from_onnx``: a copy, with a real build's manifest."""
    shutil.copy(onnx_file, target)
    shapes = [profile.to_json() for profile in profiles]
    manifest = EngineManifest(
        TENSORRT, "12.4", GPU.driver, GPU.compute_capability, GPU.name, sha256(onnx_file), shapes, 1.0,
        target.stat().st_size, dataclasses.asdict(options), named["fallback"],
    )  # fmt: skip
    write_manifest(target, manifest)
    return manifest


class FakePlanSession(OnnxSession):
    """In the place of ``PlanSession``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, threads=1, precision="fp16")


def fake_runner(plan: Path, profile: int) -> Any:
    """In the place of Polygraphy's runner of a plan."""
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    return OnnxrtRunner(SessionFromOnnx(str(plan), providers=["CPUExecutionProvider"]), name="fake")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_xlm_roberta.built(tmp_path_factory.getbasetemp())


@pytest.fixture
def workspace(built: Built, tmp_path: Path) -> Workspace:
    """A copy of a finished build, to which plans come."""
    return Workspace(
        shutil.copytree(built.workspace.build, tmp_path / "build"),
        shutil.copytree(built.workspace.repository, tmp_path / "models"),
        built.workspace.item_store,
    )


Planned = Callable[..., tuple[Recipe, dict[str, Path], list[BuiltVariant]]]


@pytest.fixture
def planned(built: Built, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Planned:
    """Builds the plans of these variants and gates them, as ``builders engines`` does."""
    monkeypatch.setattr(engines, "skipped_engines", lambda require, models: "")
    monkeypatch.setattr(engines, "tensorrt_version", lambda: TENSORRT)
    monkeypatch.setattr(engines, "visible_gpu", lambda: GPU)
    monkeypatch.setattr(engines, "engine_from_onnx", fake_engine)
    monkeypatch.setattr(engine_variants, "evaluation_data", lambda kind, folder: built.judged)
    fake = dataclasses.replace(TRT, open=lambda path, threads, precision: FakePlanSession(path))
    monkeypatch.setitem(RUNTIMES, TRT.name, fake)
    monkeypatch.setattr(engine_parity, "_plan_runner", fake_runner)

    def run(
        *variants: Variant, options: BuildOptions | None = None
    ) -> tuple[Recipe, dict[str, Path], list[BuiltVariant]]:
        recipe = built.recipe.model_copy(update={"variants": (*built.recipe.variants, *variants)})
        plans = build_plans([recipe], workspace.build, lambda _: None, workspace, options=options)
        found = build_variants(recipe, built.ranker, built.judged, lambda _: None, workspace, plans=plans)
        return recipe, plans, found

    return run


def publish(built: Built, recipe: Recipe, variants: list[BuiltVariant], workspace: Workspace, **published: str) -> None:
    publish_rankers([BuiltRanker(recipe, built.ranker, variants, built.judged)], published, "made up",
                    lambda _: None, workspace)  # fmt: skip


def test_every_plan_is_built_from_the_kernels_of_the_libraries_that_are_named(planned: Planned) -> None:
    _, plans, _ = planned(FP32, FP16, options=BuildOptions(tactic_sources=("JIT_CONVOLUTIONS",)))
    options = [read_manifest(plan).options for plan in plans.values()]
    assert [one["tactic_sources"] for one in options] == [["JIT_CONVOLUTIONS"]] * 2
    assert sorted(one["precision"] for one in options) == ["fp16", "fp32"]


def test_every_plan_is_gated_as_its_own_and_published_with_its_manifest(
    built: Built, planned: Planned, workspace: Workspace
) -> None:
    recipe, plans, variants = planned(FP32, FP16)
    assert set(plans) == {"cross_encoder_fp32_trt", "cross_encoder_fp16_trt"}
    by_name = {variant.variant.name: variant for variant in variants}
    assert by_name["fp16_trt"].models["cross_encoder"] == ("cross_encoder_fp16_trt", plans["cross_encoder_fp16_trt"])
    assert by_name["fp16_trt"].figures["report"]["fidelity"]["lists"] == 4
    assert by_name["fp16_trt"].figures["max_abs_difference_from_torch_by_query"] != by_name["fp32_trt"].figures[
        "max_abs_difference_from_torch_by_query"
    ]  # fmt: skip

    publish(built, recipe, variants, workspace)
    for name, plan in plans.items():
        served = workspace.repository / name / "1"
        assert (served / "model.plan").read_bytes() == plan.read_bytes()
        assert read_manifest(served / "model.plan").fallback == "cross_encoder_fp32_onnx"
        config = pbtxt.parse((workspace.repository / name / "config.pbtxt").read_text(encoding="utf-8"))
        assert config.backend == "tensorrt"
        profiles = [profile for group in config.instance_group for profile in group.profile]
        assert profiles == [str(place) for place in range(len(profiles_of(built.ranker.graphs[0])))]
    manifest = read_published(workspace.repository)
    assert {f"cross_encoder_fp16_trt/1/{name}" for name in ("model.plan", "model.plan.json")} <= set(manifest.files)
    assert manifest.models["cross_encoder_fp16_trt"][1].built_from["passed"] is True


def test_a_plan_that_fails_its_gate_stays_out(built: Built, planned: Planned, workspace: Workspace) -> None:
    zeroed = PruneMagnitude(step="prune_magnitude", amount=0.9)
    recipe, plans, variants = planned(
        Variant(name="zeroed_trt", steps=(zeroed,), gate=OwnLimits(min_fidelity_ndcg=1.0))
    )
    assert set(plans) == {"cross_encoder_zeroed_trt"}  # it computes what its graph says
    assert [variant.passed for variant in variants] == [True, True, False]
    publish(built, recipe, variants, workspace)
    assert not (workspace.repository / "cross_encoder_zeroed_trt").exists()
    assert not (workspace.repository / "rank_cross_encoder_zeroed_trt").exists()


def test_a_plan_that_does_not_compute_its_graph_is_neither_kept_nor_published(
    built: Built, planned: Planned, workspace: Workspace
) -> None:
    def another_network(onnx_file: Path, target: Path, *given: Any, **named: Any) -> EngineManifest:
        manifest = fake_engine(onnx_file, target, *given, **named)
        shutil.copy(workspace.build / "rankers" / "cross_encoder" / "cross_encoder_shifted.onnx", target)
        return manifest

    model = onnx.load(built.variants[0].models["cross_encoder"][1])
    score = model.graph.output[0].name
    last = next(node for node in model.graph.node if score in node.output)
    last.output[list(last.output).index(score)] = "unshifted"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "one"))
    model.graph.node.append(onnx.helper.make_node("Add", ["unshifted", "one"], [score]))
    onnx.save(model, workspace.build / "rankers" / "cross_encoder" / "cross_encoder_shifted.onnx")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(EngineError, match=r"1 of 1 engines not built.*at min"):
        patch.setattr(engines, "engine_from_onnx", another_network)
        planned(FP32)
    assert not list((workspace.build / "engines").rglob("model.plan"))


def test_without_plans_their_variants_are_left_out(built: Built, workspace: Workspace) -> None:
    recipe = built.recipe.model_copy(update={"variants": (*built.recipe.variants, FP16)})
    found = build_variants(recipe, built.ranker, built.judged, lambda _: None, workspace)
    assert [variant.variant.name for variant in found] == ["fp32_onnx", "int8_onnx"]


@pytest.mark.server
def test_a_published_plan_is_answered_for_by_its_fallback_where_there_is_no_gpu(
    built: Built, planned: Planned, workspace: Workspace
) -> None:
    recipe, _, variants = planned(FP16)
    publish(built, recipe, variants, workspace, rank="cross_encoder_fp16_trt")
    item_ids = list(built.judged.products)[:20]
    answers: Mapping[str, Any] = {}
    with (
        TritonServer(workspace.repository, ["rank", "rank_cross_encoder_fp32_onnx"], store=workspace.item_store,
                     grpc_port=0, http_port=0, metrics_port=0) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):  # fmt: skip
        answers = {
            name: rank(client, name, "红色咖啡杯", item_ids) for name in ("rank", "rank_cross_encoder_fp32_onnx")
        }
    assert answers["rank"] == answers["rank_cross_encoder_fp32_onnx"]
