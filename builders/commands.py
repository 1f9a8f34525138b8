"""What the verbs of ``python -m builders`` do; their arguments are told in ``builders/__main__.py``."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import joblib
from rich import filesize
from rich.console import Console
from rich.progress import track
from rich.table import Table

from builders.build import build_ranker, prune_steps
from builders.core.contract import client_contracts
from builders.core.files import write_atomically
from builders.core.recipe import Recipe, RecipeError, Variant, load_each, load_recipe, load_recipes
from builders.core.workspace import PROJECT, REPOSITORY_ROOT
from builders.data.beir import read_corpus, read_users
from builders.data.evaluation import evaluation_data, halves, judging_queries
from builders.data.find import DatasetError, DataSource, find_data, load_judged
from builders.evaluate.choose import chosen_variant, run_choose
from builders.evaluate.judge import BuiltRanker, truncations
from builders.evaluate.metrics import GateFailed
from builders.evaluate.slices import slice_quality, slice_table
from builders.feedback.settings import Bias
from builders.publish import catalogue, endpoints, lifecycle, similar_index
from builders.publish.item_store import ItemStore, ItemStoreError
from builders.publish.manifest import MANIFEST, sign_manifest
from builders.publish.prune import prune_tables, tables_read
from builders.publish.repository import published_rankers, tune_machine
from builders.rankers.base import Ranker
from builders.rankers.load import import_from, load_ranker

T = TypeVar("T")

CLIENT_CONTRACTS = REPOSITORY_ROOT / "clients" / "tritonrank_client" / "contracts.json"
"""What the client knows of the endpoints; generated and committed, as the served models' own contracts are."""

console = Console()
say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
"""A line as it is: figures in brackets are no markup."""


def data(data: Path | None) -> None:
    """Say which data there is."""
    source = find_data(data)
    judged = load_judged(source.folder)
    console.print(source.note)
    pairs = sum(map(len, judged.judgements.values()))
    test = len(judged.subset("test").queries)
    console.print(
        f"{len(judged.products)} products, {len(judged.queries)} queries ({test} for test), {pairs} judged pairs"
    )


def init(
    folder: Path, name: str | None, out: Path | None, trust_remote_code: bool, trained_on_judgements: bool
) -> None:
    """Write a recipe for a checkpoint. Raises: CheckpointError, RecipeError."""
    from builders.init_recipe import init_recipe

    init_recipe(folder, name, out, trust_remote_code, say, trained_on_judgements=trained_on_judgements)


def train(recipes: list[Path] | None, data: Path | None) -> None:
    """Run the recipes' trainers. Raises: RecipeError, and what a trainer raises."""
    folder = _data(data).folder
    for recipe in _recipes(recipes):
        if recipe.trainer is None:
            console.print(f"{recipe.ranker}: nothing to train")
            continue
        if recipe.checkpoint is None:
            raise RecipeError(f"recipe of {recipe.ranker}: a trainer, but no checkpoint (a folder) to write")
        import_from(recipe, recipe.trainer)(recipe, folder)


def retrain(recipe: Path, data: Path | None, feedback: list[Path] | None, bias: Bias, least_impressions: float) -> None:
    """Refresh, train anew, compare, publish as a candidate.

    Raises: RecipeError, DatasetError, RetrainedWorse, and what a trainer raises.
    """
    from builders import retrain as retraining
    from builders.feedback.beside import Feedback

    owner = load_recipe(recipe)
    trainer = import_from(owner, owner.trainer)
    source = _data(data)
    clicks = Feedback(tuple(feedback), bias, least_impressions) if feedback else None
    report = retraining.retrain(owner, trainer, source.folder, say, data_note=source.kind, feedback=clicks)
    write_atomically(CLIENT_CONTRACTS, client_contracts())
    say(str(report))


def export(recipes: list[Path] | None, data: Path | None) -> None:
    """Make and gate variants, publish nothing."""
    _built(recipes, data)


def engines(recipes: list[Path] | None, require_tensorrt: bool, data: Path | None) -> None:
    """Build, gate and publish TensorRT engines."""
    from builders.engines.of_recipe import build_plans

    folder = _data(data).folder
    chosen = [recipe for recipe in _recipes(recipes) if any(each.runtime.needs_gpu for each in recipe.variants)]
    plans = build_plans(chosen, folder, say, require=require_tensorrt)
    if plans:
        _publish(recipes or None, data, None, plans=plans)


