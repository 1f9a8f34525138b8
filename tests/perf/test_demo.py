"""The demo goes on without what failed its gate, and builds no more than it shows."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

from rich.console import Console

from builders.core.recipe import load_recipes
from builders.core.workspace import Workspace
from builders.data.find import JudgedQueries, Product
from builders.evaluate.judge import BuiltRanker, BuiltVariant
from builders.publish.endpoints import DEFAULT_PUBLISHED
from builders.publish.manifest import Generation, Manifest, now, write_manifest
from perf.demo import FIRST, SHOWN, passed_endpoints, stored_quality, with_own_items
from perf.kit.data import DataSource
from perf.kit.served import can_serve
from perf.served_quality import inputs_fingerprint, write_quality
from tests.support.figures import served_quality

RECIPES = load_recipes()


def built(ranker: str, *failed: str) -> BuiltRanker:
    """The demo's variants of a ranker, without files."""
    variants = [each for each in RECIPES[ranker].variants if each.name in SHOWN[ranker]]
    return BuiltRanker(
        RECIPES[ranker],
        None,  # type: ignore[arg-type]
        [BuiltVariant(variant, {}, {"gate": ""}, variant.name not in failed) for variant in variants],
        JudgedQueries({}, {}, {}),
    )


def test_every_variant_of_the_demo_is_one_of_its_recipe_and_the_reference_is_among_them() -> None:
    for ranker, names in SHOWN.items():
        assert set(names) <= {variant.name for variant in RECIPES[ranker].variants}
        assert names[0] == RECIPES[ranker].variants[0].name
    assert f"{FIRST}_{SHOWN[FIRST][0]}" == DEFAULT_PUBLISHED["rank"]


def test_a_variant_that_fails_its_gate_is_told_in_one_line_and_left_out() -> None:
    text = io.StringIO()
    console = Console(file=text, width=60)
    endpoints = passed_endpoints([built("two_tower"), built("cross_encoder", "int8_onnx")], RECIPES, console)
    assert [endpoint.model for endpoint in endpoints] == ["two_tower_fp32_onnx", "cross_encoder_fp32_onnx"]
    [line] = text.getvalue().splitlines()
    assert line.startswith("cross_encoder_int8_onnx failed its gate")


def test_only_items_that_the_queries_rank_are_stored_for_them() -> None:
    products = {name: Product(name, name) for name in "abc"}
    judged = JudgedQueries({"q": "cup"}, products, {"q": {"c": 3, "a": 0}})
    assert list(with_own_items(judged).products) == ["c", "a"]


def test_figures_are_stored_for_the_same_number_of_queries_alone(tmp_path: Path) -> None:
    workspace = Workspace(build=tmp_path / "build", repository=tmp_path / "repository")
    source = DataSource(tmp_path, "option", "")
    found = dataclasses.replace(served_quality(), limit=49, inputs=inputs_fingerprint(tmp_path, workspace))
    write_quality(found, workspace)
    assert stored_quality(source, 49, workspace) == found
    assert stored_quality(source, 10, workspace) is None


def test_an_endpoint_whose_versions_are_not_there_cannot_be_served(tmp_path: Path) -> None:
    assert not can_serve(tmp_path, "rank")
    (tmp_path / "rank").mkdir()
    (tmp_path / "rank" / "config.pbtxt").write_text(
        'ensemble_scheduling { step { model_name: "scorer" model_version: 2 } }'
    )
    served = Generation(number=1, variant="scorer", steps={"scorer": 2}, since=now())
    write_manifest(tmp_path, Manifest(endpoints={"rank": [served]}))
    assert not can_serve(tmp_path, "rank")
    (tmp_path / "scorer" / "2").mkdir(parents=True)
    assert can_serve(tmp_path, "rank")
