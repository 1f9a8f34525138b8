"""Compression chains on a library's classifier, as on the kit's own rankers: built, gated, and still in one order."""

from __future__ import annotations

import numpy as np
import pytest

from builders.build import build_ranker
from builders.core.recipe import Recipe
from builders.core.workspace import Workspace
from builders.evaluate.judge import BuiltRanker
from tests.support.library_checkpoints import shop, write_classifier

STEPS = {
    "fp32_onnx": [],
    "int8_onnx": [{"step": "int8_network", "calibration_lists": 4, "lists": 0}],
    "int8_dynamic_onnx": [{"step": "dynamic_int8"}],
    "bf16_openvino": [{"step": "bf16"}],
    "fp16_onnx": [{"step": "fp16"}],
    "heads50_onnx": [{"step": "prune_heads", "amount": 0.5, "lists": 4}, {"step": "distill", "lists": 4, "batch": 2}],
    "channels_onnx": [{"step": "prune_channels", "amount": 0.5, "lists": 4}],
    "l1_onnx": [{"step": "prune_layers", "keep": [1]}, {"step": "distill", "lists": 4, "batch": 2}],
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltRanker:
    place = tmp_path_factory.mktemp("chains")
    recipe = Recipe.model_validate(
        {
            "ranker": "ours",
            "format": "cross_encoder",
            "checkpoint": write_classifier(place / "bert", "bert"),
            "text": {"item": "{title}"},
            "variants": [{"name": name, "steps": steps} for name, steps in STEPS.items()],
            "gate": {"max_judged_loss": 0.99, "min_fidelity_ndcg": 0.01, "fidelity_lists": 4},
            "reference": {"lists": 2},
        }
    )
    workspace = Workspace(place / "build", place / "models", place / "store")
    return build_ranker(recipe, shop(), lambda _: None, workspace)


@pytest.mark.parametrize("name", STEPS)
def test_the_chain_is_built_and_judged(built: BuiltRanker, name: str) -> None:
    variant = {one.variant.name: one for one in built.variants}[name]
    assert variant.passed
    assert np.isfinite(variant.figures["ndcg_at_10"])
    exact = max(variant.figures["max_abs_difference_from_torch_by_query"].values())
    assert (exact <= 1e-4) == (name == "fp32_onnx") or name in ("fp16_onnx", "bf16_openvino")


def test_pruned_graphs_are_smaller(built: BuiltRanker) -> None:
    sizes = {one.variant.name: one.figures["size_bytes"] for one in built.variants}
    assert sizes["l1_onnx"] < sizes["fp32_onnx"] and sizes["channels_onnx"] < sizes["fp32_onnx"]
    assert sizes["heads50_onnx"] < sizes["fp32_onnx"]
