"""What is stored of a build is measured anew when anything changed that it was computed from, and only then."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.build import build_variants
from builders.core.recipe import Postprocess, Recipe, Variant
from builders.core.steps import DynamicInt8, Int8, PruneChannels
from builders.core.workspace import Workspace
from builders.data.beir import JudgedQueries
from builders.evaluate import judge
from builders.evaluate.judge import BuiltVariant
from tests.support import tiny_xlm_roberta
from tests.support.tiny_xlm_roberta import Built

Change = Callable[[Recipe], Recipe]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_xlm_roberta.built(tmp_path_factory.getbasetemp())


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def build_again(built: Built, tmp_path: Path, said: list[str]) -> Callable[..., list[BuiltVariant]]:
    """In a copy of the folder that holds everything of the first build."""
    workspace = Workspace(build=shutil.copytree(built.workspace.build, tmp_path / "again"))

    def run(recipe: Recipe = built.recipe, data: JudgedQueries = built.judged) -> list[BuiltVariant]:
        said.clear()
        return build_variants(recipe, built.ranker, data, said.append, workspace)

    return run


@pytest.fixture
def build_fresh(built: Built, tmp_path: Path) -> Callable[..., list[BuiltVariant]]:
    """In a folder that holds the exported graph alone, which no data and no setting here changes."""

    def run(recipe: Recipe = built.recipe, data: JudgedQueries = built.judged) -> list[BuiltVariant]:
        workspace = Workspace(build=tmp_path / "fresh")
        folder = workspace.ranker_folder(recipe.ranker)
        folder.mkdir(parents=True)
        for exported in built.workspace.ranker_folder(recipe.ranker).glob("*_fp32_onnx.onnx*"):
            shutil.copy2(exported, folder)
        return build_variants(recipe, built.ranker, data, lambda _: None, workspace)

    return run


def figures(variants: list[BuiltVariant]) -> list[dict[str, Any]]:
    """What was measured, without what a second build may measure otherwise."""
    return [{name: value for name, value in each.figures.items() if name != "build_s"} for each in variants]


def other_products(data: JudgedQueries, **changes: Callable[[Any], Any]) -> JudgedQueries:
    """Every product with other values in some fields."""
    return dataclasses.replace(
        data,
        products={
            item_id: dataclasses.replace(
                product, **{name: change(getattr(product, name)) for name, change in changes.items()}
            )
            for item_id, product in data.products.items()
        },
    )


def test_nothing_is_measured_again_when_nothing_changed(build_again: Callable, said: list[str]) -> None:
    build_again()
    assert [line for line in said if "NDCG@10" not in line and "ndcg" not in line] == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda recipe: recipe.model_copy(update={"postprocess": Postprocess(head_weights=(-1.0,))}),
            id="head_weights",
        ),
        pytest.param(
            lambda recipe: recipe.model_copy(
                update={"gate": recipe.gate.model_copy(update={"fidelity_candidates": 5})}
            ),
            id="fidelity_candidates",
        ),
    ],
)
def test_a_changed_setting_gives_the_figures_of_a_first_build(
    built: Built, build_again: Callable, build_fresh: Callable, change: Change
) -> None:
    recipe = change(built.recipe)
    assert figures(build_again(recipe)) == figures(build_fresh(recipe))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"title": lambda title: title[::-1]}, id="titles"),
        pytest.param({"title": lambda title: title[::-1], "price": lambda _: 5.0}, id="titles and prices"),
    ],
)
def test_changed_products_give_the_figures_of_a_first_build(
    built: Built, build_again: Callable, build_fresh: Callable, changes: dict[str, Callable]
) -> None:
    data = other_products(built.judged, **changes)
    assert figures(build_again(data=data)) == figures(build_fresh(data=data))


@pytest.mark.parametrize("field", ["price", "brand", "fields"])
def test_every_field_of_a_product_counts(built: Built, build_again: Callable, said: list[str], field: str) -> None:
    changed = {"price": lambda _: 7.5, "brand": lambda _: "other", "fields": lambda _: {"stock": 3}}[field]
    build_again(data=other_products(built.judged, **{field: changed}))
    assert [line for line in said if "scoring" in line]
    assert len([line for line in said if "quality over" in line]) == 2


def one_product(data: JudgedQueries, **changes: Any) -> JudgedQueries:
    """The last product with other values."""
    *_, last = data.products.values()
    return dataclasses.replace(data, products={**data.products, last.item_id: dataclasses.replace(last, **changes)})


def other_grade(data: JudgedQueries) -> JudgedQueries:
    query_id, grades = next(iter(data.judgements.items()))
    item_id, grade = next(iter(grades.items()))
    return dataclasses.replace(data, judgements={**data.judgements, query_id: {**grades, item_id: 3 - grade}})


def other_query(data: JudgedQueries) -> JudgedQueries:
    query_id, text = next(iter(data.queries.items()))
    return dataclasses.replace(data, queries={**data.queries, query_id: f"{text} {text}"})


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: one_product(data, title="other"), id="the title of one product"),
        pytest.param(lambda data: one_product(data, text="other"), id="the text of one product"),
        pytest.param(lambda data: one_product(data, category=("other",)), id="the category of one product"),
        pytest.param(other_grade, id="a judgement"),
        pytest.param(other_query, id="a query"),
    ],
)
def test_scores_rankings_verdicts_and_the_reference_are_made_anew_for_other_data(
    built: Built, build_again: Callable, said: list[str], change: Callable[[JudgedQueries], JudgedQueries]
) -> None:
    build_again(data=change(built.judged))
    assert len([line for line in said if "scoring" in line and "torch" in line]) == 1
    assert len([line for line in said if "quality over" in line]) == 2
    assert len([line for line in said if "fidelity over" in line]) == 2  # the reference's own scores, and the variant's
    assert [line for line in said if line.startswith("reference: measured anew, as data changed")]
    assert [line for line in said if "int8 (" in line]  # calibration
    build_again(data=change(built.judged))
    assert not [line for line in said if "over" in line and "NDCG" not in line]


def test_another_processor_measures_anew(
    build_again: Callable, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "instruction_sets", lambda: ("x86_64", "another"))
    build_again()
    assert len([line for line in said if "measured anew, as processor changed" in line]) == 2


def test_int8_is_calibrated_anew_on_other_data(built: Built, build_again: Callable, said: list[str]) -> None:
    build_again(data=other_products(built.judged, title=lambda title: f"{title} {title}"))
    assert [line for line in said if "int8 (" in line]
    assert not [line for line in said if "exporting" in line]  # a network does not depend on the data


def test_a_step_that_reads_no_data_is_not_made_anew_for_other_data(
    built: Built, build_again: Callable, said: list[str]
) -> None:
    dynamic = Variant(name="dynamic_onnx", steps=(DynamicInt8(step="dynamic_int8"),))
    recipe = built.recipe.model_copy(update={"variants": (built.recipe.variants[0], dynamic)})
    build_again(recipe)
    build_again(recipe, other_products(built.judged, title=lambda title: f"{title} {title}"))
    assert not [line for line in said if "dynamic_int8" in line]


def test_telling_which_layers_cost_most_leaves_every_file_as_it_is(
    built: Built, tmp_path: Path, said: list[str]
) -> None:
    from builders.compress.sensitivity import sensitivity_table

    halved = (PruneChannels(step="prune_channels", amount=0.5, lists=2), Int8(calibration_queries=2))
    small = Variant(name="small_int8_onnx", steps=halved)
    recipe = built.recipe.model_copy(update={"variants": (built.recipe.variants[0], small)})
    workspace = Workspace(build=shutil.copytree(built.workspace.build, tmp_path / "build"))
    build_variants(recipe, built.ranker, built.judged, said.append, workspace)
    before = {path: path.read_bytes() for path in workspace.build.rglob("*") if path.is_file()}
    sensitivity_table(recipe, small, built.judged, said.append, workspace)
    after = {path: path.read_bytes() for path in workspace.build.rglob("*") if path.is_file()}
    assert after == before


def test_one_half_gates_and_the_other_is_reported_and_figures_say_which(built: Built, build_again: Callable) -> None:
    ids = list(built.judged.queries)
    splits = {query_id: "test" if place % 2 else "validation" for place, query_id in enumerate(ids)}
    reference, other = (each.figures for each in build_again(data=dataclasses.replace(built.judged, splits=splits))[:2])
    of_test = [reference["ndcg_at_10_by_query"][query_id] for query_id in ids[1::2]]
    assert (reference["half"], reference["queries"]) == ("test", len(of_test))
    assert reference["ndcg_at_10"] == pytest.approx(sum(of_test) / len(of_test))
    gating = {"half": "validation", "queries": len(ids[::2])}
    assert gating.items() <= reference["validation"].items() and other["report"]["judged"]["queries"] == len(ids[::2])
    assert {one["query_id"] for one in other["report"]["worst"]} <= set(ids[::2])
    assert other["gate"].endswith("on validation queries") or "Not published" in other["gate"]
    whole = build_again()[0].figures
    assert (whole["half"], whole["queries"]) == ("validation and test", len(ids))