def bisect(
    variant: str,
    recipe: Path | None,
    data: Path | None,
) -> None:
    """Print where a variant departs from FP32, and the exclusions."""
    from builders.engines.of_recipe import bisect_variant

    owner, chosen = _variant(variant, recipe)
    say(bisect_variant(owner, chosen, evaluation_data(owner.data, _data(data).folder), say))


def quality(recipes: list[Path] | None, data: Path | None) -> None:
    """Print quality and parity, and the worst slices."""
    slices = []
    table = Table("variant", "queries", "NDCG@10", "largest difference from torch", "gate")
    cut = []
    for built in _built(recipes, data):
        if told := truncations(built):
            cut.append(told)
        for variant in built.variants:
            difference = max(variant.figures["max_abs_difference_from_torch_by_query"].values())
            table.add_row(
                built.recipe.model_name(variant.variant),
                f"{variant.figures['queries']} {variant.figures['half']}",
                f"{variant.figures['ndcg_at_10']:.4f} {variant.figures['sampled']}".rstrip(),
                f"{difference:.1e}",
                "passed" if variant.passed else "FAILED",
            )
        reported = halves(judging_queries(built.recipe, built.data)).test.queries
        ndcg = {one: built.variants[0].figures["ndcg_at_10_by_query"][one] for one in reported}
        rows = slice_quality(built.data, ndcg, built.recipe.judged_slices)
        slices.append(slice_table(rows, f"{built.recipe.model_name(built.recipe.variants[0])}: NDCG@10 by slice"))
    console.print(table, *slices)
    for line in cut:
        say(line)


def recommend_quality(recipes: list[Path] | None, data: Path | None) -> None:
    """Print the recommenders' figures over the whole catalogue."""
    from builders.evaluate.full_catalogue import run

    console.print(run(_data(data).folder, _recipes(recipes)).table())


def explain(
    ranker: str,
    query: str,
    history: list[str] | None,
    items: list[str] | None,
    out: Path | None,
    data: Path | None,
) -> None:
    """Print what made a candidate's score."""
    from builders.evaluate.explain.run import run_explain

    run_explain(ranker, console, query=query, history=history or (), items=items or (), out=out, data=data)


def gate_variant(
    variant: str,
    recipe: Path | None,
    data: Path | None,
    fidelity_lists: int | None,
) -> None:
    """Print a variant's figures beside its limits. Raises: GateFailed."""
    from builders.evaluate.gate_report import gate_tables

    owner, chosen = _variant(variant, recipe)
    built = _built_ranker(owner, data, wanted=(chosen.name,), fidelity_lists=fidelity_lists).built(chosen)
    console.print(*gate_tables(owner, built, evaluation_data(owner.data, find_data(data).folder)))
    if not built.passed:
        raise GateFailed(built.figures["gate"])


def sensitivity(
    variant: str,
    recipe: Path | None,
    data: Path | None,
) -> None:
    """Print layers by their cost."""
    from builders.compress.sensitivity import sensitivity_table

    owner, chosen = _variant(variant, recipe)
    console.print(sensitivity_table(owner, chosen, evaluation_data(owner.data, _data(data).folder), say))


def repository(
    recipes: list[Path] | None,
    data: Path | None,
    published: list[str] | None,
    fidelity_lists: int | None,
    new_store: bool,
) -> None:
    """Build what is missing, and publish it."""
    if published is None and not recipes:
        published = list(endpoints.published_variants().values())
    _publish(recipes, data, published, new_store=new_store, fidelity_lists=fidelity_lists)


def build_recipe(
    recipe: Path,
    data: Path | None,
    published: list[str] | None,
    variant: list[str] | None,
    force: bool,
    fidelity_lists: int | None,
    new_store: bool,
) -> None:
    """Build and publish one ranker. variant: also these, although experimental."""
    choice = {"wanted": tuple(variant or ()), "fidelity_lists": fidelity_lists}
    _publish([recipe], data, published, force=force, new_store=new_store, **choice)


def publish(
    variant: str | None,
    force: bool,
    recipe: Path | None,
    data: Path | None,
) -> None:
    """Promote a variant, which is built and gated before where the repository lacks it. Raises: GateFailed."""
    variant = variant or chosen_variant()
    endpoint = endpoints.endpoint_of(variant)
    if endpoint is None:
        owner, chosen = _variant(variant, recipe)
        built = _built_ranker(owner, data, wanted=(chosen.name,))
        if not built.built(chosen).passed and not force:
            raise GateFailed(built.built(chosen).figures["gate"])
        catalogue.fill_item_store([built], say, PROJECT)
        endpoints.publish_rankers([built], {}, _data_note(data), say, forced=[variant] if force else [])
        endpoint = built.ranker.endpoint.name
    served = lifecycle.promote(PROJECT.repository, endpoint, f"{endpoint}_{variant}", force=force)
    _tell_served(endpoint, served.name)


