"""A recipe's ranker => its variants' files (:mod:`builders.compress.chain`), each judged in process and gated.

:mod:`builders.publish.endpoints` puts them into the model repository.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from builders.compress.chain import planned_files, variant_files
from builders.compress.context import Say, build_context
from builders.core.keeper import drop_unused
from builders.core.locks import only_writer
from builders.core.recipe import Recipe
from builders.core.workspace import PROJECT, Workspace
from builders.data.beir import JudgedQueries
from builders.data.bm25 import told_without_word
from builders.data.evaluation import halves, judging_queries, told_unanswerable
from builders.evaluate.judge import BuiltRanker, BuiltVariant, Judging, judged_variant, told_rounding, torch_scores
from builders.evaluate.reference import check_against_outside
from builders.features.text import check_item_fields
from builders.rankers.base import Ranker
from builders.rankers.load import load_ranker


def build_ranker(
    recipe: Recipe, data: JudgedQueries, say: Say = print, workspace: Workspace = PROJECT, **choice: Any
) -> BuiltRanker:
    """Load the recipe's ranker and build its variants. choice: as for :func:`build_variants`.

    Raises:
        TokenizerError: the recipe's [text] names a field that no item has.
        DatasetError: no query of the data may judge the ranker; nothing is built.
    """
    judging_queries(recipe, data)
    if recipe.text.item:
        check_item_fields(recipe.text.item, data.products.values())
    ranker = load_ranker(recipe)
    with only_writer(workspace.ranker_folder(recipe.ranker), f"what is built of {recipe.ranker}", say):
        return BuiltRanker(recipe, ranker, build_variants(recipe, ranker, data, say, workspace, **choice), data)


def build_variants(
    recipe: Recipe,
    ranker: Ranker,
    judged: JudgedQueries,
    say: Say = print,
    workspace: Workspace = PROJECT,
    *,
    wanted: Collection[str] = (),
    experimental: bool = False,
    fidelity_lists: int | None = None,
    plans: Mapping[str, Path] | None = None,
) -> list[BuiltVariant]:
    """Make, check and gate variants; what is there already is taken as it is.

    Args:
        wanted: names of variants that are built even if they are experimental.
        experimental: build all of them.
        fidelity_lists: in place of the recipe's gate's.
        plans: model name => TensorRT plan; variants for TensorRT whose plans are not there are left out.

    Raises:
        as :func:`builders.compress.chain.variant_files`.
    """
    for note in judged.notes:
        say(f"{recipe.ranker}: {note}")
    evaluated = judging_queries(recipe, judged)
    for told in filter(None, (halves(evaluated).told(), told_unanswerable(evaluated), told_without_word(evaluated))):
        say(f"{recipe.ranker}: {told}")
    by_torch = torch_scores(recipe, ranker, evaluated, say, workspace)
    if rounding := told_rounding(recipe, ranker, evaluated, workspace):
        say(rounding)
    lists = recipe.gate.fidelity_lists if fidelity_lists is None else fidelity_lists
    judging = Judging(evaluated, recipe, lists, by_torch)
    context = build_context(recipe, ranker, judged, say, workspace)
    built: list[BuiltVariant] = []
    for variant in recipe.variants:
        if variant.experimental and not experimental and variant.name not in wanted:
            continue
        made = (
            variant_files(context, variant)
            if not variant.runtime.needs_gpu
            else planned_files(context, variant, plans or {})
        )
        if made is None:
            continue
        if variant is recipe.variants[0]:
            check_against_outside(context, variant, made, evaluated)
        built.append(judged_variant(context, variant, made, judging))
        judging.reference = judging.reference or built[0].figures["rankings"]
        say(built[-1].figures["gate"])
    return built


def prune_steps(workspace: Workspace, days: float, say: Say = print) -> tuple[int, int]:
    """Remove what builds have kept between two steps of a variant and none has asked for in so many days: every
    training leaves its own. A build that wants one of them makes it again.

    Returns:
        (products, bytes).
    """
    dropped = freed = 0
    places = (workspace.build, *workspace.build.glob("retrain/*/build"))
    for steps in sorted(each for place in places for each in place.glob("rankers/*/steps")):
        with only_writer(steps.parent, f"what is built of {steps.parent.name}", say):
            count, size = drop_unused(steps, days)
        dropped, freed = dropped + count, freed + size
    return dropped, freed
