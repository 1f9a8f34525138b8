"""Which form of an endpoint is published, and what the fused form's files say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn
from tritonclient.grpc import model_config_pb2 as triton

from builders.core.contract import CONTEXT, ITEM_IDS, KNOWN, RANK, SCORE, Contract, Tensor
from builders.core.faults import RecipeError
from builders.core.recipe import Recipe, Serving, Variant, load_recipe
from builders.core.runtimes import ONNX, OPENVINO
from builders.core.workspace import Workspace
from builders.publish import model_config
from builders.publish.fused import WINS_BY, FormFigures, FormsReport, form_of, forms_file, fused_model
from builders.publish.manifest import Generation, Manifest, PublishedVersion, RepositoryError
from builders.publish.postprocessing import postprocess_contract
from builders.publish.repository import Ensemble, ServedModel
from builders.rankers.base import Graph

NUMBERS = Tensor("numbers", "FP32", ("candidates", 2), "")
GRAPH = Graph("mugs", nn.Identity(), Contract("mugs", (NUMBERS,), (SCORE,)), batches=True, max_batch_size=512)
SERVING = Serving(instances=3, threads=2)
FP32, OF_OPENVINO = Variant(name="fp32_onnx"), Variant(name="fp32_openvino")


def steps(backend: str = "onnx") -> list[ServedModel]:
    """Pre-processing, a scorer, post-processing; without weights."""
    pre = Contract("mugs_preprocess", (ITEM_IDS, CONTEXT), (NUMBERS, KNOWN), {"item_features": "mugs"})
    post = dataclasses.replace(postprocess_contract(), name="mugs_postprocess")
    runtime = {"onnx": ONNX, "openvino": OPENVINO}[backend]
    config = model_config.runtime_config(GRAPH, f"mugs_fp32_{backend}", SERVING, runtime)
    scorer = dataclasses.replace(GRAPH.contract, name=config.name)
    return [
        ServedModel(model_config.python_config(pre), pre, {"model.py": "pre"}),
        ServedModel(config, scorer, {"model.onnx": "weights"}, {"recipe": "recipes/mugs.toml", "passed": True}),
        ServedModel(model_config.python_config(post), post, {"model.py": "post"}),
    ]


# ---------------------------------------------------------------- what it is
def test_a_fused_model_holds_each_steps_version_folder_and_the_scorers_code() -> None:
    fused = fused_model(steps(), RANK, instances=3)
    assert fused.name == "mugs_fp32_onnx_fused"
    assert fused.contract.parameters["steps"] == ["mugs_preprocess", "mugs_fp32_onnx", "mugs_postprocess"]
    assert fused.built_from == {"recipe": "recipes/mugs.toml", "passed": True}
    for step in steps():
        held = {name: fused.version_files[f"{step.name}/{name}"] for name in step.version_files}
        assert held == step.version_files
    assert {"mugs_fp32_onnx/model.py", "mugs_fp32_onnx/batching.py", "model.py"} <= fused.version_files.keys()
    assert (fused.config.backend, fused.config.instance_group[0].count) == ("python", 3)
    assert {tensor.name for tensor in fused.config.input} >= {"item_ids", "context", "top_k"}


def test_the_scorer_gets_its_configuration_as_a_backend_does() -> None:
    handed = json.loads(str(fused_model(steps(), RANK, 1).version_files["mugs_fp32_onnx/model_config.json"]))
    assert handed["max_batch_size"] == 512
    assert [(tensor["name"], tensor["data_type"]) for tensor in handed["input"]] == [("numbers", "TYPE_FP32")]
    assert handed["parameters"]["max_rows_per_run"]["string_value"]
    [sample] = handed["model_warmup"]
    assert [int(dim) for dim in sample["inputs"]["numbers"]["dims"]] == [2]


def test_endpoints_of_both_forms_have_one_contract() -> None:
    fused = fused_model(steps(), RANK, 1)
    one, all_steps = [fused.contract], [step.contract for step in steps()]
    assert model_config.endpoint_contract("rank", RANK, one) == model_config.endpoint_contract("rank", RANK, all_steps)


def test_tuning_changes_its_instances_and_threads_and_is_carried_over() -> None:
    config = fused_model(steps(), RANK, 3).config
    tuned = model_config.tune(config, instances=5, threads=9)
    assert tuned.instance_group[0].count == 5
    assert tuned.parameters["intra_op_thread_count"].string_value == "9"
    assert model_config.with_tuning_of(config, tuned) == tuned
    pre: triton.ModelConfig = steps()[0].config
    assert model_config.tune(pre, instances=5, threads=9) == pre


def test_a_scorer_that_runs_in_a_process_of_its_own_alone_is_refused() -> None:
    with pytest.raises(RepositoryError, match=r"backend 'openvino' .* wanted one of onnxruntime; set form = .ensemble"):
        fused_model(steps("openvino"), RANK, 1)


def test_its_variant_and_what_it_was_built_from_are_the_scorers() -> None:
    assert Ensemble("rank", ["mugs_fp32_onnx_fused"], RANK).variant == "mugs_fp32_onnx"
    generation = Generation(number=2, variant="mugs_fp32_onnx", steps={"mugs_fp32_onnx_fused": 1}, since="today")
    version = PublishedVersion(built_from={"recipe": "mugs"}, since="today")
    manifest = Manifest(models={"mugs_fp32_onnx_fused": {1: version}})
    assert manifest.built_from(generation) == {"recipe": "mugs"}
    assert manifest.scorers == {"mugs_fp32_onnx"}


# ---------------------------------------------------------------- which form is published
@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "build", tmp_path / "models", tmp_path / "store")


def recipe(**serving: object) -> Recipe:
    return Recipe(
        ranker="mugs", module="mugs.py:Mugs", variants=(FP32, OF_OPENVINO),
        serving=Serving.model_validate({"instances": 2, "threads": 1, **serving}),
    )  # fmt: skip


@pytest.fixture
def measured(workspace: Workspace) -> Callable[[float], None]:
    """Keeps that the fused form answers so many times as many requests."""

    def keep(ratio: float) -> None:
        figures = FormFigures(
            ratio=ratio, ratio_low=ratio, ratio_high=ratio, ensemble_per_s=1, fused_per_s=1, ensemble_p50_ms=1,
            fused_p50_ms=1,
        )  # fmt: skip
        report = FormsReport(
            ranker="mugs", written="today", machine={}, instances=2, threads=1, concurrency=4,
            variants={"mugs_fp32_onnx": figures},
        )  # fmt: skip
        path = forms_file("mugs", workspace)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report.model_dump_json())

    return keep


@pytest.mark.parametrize(
    ("serving", "ratio", "form"),
    [
        ({}, None, "ensemble"),
        ({}, WINS_BY, "ensemble"),
        ({}, WINS_BY + 0.01, "fused"),
        ({"form": "ensemble"}, 2.0, "ensemble"),
        ({"form": "fused"}, 0.5, "fused"),
        ({"max_queue_size": 8}, 2.0, "ensemble"),
        ({"response_cache": True}, 2.0, "ensemble"),
        ({"threads": 2}, 2.0, "ensemble"),
    ],
)
def test_the_form_is_what_the_recipe_says_or_what_was_measured_to_win(
    workspace: Workspace, measured: Callable[[float], None], serving: dict[str, object], ratio: float, form: str
) -> None:
    if ratio is not None:
        measured(ratio)
    assert form_of(recipe(**serving), FP32, workspace)[0] == form
    assert form_of(recipe(**serving), OF_OPENVINO, workspace)[0] == "ensemble"


def test_what_is_published_otherwise_than_asked_or_measured_is_said(
    workspace: Workspace, measured: Callable[[float], None]
) -> None:
    measured(1.42)
    assert form_of(recipe(), FP32, workspace)[1] == (
        "mugs_fp32_onnx is published as one fused model: fused it answers 1.42 times the ensemble's requests/s"
    )
    assert "measured with other [serving]; 'python -m perf forms" in form_of(recipe(threads=4), FP32, workspace)[1]
    assert "openvino runs in no process but its own" in form_of(recipe(form="fused"), OF_OPENVINO, workspace)[1]
    assert form_of(recipe(form="ensemble"), OF_OPENVINO, workspace)[1] == ""


def test_figures_of_another_version_are_refused_with_what_to_run(
    workspace: Workspace, measured: Callable[[float], None]
) -> None:
    measured(1.2)
    path = forms_file("mugs", workspace)
    path.write_text(path.read_text().replace("instances", "copies"))
    with pytest.raises(RepositoryError, match=r"2 fields are not as this version .* run 'python -m perf forms"):
        form_of(recipe(), FP32, workspace)


def test_a_fused_form_with_a_bounded_queue_is_refused(tmp_path: Path) -> None:
    text = 'ranker = "mugs"\nmodule = "mugs.py:Mugs"\n[serving]\ninstances = 2\nmax_queue_size = 8\nform = "fused"\n'
    (tmp_path / "mugs.toml").write_text(text + '[[variants]]\nname = "fp32_onnx"\n')
    with pytest.raises(RecipeError, match="max_queue_size 8 with form 'fused', wanted no bound or form 'ensemble'"):
        load_recipe(tmp_path / "mugs.toml")