def rollback(endpoint: str, to: str | None) -> None:
    """Serve again what was served before, or a kept generation. Raises: RepositoryError."""
    _tell_served(endpoint, lifecycle.rollback(PROJECT.repository, endpoint, to).name)


def candidate(variant: str, force: bool) -> None:
    """A second endpoint for a published variant. Raises: RepositoryError."""
    kind = endpoints.endpoint_of(variant)
    if kind is None:
        raise RecipeError(f"'{variant}' is not published here; run 'builders build RECIPE --variant NAME' first")
    endpoint = f"{kind}_{lifecycle.CANDIDATE}"
    served = lifecycle.promote(PROJECT.repository, endpoint, f"{kind}_{variant}", force=force)
    _tell_served(endpoint, served.name)


def retire(endpoint: str) -> None:
    """Publish an endpoint no more. Raises: RepositoryError."""
    lifecycle.retire(PROJECT.repository, endpoint)
    say(
        f"{endpoint} is published no more; a running server serves it until it starts anew, or "
        f"'python -m server.control unload {endpoint}'"
    )


def prune(keep: int, steps_unused_days: float) -> None:
    """Remove what nothing names."""
    gone, freed = lifecycle.prune(PROJECT.repository, keep)
    for name in gone:
        say(f"given up: {name}")
    say(f"{filesize.decimal(freed)} of the model repository freed")
    say(str(prune_tables(PROJECT.repository, PROJECT.item_store)))
    steps, size = prune_steps(PROJECT, steps_unused_days, say)
    say(f"build steps: {steps} that no build asked for in {steps_unused_days:g} days, {filesize.decimal(size)} freed")


def sign(key: Path) -> None:
    """Sign the manifest. Raises: RepositoryError, SigningKeyError."""
    sign_manifest(PROJECT.repository, key)
    say(f"{PROJECT.repository / MANIFEST} is signed by {key}; 'python -m server --verify signature' checks it")


def status() -> None:
    """Print what is published and what is kept."""
    table = Table("endpoint", "serves", "since", "recipe", "data", "gate", "size")
    for each in lifecycle.published_generations(PROJECT.repository):
        name = each.generation.name + (" (forced)" if each.generation.forced else "")
        cells = (each.endpoint, name) if each.served else ("", f"kept: {name}")
        size = filesize.decimal(each.size_bytes)
        table.add_row(*cells, each.generation.since, each.recipe, each.data, each.gate, size)
    console.print(table if table.row_count else f"{PROJECT.repository}: nothing is published; run 'make repository'")
    if (PROJECT.item_store / "data.mdb").is_file():
        size = filesize.decimal(lifecycle.size_bytes(PROJECT.item_store))
        with ItemStore(PROJECT.item_store) as store:
            say(f"{PROJECT.item_store}: {size}; items by table: {_counts(store.tables())}")
            for compared in similar_index.planned_tables(store):
                say(similar_index.told(store, compared))
    size = filesize.decimal(lifecycle.size_bytes(PROJECT.build))
    say(f"{PROJECT.build}: {size}; 'make clean' removes it, a build makes it anew")


def choose(
    slo_p99_ms: float,
    min_ndcg_ratio: float,
    recipe: Path | None,
    max_size_mb: float | None,
    min_rate: float | None,
) -> bool:
    """Print the choice and why each other variant fell out; False where none keeps every limit."""
    choice, lines = run_choose(recipe, slo_p99_ms, min_ndcg_ratio, max_size_mb, min_rate)
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return choice.chosen is not None


def refresh(corpus: Path, recipes: list[Path] | None, partial: bool, allow_shrink: bool) -> None:
    """Bring the item store to a catalogue; corpus: a file, or - for standard input."""
    with _given_file(corpus) as (path, called):
        found = catalogue.read_catalogue(path, called)
        rankers = _rankers_to_refresh(recipes)
        told = catalogue.refresh(
            rankers, found, PROJECT, partial=partial, allow_shrink=allow_shrink, progress=_progress, say=say
        )  # fmt: skip
    say(f"products: {told}; the next request sees them")


