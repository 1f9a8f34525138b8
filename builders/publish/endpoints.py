"""Built rankers => model repository: steps, endpoints, and which variant ``rank`` serves.

Knows nothing of how a variant was built or judged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from builders.compress.context import Say
from builders.core.contract import ENDPOINTS, Contract
from builders.core.files import sha256
from builders.core.recipe import SIMILAR_BY, Recipe, RecipeError, Variant
from builders.core.runtimes import runtime_of
from builders.core.versions import libraries
from builders.core.workspace import PROJECT, SERVED_CODE, SHARED_CODE, Workspace
from builders.evaluate.judge import BuiltRanker, BuiltVariant
from builders.export.onnx import OPSET
from builders.publish import model_config
from builders.publish.canary import endpoint_canary, similar_canary
from builders.publish.catalogue import items_table, stores_items
from builders.publish.fused import form_of, fused_model
from builders.publish.item_store import ItemStore
from builders.publish.manifest import RepositoryError
from builders.publish.postprocessing import postprocess_contract, similar_contract
from builders.publish.prune import prune_tables
from builders.publish.repository import (
    Ensemble,
    ServedModel,
    publish_models,
    published_names,
    served_variant,
)
from builders.publish.similar_index import SEARCH_CODE, SimilarPlan, plan_index
from builders.rankers.base import Ranker
from builders.rankers.feature_ranker import FeatureRanker

DEFAULT_PUBLISHED = {"rank": "two_tower_fp32_onnx", "recommend": "sasrec_fp32_onnx"}
"""Of the kit's own rankers the best on what may judge them; the quicker one where there is no telling."""


def publish_rankers(
    rankers: Sequence[BuiltRanker],
    published: Mapping[str, str],
    data_note: str,
    say: Say = print,
    workspace: Workspace = PROJECT,
    *,
    gated: bool = True,
    forced: Collection[str] = (),
    moves: bool = True,
) -> dict[str, int]:
    """Write all rankers' models and endpoints.

    Args:
        published: endpoint => the variant that its short name serves, such as ``rank`` => ``two_tower_fp32_onnx``;
            an endpoint that is not named goes on serving what it serves.
        data_note: for the manifest.
        gated: leave out what failed its gate; else everything is written, to be measured.
        moves: whether ``rank`` follows its variant to what is written now; else it serves what it served, and only
            ``published`` moves it.
        forced: variants, such as ``cross_encoder_int8_onnx``, written although they failed; the manifest says so.

    Raises:
        RecipeError: no built variant that passed its gate is called as ``published`` says; or a recipe asks for a score
            cache that no network of its can have.

    What no version of a model reads any more is dropped from the item store.
    """
    models: dict[str, ServedModel] = {}
    ensembles: dict[str, Ensemble] = {}
    for built in rankers:
        for variant in built.variants:
            if variant.passed or not gated or built.recipe.model_name(variant.variant) in forced:
                steps = _served_steps(built, variant, data_note)
                form, why = form_of(built.recipe, variant.variant, workspace)
                for told in filter(None, (why, _told_uncached(built, variant.variant))):
                    say(told)
                if form == "fused":
                    steps = [fused_model(steps, built.ranker.endpoint, built.recipe.serving.instances)]
                models.update({model.name: model for model in steps})
                name = f"{built.ranker.endpoint.name}_{built.recipe.model_name(variant.variant)}"
                forced_now = not variant.passed and built.recipe.model_name(variant.variant) in forced
                ensemble = _ensemble(name, built.ranker.endpoint, steps, forced=forced_now)
                canary = endpoint_canary(built, variant, ensemble.contract, workspace)
                ensembles[name] = dataclasses.replace(ensemble, canary=canary)
    aliases = _aliases(ensembles, published, workspace, moves=moves)
    compared = [built for built in rankers if built.recipe.ranker == SIMILAR_BY and stores_items(built.ranker)]
    for built in compared:
        _plan_index(built, workspace, say)
    similar = [_similar(built) for built in compared]
    versions = publish_models(
        workspace.repository, [*models.values(), *similar], [*ensembles.values(), *aliases], libraries(), say
    )
    said = ", ".join(f"{alias.name} = {alias.variant}" for alias in aliases)
    say(f"published {len(models) + len(similar)} models and {len(ensembles) + len(aliases)} endpoints; {said}")
    if (pruned := prune_tables(workspace.repository, workspace.item_store)).tables:
        say(str(pruned))
    return versions


def published_variants(workspace: Workspace = PROJECT) -> dict[str, str]:
    """Endpoint => the variant that it serves now; the kit's default where there is no such endpoint yet."""
    return {endpoint: _served_now(endpoint, workspace) or default for endpoint, default in DEFAULT_PUBLISHED.items()}


def by_endpoint(rankers: Sequence[BuiltRanker], variants: Sequence[str]) -> dict[str, str]:
    """Endpoint => the one of ``variants`` that it can serve. Raises: RecipeError: one is of none of the rankers."""
    found = {}
    for name in variants:
        owner = next((built for built in rankers if name in map(built.recipe.model_name, built.recipe.variants)), None)
        if owner is None and name not in DEFAULT_PUBLISHED.values():
            known = ", ".join(built.recipe.model_name(each.variant) for built in rankers for each in built.variants)
            raise RecipeError(f"'{name}' is no variant of these recipes; wanted one of {known}")
        if owner is not None:
            found[owner.ranker.endpoint.name] = name
    return found


def endpoint_of(variant: str, workspace: Workspace = PROJECT) -> str | None:
    """The endpoint under which the variant is published; None where it is not."""
    published = published_names(workspace.repository)
    return next((name for name in ENDPOINTS if f"{name}_{variant}" in published), None)


