"""Scores from outside: a file of golden scores and the library's own, held against the reference variant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.build import build_ranker
from builders.core.recipe import Recipe, RecipeError
from builders.core.workspace import Workspace
from builders.data.beir import JudgedQueries
from builders.evaluate.reference import ReferenceMismatch
from builders.features.text import TokenizerError
from tests.support.library_checkpoints import shop, write_classifier

ITEMS = ("p1", "p2", "p3")


@pytest.fixture(scope="module")
def judged() -> JudgedQueries:
    return shop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("checkpoint") / "bert", "bert")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One for all tests here: the graph is exported once, as its inputs are the same."""
    place = tmp_path_factory.mktemp("workspace")
    return Workspace(place / "build", place / "models", place / "store")


def recipe(folder: Path, scores: Path | None = None, item: str = "{title}", lists: int = 0) -> Recipe:
    return Recipe.model_validate(
        {
            "ranker": "ours",
            "format": "cross_encoder",
            "checkpoint": folder,
            "text": {"item": item},
            "variants": [{"name": "fp32_onnx"}],
            "gate": {"fidelity_lists": 2},
            "reference": {"scores": scores, "lists": lists},
        }
    )


def written(path: Path, folder: Path, judged: JudgedQueries, **changed: float) -> Path:
    """As the ten lines in the documentation write it."""
    from sentence_transformers import CrossEncoder

    scores = CrossEncoder(str(folder), device="cpu").predict([("mug", judged.products[item].title) for item in ITEMS])
    given = dict(zip(ITEMS, map(float, scores), strict=True)) | changed
    path.write_text(json.dumps({"query": "mug", "scores": given}) + "\n")
    return path


def test_golden_scores_that_agree_are_counted(
    folder: Path, judged: JudgedQueries, workspace: Workspace, tmp_path: Path
) -> None:
    said: list[str] = []
    golden = written(tmp_path / "golden.jsonl", folder, judged)
    build_ranker(recipe(folder, golden, lists=2), judged, said.append, workspace)
    assert any("83 scores equal those from outside, largest difference" in line for line in said)  # 2 lists of 40


def test_the_worst_pair_is_shown_with_its_tokens(
    folder: Path, judged: JudgedQueries, workspace: Workspace, tmp_path: Path
) -> None:
    golden = written(tmp_path / "golden.jsonl", folder, judged, p2=0.25)
    with pytest.raises(ReferenceMismatch) as refused:
        build_ranker(recipe(folder, golden), judged, lambda _: None, workspace)
    told = str(refused.value)
    assert "golden.jsonl:1 gives 0.25, the reference variant" in told
    assert "query 'mug' and item 'p2'" in told and judged.products["p2"].title in told
    assert "it reads [CLS]" in told and "[SEP]" in told


def test_another_template_than_the_trainings_is_found(
    folder: Path, judged: JudgedQueries, workspace: Workspace, tmp_path: Path
) -> None:
    golden = written(tmp_path / "golden.jsonl", folder, judged)
    with pytest.raises(ReferenceMismatch, match=r"Mend \[text\] in the recipe"):
        build_ranker(recipe(folder, golden, item="{title}. {brand}"), judged, lambda _: None, workspace)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "golden.jsonl:1: .*wanted"),
        ('{"query": "mug"}', "golden.jsonl:1: .*scores"),
        ('{"query": "mug", "scores": {"p1": 1}, "top": 1}', "golden.jsonl:1: .*top"),
        ('{"query": "mug", "scores": {"nothing": 1}}', "item 'nothing' is not in the corpus"),
    ],
)
def test_a_broken_line_is_named(
    folder: Path, judged: JudgedQueries, workspace: Workspace, tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "golden.jsonl").write_text(line)
    with pytest.raises(RecipeError, match=message):
        build_ranker(recipe(folder, tmp_path / "golden.jsonl"), judged, lambda _: None, workspace)


def test_a_file_that_is_not_there_is_named(folder: Path, judged: JudgedQueries, workspace: Workspace) -> None:
    with pytest.raises(RecipeError, match=r"no file /nowhere/golden\.jsonl"):
        build_ranker(recipe(folder, Path("/nowhere/golden.jsonl")), judged, lambda _: None, workspace)


def test_a_template_with_a_field_that_no_item_has_is_refused_before_the_build(
    folder: Path, judged: JudgedQueries, workspace: Workspace
) -> None:
    with pytest.raises(ValueError, match=r"no item of the corpus has the field colour; wanted some of .*color"):
        build_ranker(recipe(folder, item="{title} {colour}"), judged, lambda _: None, workspace)


def test_what_is_no_template_is_refused_before_the_build(
    folder: Path, judged: JudgedQueries, workspace: Workspace
) -> None:
    with pytest.raises(TokenizerError, match=r"\[text\] item: template '\{title'"):
        build_ranker(recipe(folder, item="{title"), judged, lambda _: None, workspace)