def add_items(corpus: Path, recipes: list[Path] | None, attributes_only: bool) -> None:
    """Add products to the item store, or replace them."""
    found = catalogue.read_catalogue(corpus)
    chosen = [] if attributes_only else [each for each in _recipes(recipes) if recipes or each.data == "judged"]
    rankers = _with_earlier(chosen, [load_ranker(recipe) for recipe in chosen], tables_read(PROJECT.repository))
    told = catalogue.refresh(rankers, found, PROJECT, partial=True, progress=_progress, say=say)
    what = "attributes alone, features are as they were" if attributes_only else "with features and attributes"
    say(f"products: {told} ({what}); the next request sees them")


def add_users(users: Path, recipes: list[Path] | None) -> None:
    """Fill the item store with users."""
    found = read_users(users)
    chosen = [recipe for recipe in _recipes(recipes) if recipes or recipe.data == "purchases"]
    rankers = _with_earlier(chosen, [load_ranker(recipe) for recipe in chosen], tables_read(PROJECT.repository))
    catalogue.add_users(rankers, found, PROJECT)
    console.print(f"{len(found)} users are known from the next request on")


def index() -> None:
    """Make the indexes of ``similar`` anew. Raises: ItemStoreError, SimilarIndexError."""
    if not (PROJECT.item_store / "data.mdb").is_file():
        raise ItemStoreError(f"no item store at {PROJECT.item_store}: run 'make repository'")
    with ItemStore(PROJECT.item_store) as store:
        tables = similar_index.planned_tables(store)
        if not tables:
            raise ItemStoreError(f"item store {PROJECT.item_store}: similar was published with none of its tables; "
                                 "run 'make repository'")  # fmt: skip
        similar_index.keep_indexes(store, tables, say, anew=True)
        for table in tables:
            say(similar_index.told(store, table))


