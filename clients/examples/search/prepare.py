"""What the page needs of the model repository: an endpoint that ranks, every product in its store, and, where there are
purchases, one that recommends. Trains nothing, and builds only what is not published."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable

from rich.console import Console

from builders.core.contract import RANK, RECOMMEND
from builders.core.errors import BuilderError
from builders.core.recipe import load_recipes
from builders.core.workspace import Workspace
from builders.data.beir import DatasetError, JudgedQueries
from builders.data.evaluation import evaluation_data
from builders.data.find import DataSource
from builders.publish.endpoints import DEFAULT_PUBLISHED
from builders.publish.item_store import ItemStore
from builders.publish.manifest import CONTRACT
from clients.examples.search.ranking import published_endpoints
from perf.kit.served import can_serve, steps_of

Say = Callable[[str], None]
JUDGING_QUERIES = 24
FIDELITY_LISTS = 100
"""Of a gate that nobody waits for: as few as `make demo` has."""


class NothingToServe(BuilderError):
    """No endpoint ranks products."""


def purchases_of(source: DataSource) -> tuple[JudgedQueries | None, str]:
    """Customers' requests; None with the reason where the data holds no purchases."""
    try:
        return evaluation_data("purchases", source.folder), ""
    except DatasetError as error:
        return None, f"No customer can be picked: {error}"


def prepare(
    judged: JudgedQueries, purchases: JudgedQueries | None, source: DataSource, workspace: Workspace, console: Console
) -> None:
    """Build and publish what no endpoint serves yet, and store the products that a search may find.

    Raises:
        NothingToServe: see there.
    """
    say = functools.partial(console.print, style="dim", markup=False, highlight=False, soft_wrap=True)
    for kind, data in ((RANK.name, judged), (RECOMMEND.name, purchases)):
        if data is not None and not can_serve(workspace.repository, kind):
            _build(kind, data, source, workspace, say)
    if not any(each.kind == RANK.name for each in published_endpoints(workspace.repository, load_recipes()).values()):
        raise NothingToServe(
            f"no endpoint ranks products: {DEFAULT_PUBLISHED[RANK.name]} failed its gate on this machine, or 'rank' "
            "serves a ranker of something else; 'make repository' builds all rankers, and 'python -m builders status' "
            "says what is published"
        )
    for kind, data in ((RANK.name, judged), (RECOMMEND.name, purchases)):
        if data is not None and can_serve(workspace.repository, kind):
            _store_missing(kind, data, workspace, say)


def _build(kind: str, data: JudgedQueries, source: DataSource, workspace: Workspace, say: Say) -> None:
    """The variant that `make repository` would publish, judged on few requests."""
    from perf.kit.rankers import build_variants_of, fill_store, load_ranker, publish  # with torch

    variant = DEFAULT_PUBLISHED[kind]
    recipe = next(each for each in load_recipes().values() if variant.startswith(f"{each.ranker}_"))
    say(f"'{kind}' is not published: {variant} is built")
    shown = tuple(each for each in recipe.variants if recipe.model_name(each) == variant)
    ranker = load_ranker(recipe)
    fill_store(ranker, recipe, data, say, workspace)
    built = build_variants_of(
        recipe.model_copy(update={"variants": shown}), ranker, few(data), say, workspace, fidelity_lists=FIDELITY_LISTS
    )
    publish([dataclasses.replace(built, data=data)], source.kind, say, workspace, serves={kind: variant})


def few(data: JudgedQueries) -> JudgedQueries:
    """The first of the test queries: they may judge every ranker."""
    return data.only(list(data.subset("test").queries)[:JUDGING_QUERIES])


def _store_missing(kind: str, data: JudgedQueries, workspace: Workspace, say: Say) -> None:
    """Add the products of ``data`` that a published ranker of this kind does not know; what is stored besides stays."""
    recipes = load_recipes()
    endpoints = [each for each in published_endpoints(workspace.repository, recipes).values() if each.kind == kind]
    for name in dict.fromkeys(each.recipe for each in endpoints if each.recipe in recipes):
        tables = {table for each in endpoints if each.recipe == name for table in tables_of(workspace, each.name)}
        with ItemStore(workspace.item_store) as store:
            stored = [store.ids(*table) for table in tables]
        missing = [product for item_id, product in data.products.items() if any(item_id not in ids for ids in stored)]
        if missing:
            from builders.publish.catalogue import add_items  # with torch
            from builders.rankers.load import load_ranker

            say(f"{name}: {len(missing):,} of {len(data.products):,} products are not in the item store yet")
            add_items([load_ranker(recipes[name])], missing, workspace, generated=data.generated, say=say)


def tables_of(workspace: Workspace, endpoint: str) -> set[tuple[str, str]]:
    """(features, version) of the item tables that the endpoint's steps read."""
    found = set()
    for step in steps_of(workspace.repository, endpoint):
        for folder in step.folders:
            contract = folder / CONTRACT
            read = json.loads(contract.read_text(encoding="utf-8"))["parameters"] if contract.is_file() else {}
            if read.get("item_features"):
                found.add((read["item_features"], read["item_features_version"]))
    return found
