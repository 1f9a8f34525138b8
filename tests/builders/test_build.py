"""A recipe from start to end on a tiny ranker: what is built, kept, gated and published."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.build import build_variants
from builders.core.recipe import Gate, OwnLimits, RecipeError
from builders.core.runtimes import open_session
from builders.core.workspace import Workspace
from builders.data.beir import Request
from builders.data.find import Product
from builders.evaluate.judge import BuiltRanker, BuiltVariant, score_in_process
from builders.publish.catalogue import add_items, fill_item_store
from builders.publish.endpoints import DEFAULT_PUBLISHED, publish_rankers, published_variants
from builders.publish.item_store import ItemStore
from builders.publish.manifest import read_manifest
from tests.support import tiny_xlm_roberta
from tests.support.tiny_xlm_roberta import Built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_xlm_roberta.built(tmp_path_factory.getbasetemp())


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def rebuild(built: Built, said: list[str]) -> Callable[[], list[BuiltVariant]]:
    """Builds again in the same workspace; what is said shows what was done."""

    return lambda: build_variants(built.recipe, built.ranker, built.judged, said.append, built.workspace)


def test_what_is_built_is_taken_as_it_is(built: Built, rebuild: Callable, said: list[str]) -> None:
    assert rebuild() == built.variants
    assert len(said) == 3  # what judges, a gate's answer for each variant; no export, calibration or measurement
    assert all("NDCG" in line for line in said)


def test_a_missing_file_is_built_anew_and_is_the_same(built: Built, rebuild: Callable, said: list[str]) -> None:
    path = built.variants[1].models["cross_encoder"][1]
    before = path.read_bytes()
    path.unlink()
    rebuild()
    assert path.read_bytes() == before
    assert [line for line in said if "cross_encoder_int8_onnx: int8 (" in line]
    assert not [line for line in said if "exporting" in line]


def test_figures_compare_every_query_with_torch(built: Built) -> None:
    fp32, int8 = (variant.figures for variant in built.variants)
    assert fp32["queries"] == len(fp32["ndcg_at_10_by_query"]) == len(built.judged.queries)
    assert max(fp32["max_abs_difference_from_torch_by_query"].values()) < 1e-4
    assert max(int8["max_abs_difference_from_torch_by_query"].values()) > 1e-4
    assert fp32["ndcg_at_10"] == pytest.approx(np.mean(list(fp32["ndcg_at_10_by_query"].values())))


def test_scores_in_process_are_torchs(built: Built) -> None:
    products = list(built.judged.products.values())[:5]
    _, path = built.variants[0].models["cross_encoder"]
    asked = Request("茶壶")
    found = score_in_process(built.ranker, {"cross_encoder": open_session(path)}, asked, products)
    assert found[:, 0] == pytest.approx(built.ranker.score(asked, products), abs=1e-4)


# ---------------------------------------------------------------- publishing
def test_a_variant_that_fails_its_gate_is_not_published(built: Built, tmp_path: Path) -> None:
    passed, failed = built.variants[0], dataclasses.replace(built.variants[1], passed=False)
    rankers = [BuiltRanker(built.recipe, built.ranker, [passed, failed], built.judged)]
    workspace = Workspace(tmp_path / "build", tmp_path / "models", tmp_path / "store")
    publish_rankers(rankers, {"rank": "cross_encoder_fp32_onnx"}, "", workspace=workspace)
    assert (workspace.repository / "rank_cross_encoder_fp32_onnx").exists()
    assert not (workspace.repository / "rank_cross_encoder_int8_onnx").exists()
    assert not (workspace.repository / "cross_encoder_int8_onnx").exists()
    with pytest.raises(RecipeError, match="'cross_encoder_int8_onnx' is no variant that passed its gate; wanted"):
        publish_rankers(rankers, {"rank": "cross_encoder_int8_onnx"}, "", workspace=workspace)


def test_a_forced_variant_is_published_and_the_manifest_says_that_it_failed(built: Built, tmp_path: Path) -> None:
    passed, failed = built.variants[0], dataclasses.replace(built.variants[1], passed=False)
    rankers = [BuiltRanker(built.recipe, built.ranker, [passed, failed], built.judged)]
    workspace = Workspace(tmp_path / "build", tmp_path / "models", tmp_path / "store")
    publish_rankers(
        rankers, {"rank": "cross_encoder_fp32_onnx"}, "", workspace=workspace, forced=["cross_encoder_int8_onnx"]
    )
    models = read_manifest(workspace.repository).models
    assert models["cross_encoder_int8_onnx"][1].built_from["passed"] is False
    assert models["cross_encoder_fp32_onnx"][1].built_from["passed"] is True


@pytest.fixture
def judge(built: Built, tmp_path: Path, said: list[str]) -> Callable[[Gate, OwnLimits], BuiltVariant]:
    """The INT8 variant behind other limits, in a copy of the workspace."""
    workspace = Workspace(build=shutil.copytree(built.workspace.build, tmp_path / "build"))

    def run(limits: Gate, own: OwnLimits) -> BuiltVariant:
        said.clear()
        reference, int8 = built.recipe.variants
        variants = (reference, int8.model_copy(update={"gate": own}))
        recipe = built.recipe.model_copy(update={"gate": limits, "variants": variants})
        fp32, int8_built = build_variants(recipe, built.ranker, built.judged, said.append, workspace)
        assert fp32.passed
        return int8_built

    return run


def limits_at(built: Built, share_of_fidelity: float) -> Gate:
    fidelity = built.variants[1].figures["report"]["fidelity"]["ndcg"]
    return built.recipe.gate.model_copy(update={"min_fidelity_ndcg": fidelity * share_of_fidelity})


@pytest.mark.parametrize(("share", "passes"), [(1.0, True), (1 + 1e-6, False)])
def test_other_limits_judge_what_was_measured(
    built: Built, judge: Callable, said: list[str], share: float, passes: bool
) -> None:
    found = judge(limits_at(built, share), OwnLimits())
    assert found.passed == passes
    assert [line for line in said if "NDCG" not in line] == []  # nothing is measured anew
    assert found.figures["report"] == built.variants[1].figures["report"]


def test_a_variant_passes_by_limits_of_its_own_and_says_so(built: Built, judge: Callable) -> None:
    found = judge(limits_at(built, 1.01), OwnLimits(min_fidelity_ndcg=0.125))
    assert found.passed
    assert found.figures["gate"].endswith(": passed by limits of its own, min_fidelity_ndcg 0.125")


@pytest.mark.parametrize("missing", ["kendall_tau", "not_finite"])
def test_figures_of_another_versions_form_are_measured_anew(
    built: Built, tmp_path: Path, said: list[str], missing: str
) -> None:
    workspace = Workspace(build=shutil.copytree(built.workspace.build, tmp_path / "build"))
    for state in (workspace.ranker_folder(built.recipe.ranker) / f"{name}.json" for name in ("fp32_onnx", "int8_onnx")):
        figures = json.loads(state.read_text(encoding="utf-8"))
        figures.pop(missing, None)
        figures.get("report", {}).pop(missing, None)
        state.write_text(json.dumps(figures), encoding="utf-8")
    found = build_variants(built.recipe, built.ranker, built.judged, said.append, workspace)
    times = {"build_s": built.variants[1].figures["build_s"]}  # of the file, which another test makes anew
    assert {**found[1].figures, **times} == built.variants[1].figures
    assert "cross_encoder_int8_onnx: quality over 8 judged queries" in said


def test_another_metric_is_measured_anew(built: Built, judge: Callable, said: list[str]) -> None:
    limits = built.recipe.gate.model_copy(update={"metric": "hit_rate"})
    assert judge(limits, OwnLimits()).figures["report"]["metric"] == "hit_rate"
    assert [line for line in said if "quality over" in line]


def test_trials_are_built_by_name_or_all_together(built: Built, tmp_path: Path) -> None:
    workspace = Workspace(build=shutil.copytree(built.workspace.build, tmp_path / "build"))
    reference, int8 = built.recipe.variants
    recipe = built.recipe.model_copy(update={"variants": (reference, int8.model_copy(update={"experimental": True}))})

    def names(**choice: Any) -> list[str]:
        found = build_variants(recipe, built.ranker, built.judged, lambda _: None, workspace, **choice)
        return [variant.variant.name for variant in found]

    assert names() == ["fp32_onnx"]
    assert names(wanted=["int8_onnx"]) == names(experimental=True) == ["fp32_onnx", "int8_onnx"]


def test_the_manifest_says_what_every_model_was_built_from(built: Built) -> None:
    manifest = read_manifest(built.workspace.repository)
    assert {"torch", "onnx", "onnxruntime", "python"} <= set(manifest.libraries)
    built_from = manifest.models["cross_encoder_int8_onnx"][1].built_from
    assert built_from["data"] == "made up"
    assert built_from["recipe"] == "recipes/cross_encoder.toml"
    assert built_from["variant"]["steps"][0]["calibration_queries"] == 2
    assert built_from["passed"] is True
    assert "lower end" in built_from["gate"]
    assert set(built_from["checkpoint"]) == {path.name for path in built.ranker.checkpoint_files}
    assert "cross_encoder_int8_onnx/1/model.onnx" in manifest.files
    assert set(manifest.endpoints) == {"rank", "rank_cross_encoder_fp32_onnx", "rank_cross_encoder_int8_onnx"}


def test_rank_serves_the_published_variant(built: Built) -> None:
    assert published_variants(built.workspace)["rank"] == "cross_encoder_fp32_onnx"


def test_an_empty_repository_would_publish_the_kits_default(tmp_path: Path) -> None:
    assert published_variants(Workspace(repository=tmp_path)) == DEFAULT_PUBLISHED


# ---------------------------------------------------------------- item store
def test_only_missing_items_are_computed(built: Built, tmp_path: Path, said: list[str]) -> None:
    workspace = Workspace(item_store=tmp_path)
    products = list(built.judged.products.values())
    for count in (10, 12, 12):
        data = dataclasses.replace(built.judged, products={each.item_id: each for each in products[:count]})
        fill_item_store([BuiltRanker(built.recipe, built.ranker, [], data)], said.append, workspace)
    assert said == [
        "item store: features of 10 items for cross_encoder",
        "item store: cross_encoder: 10 added, 0 changed, 0 removed, 0 unchanged",
        "item store: features of 2 items for cross_encoder",
        "item store: cross_encoder: 2 added, 0 changed, 0 removed, 10 unchanged",
        "item store: cross_encoder: 0 added, 0 changed, 0 removed, 12 unchanged",
    ]


def test_an_added_item_is_in_the_table_that_the_model_reads(built: Built, tmp_path: Path) -> None:
    add_items([built.ranker], [Product("new", "红色咖啡杯")], Workspace(item_store=tmp_path))
    with ItemStore(tmp_path) as store:
        assert store.ids("cross_encoder", built.ranker.preprocess.parameters["item_features_version"]) == {"new"}