def tune(machine: str, instances: int, threads: int | None) -> None:
    """Write a machine's configurations. threads: None = an equal share of the CPUs that this process may use."""
    threads = threads or max(joblib.cpu_count() // instances, 1)
    written = tune_machine(PROJECT.repository, machine, instances, threads)
    console.print(f"{len(written)} configurations for '{machine}': {instances} instances of {threads} threads")


def feedback(logs: list[Path], out: Path, corpus: Path | None, bias: Bias, least_impressions: float) -> None:
    """Write training data from feedback logs. Raises: DatasetError."""
    from builders.feedback.export import export
    from builders.feedback.log import read_feedback

    products = read_corpus(corpus) if corpus else {}
    for line in export(read_feedback(logs), out, products, bias, least_impressions).notes:
        say(line)


def compare_online(logs: list[Path], baseline: str, candidate: str, expected_share: float) -> None:
    """Print tables, and the same as a line of JSON. Raises: DatasetError."""
    from builders.feedback.compare import compare
    from builders.feedback.compare_report import as_json, tables, told
    from builders.feedback.log import read_feedback

    log = read_feedback(logs)
    report = compare(log, baseline, candidate, expected_share)
    for line in (*log.told(), *told(report)):
        say(line)
    console.print(*tables(report))
    print(json.dumps({**as_json(report), "log": log.counts}))


def shadow_report(logs: list[Path], feedback: list[Path]) -> None:
    """Print a table, and the same as a line of JSON. Raises: DatasetError."""
    from builders.feedback import shadow
    from builders.feedback.log import read_feedback

    report = shadow.shadow_report(shadow.read_shadow(logs), read_feedback(feedback) if feedback else None)
    for line in report.told():
        say(line)
    console.print(report.table())
    print(json.dumps(shadow.as_json(report)))


def _data(option: Path | None) -> DataSource:
    source = find_data(option)
    console.print(source.note)
    return source


def _recipes(paths: list[Path] | None) -> list[Recipe]:
    return list((load_each(paths) if paths else load_recipes()).values())


def _built(recipes: list[Path] | None, data: Path | None, **choice: Any) -> list[BuiltRanker]:
    """Of the kit's own recipes those whose data is there; a recipe that the user names must have its data."""
    source = _data(data)
    built = []
    for recipe in _recipes(recipes):
        try:
            judged = evaluation_data(recipe.data, source.folder)
        except DatasetError as error:
            if recipes:
                raise
            console.print(f"{recipe.ranker}: skipped, {error}", style="yellow")
            continue
        built.append(build_ranker(recipe, judged, say, **choice))
    return built


def _built_ranker(recipe: Recipe, data: Path | None, **choice: Any) -> BuiltRanker:
    judged = evaluation_data(recipe.data, _data(data).folder)
    return build_ranker(recipe, judged, say, **choice)


def _variant(name: str, recipe: Path | None) -> tuple[Recipe, Variant]:
    """The recipe that has this variant, the given one or one of the kit's. Raises: RecipeError."""
    recipes = [load_recipe(recipe)] if recipe else load_recipes().values()
    known = {owner.model_name(variant): (owner, variant) for owner in recipes for variant in owner.variants}
    if name not in known:
        raise RecipeError(
            f"no variant '{name}' in {recipe or 'recipes/'}; wanted one of {', '.join(known)}"
            f"{'' if recipe else ', or --recipe with the path of your own'}"
        )
    return known[name]


def _publish(
    recipes: list[Path] | None,
    data: Path | None,
    published: list[str] | None,
    *,
    force: bool = False,
    new_store: bool = False,
    **choice: Any,
) -> None:
    rankers = _built(recipes, data, **choice)
    catalogue.fill_item_store(rankers, say, PROJECT, anew=new_store)
    wanted = endpoints.by_endpoint(rankers, published or [])
    failed = [one.recipe.model_name(each.variant) for one in rankers for each in one.variants if not each.passed]
    endpoints.publish_rankers(rankers, wanted, _data_note(data), say, forced=failed if force else [])
    write_atomically(CLIENT_CONTRACTS, client_contracts())


def _counts(tables: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in tables.items()) or "none"


def _tell_served(endpoint: str, generation: str) -> None:
    say(f"{endpoint} = {generation}; a running server takes it up with 'make reload MODEL={endpoint}'")


# ---------------------------------------------------------------- the item store
@contextlib.contextmanager
def _given_file(path: Path) -> Iterator[tuple[Path, str]]:
    """(file, what messages call it); standard input is written to a file, since it is read twice."""
    if str(path) != "-":
        yield path, ""
        return
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield Path(file.name), "standard input"


def _progress(batches: Iterable[T], count: int) -> Iterable[T]:
    """Shown while it takes long."""
    return track(batches, "refreshing", total=count, console=console, transient=True, disable=count < 2)


def _rankers_to_refresh(paths: list[Path] | None) -> list[Ranker]:
    """Those named, or the published ones that are judged on search data.

    Raises:
        RecipeError: a published ranker has no recipe here, or none is published.
        CatalogueError: the features that a published ranker reads are not those that its recipe gives now.
    """
    names = published_rankers(PROJECT.repository)
    recipes = _recipes(paths) if paths else _published_recipes(names)
    rankers = [load_ranker(recipe) for recipe in recipes]
    read = tables_read(PROJECT.repository)
    found = _with_earlier(recipes, rankers, read)
    served = {each.name for each in found if catalogue.stores_items(each) and catalogue.items_table(each) in read}
    for ranker in rankers:  # after a retraining that was stopped before it published, the earlier ones are served
        catalogue.check_versions(ranker, read if ranker.name in set(names) - served else ())
    return found


def _with_earlier(recipes: Sequence[Recipe], rankers: Sequence[Ranker], read: Collection[str]) -> list[Ranker]:
    """And the networks of before that are still served or can be rolled back to, as long as their checkpoint is there;
    others are told, since their items stay as they are."""
    from builders.retrain import earlier_rankers

    found = list(rankers)
    for recipe, ranker in zip(recipes, rankers, strict=True):
        found += earlier_rankers(recipe, ranker)
    present = {catalogue.items_table(each) for each in found if catalogue.stores_items(each)}
    features = {table.rpartition("@")[0] for table in present}
    for table in sorted(each for each in read if each.rpartition("@")[0] in features and each not in present):
        say(
            f"WARNING: {table} is read by a version that is kept, and its checkpoint is gone: its items STAY AS THEY "
            "ARE. Publish a variant of the present checkpoint, then 'builders prune --keep 1'"
        )
    return found


def _published_recipes(names: Collection[str]) -> list[Recipe]:
    known = load_recipes()
    if strangers := sorted(name for name in names if name not in known):
        raise RecipeError(
            f"published are rankers without a recipe in recipes/: {', '.join(strangers)}; name the recipes of all that "
            "shall be refreshed: python -m builders refresh FILE RECIPE ..."
        )
    found = [recipe for name, recipe in known.items() if name in names and recipe.data == "judged"]
    if not found:
        raise RecipeError("no ranker of search data is published; run 'make repository' first, or name recipes")
    if others := sorted(name for name in names if known[name].data != "judged"):
        say(f"left as they are, since their catalogue is no corpus.jsonl: {', '.join(others)}")
    return found


def _data_note(data: Path | None) -> str:
    return find_data(data).kind