def served_files(code: str) -> dict[str, Path]:
    """Name in a version folder => file: ``model.py`` of ``served/<code>``, what lies beside it, ``served.py``, and what
    that shares with the drop-in backends.

    Raises:
        RepositoryError: there is no ``served/<code>/model.py``.
    """
    folder = SERVED_CODE / code
    if not (folder / "model.py").is_file():
        known = ", ".join(sorted(path.parent.name for path in SERVED_CODE.glob("*/model.py")))
        raise RepositoryError(
            f"no {folder / 'model.py'}; wanted the code of one of {known}, or write it (CONTRIBUTING.md)"
        )
    written = {path.name: path for path in sorted(folder.glob("*.py"))}
    return {**written, **{path.name: path for path in SHARED_CODE}}


# ---------------------------------------------------------------- endpoints
def _aliases(
    ensembles: Mapping[str, Ensemble], published: Mapping[str, str], workspace: Workspace, *, moves: bool
) -> list[Ensemble]:
    """``rank``, ``recommend``: the named variants, and those served now whose models are written anew."""
    aliases = []
    for endpoint in ENDPOINTS:
        served = _served_now(endpoint, workspace)
        wanted = published.get(endpoint) or (served if moves and f"{endpoint}_{served}" in ensembles else None)
        of_endpoint = [name for name in ensembles if name.startswith(f"{endpoint}_")]
        if wanted is None or not of_endpoint:
            continue
        if f"{endpoint}_{wanted}" not in ensembles:
            passed = ", ".join(name.removeprefix(f"{endpoint}_") for name in of_endpoint)
            raise RecipeError(f"'{wanted}' is no variant that passed its gate; wanted one of {passed or 'none'}")
        chosen = ensembles[f"{endpoint}_{wanted}"]
        contract = dataclasses.replace(chosen.contract, name=endpoint)
        aliases.append(dataclasses.replace(chosen, name=endpoint, contract=contract))
    return aliases


def _served_now(endpoint: str, workspace: Workspace) -> str | None:
    try:
        return served_variant(workspace.repository, endpoint)
    except RepositoryError:
        return None


def _ensemble(name: str, endpoint: Contract, steps: Sequence[ServedModel], *, forced: bool) -> Ensemble:
    contract = model_config.endpoint_contract(name, endpoint, [step.contract for step in steps])
    return Ensemble(name, [step.name for step in steps], contract, forced)


# ---------------------------------------------------------------- steps
def _served_steps(owner: BuiltRanker, built: BuiltVariant, data_note: str) -> list[ServedModel]:
    """Pre-processing, the graphs in order, post-processing."""
    recipe, ranker = owner.recipe, owner.ranker
    common = {"recipe": f"recipes/{recipe.ranker}.toml", "data": data_note, "data_digest": owner.data.digest}
    checkpoint = {path.name: sha256(path) for path in ranker.checkpoint_files}
    code = ranker.preprocess_code or f"{ranker.name}_preprocess"
    steps = [_python_model(code, ranker.preprocess, ranker.preprocess_files, common)]
    for graph in ranker.graphs:
        name, path = built.models[graph.name]
        config = model_config.scorer_config(graph, name, recipe.serving, built.variant, path)
        contract = dataclasses.replace(graph.contract, name=name)
        built_from = {
            **common, "checkpoint": checkpoint, "variant": built.variant.model_dump(mode="json"), "opset": OPSET,
            "gate": built.figures["gate"], "passed": built.passed,
        }  # fmt: skip
        steps.append(ServedModel(config, contract, runtime_of(path).files(path), built_from))
    return [*steps, _postprocess(recipe, ranker)]


def _told_uncached(built: BuiltRanker, variant: Variant) -> str:
    recipe = built.recipe
    return model_config.told_uncached(built.ranker.graphs, recipe.model_name(variant), recipe.serving, variant)


def _postprocess(recipe: Recipe, ranker: Ranker) -> ServedModel:
    """The shared ``postprocess``, or ``<ranker>_postprocess`` where the recipe or the ranker asks for more."""
    heads = ranker.graphs[-1].contract.outputs[-1].dims[-1]
    settings = recipe.postprocess
    contract = postprocess_contract(
        heads=int(heads),
        head_weights=settings.head_weights,
        rules=settings.rules,
        falls_back=isinstance(ranker, FeatureRanker) and ranker.falls_back,
    )
    if contract != postprocess_contract():
        contract = dataclasses.replace(contract, name=f"{ranker.name}_postprocess")
    return _python_model("postprocess", contract, {}, {})


def _similar(built: BuiltRanker) -> ServedModel:
    parameters = built.ranker.preprocess.parameters
    contract = similar_contract(
        parameters["item_features"],
        parameters["item_features_version"],
        parameters["vector_width"],
        exact=built.recipe.similar.exact,
    )
    model = _python_model("similar", contract, {SEARCH_CODE.name: SEARCH_CODE}, {})
    return dataclasses.replace(model, canary=similar_canary(built))


def _plan_index(built: BuiltRanker, workspace: Workspace, say: Say) -> None:
    """Before the model: it is loaded with its index."""
    if not (workspace.item_store / "data.mdb").is_file():
        return
    settings = built.recipe.similar
    plan = SimilarPlan(built.ranker.preprocess.parameters["vector_width"], settings.exact, settings.recall)
    with ItemStore(workspace.item_store) as store:
        plan_index(store, items_table(built.ranker), plan, say)


def _python_model(
    code: str, contract: Contract, files: Mapping[str, Path | str], built_from: Mapping[str, Any]
) -> ServedModel:
    """A model whose code is that of ``served/<code>``, under any name."""
    return ServedModel(model_config.python_config(contract), contract, {**served_files(code), **files}, built_from)
