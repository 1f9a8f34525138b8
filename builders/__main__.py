"""``python -m builders VERB``: everything that happens before serving."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated, Any

# The kit reads checkpoints from folders only; a hub is never asked.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import typer
from rich.console import Console
from rich.table import Table

from builders.build import build_ranker
from builders.compress.bisect import BisectError
from builders.compress.distill import DistillationError
from builders.compress.fp16 import HalfPrecisionError
from builders.compress.prune import PruningError
from builders.compress.quantize_graph import QuantizationError
from builders.core.contract import ContractError, client_contracts
from builders.core.files import write_atomically
from builders.core.recipe import Recipe, RecipeError, Variant, load_recipe, load_recipes
from builders.core.versions import VersionError
from builders.core.workspace import PROJECT, REPOSITORY_ROOT
from builders.data.beir import read_corpus, read_users
from builders.data.evaluation import evaluation_data
from builders.data.find import DatasetError, DataSource, find_data, load_judged
from builders.engines.build import EngineError, TensorRTMissing
from builders.engines.store import StoreLocked
from builders.evaluate.choose import ChoiceError, chosen_variant, run_choose
from builders.evaluate.judge import BuiltRanker
from builders.evaluate.metrics import GateFailed, QualityError
from builders.evaluate.slices import slice_quality, slice_table
from builders.features.encoder import FeatureError
from builders.features.text import TokenizerError
from builders.publish import endpoints
from builders.publish.item_store import ItemStoreError
from builders.publish.repository import RepositoryError, promote, tune_machine
from builders.rankers.backbone import CheckpointError
from builders.rankers.load import import_from, load_ranker

Data = Annotated[Path | None, typer.Option("--data", help="Folder with the data.")]
Recipes = Annotated[list[Path] | None, typer.Argument(help="Recipes; all of recipes/ when none is given.")]
Published = Annotated[
    list[str] | None, typer.Option(help="Variant that `rank` or `recommend` shall serve; repeatable.")
]

Force = Annotated[bool, typer.Option("--force", help="Although it fails its gate; the manifest says so.")]
FidelityLists = Annotated[
    int | None, typer.Option(min=1, help="Unjudged lists of the gate, in place of the recipe's: fewer are quicker.")
]

OwnRecipe = Annotated[Path | None, typer.Option("--recipe", help="The variant's, where it is not in recipes/.")]

CLIENT_CONTRACTS = REPOSITORY_ROOT / "clients" / "tritonrank_client" / "contracts.json"
"""What the client knows of the endpoints; generated and committed, as the served models' own contracts are."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console()
say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
"""A line as it is: figures in brackets are no markup."""


@app.command()
def data(data: Data = None) -> None:
    """Find (or fetch, or generate) the data and say what it is."""
    source = find_data(data)
    judged = load_judged(source.folder)
    console.print(source.note)
    pairs = sum(map(len, judged.judgements.values()))
    test = len(judged.subset("test").queries)
    console.print(
        f"{len(judged.products)} products, {len(judged.queries)} queries ({test} for test), {pairs} judged pairs"
    )


@app.command()
def train(recipes: Recipes = None, data: Data = None) -> None:
    """Train the rankers of the recipes, each as its `trainer` says; writes their checkpoints."""
    folder = _data(data).folder
    for recipe in _recipes(recipes):
        if recipe.trainer is None:
            console.print(f"{recipe.ranker}: nothing to train")
            continue
        if recipe.checkpoint is None:
            raise RecipeError(f"recipe of {recipe.ranker}: a trainer, but no checkpoint (a folder) to write")
        import_from(recipe, recipe.trainer)(recipe, folder)


@app.command()
def export(recipes: Recipes = None, data: Data = None) -> None:
    """Export, check, quantize and gate every variant of the recipes."""
    _built(recipes, data)


@app.command()
def engines(recipes: Recipes = None, require_tensorrt: bool = False, data: Data = None) -> None:
    """Build TensorRT engines where there is a TensorRT, gate and publish them; elsewhere say what was skipped."""
    from builders.engines.of_recipe import build_plans

    folder = _data(data).folder
    chosen = [recipe for recipe in _recipes(recipes) if any(each.runtime == "trt" for each in recipe.variants)]
    plans = build_plans(chosen, folder, say, require=require_tensorrt)
    if plans:
        _publish(recipes or None, data, None, plans=plans)


@app.command()
def bisect(
    variant: Annotated[str, typer.Argument(help="Such as cross_encoder_int8_onnx.")],
    recipe: OwnRecipe = None,
    data: Data = None,
) -> None:
    """Find the layers at which a variant's graph departs from FP32, and print the exclusions to add."""
    from builders.engines.of_recipe import bisect_variant

    owner, chosen = _variant(variant, recipe)
    say(bisect_variant(owner, chosen, evaluation_data(owner.data, _data(data).folder), say))


@app.command()
def quality(recipes: Recipes = None, data: Data = None) -> None:
    """Show quality and parity of every variant, offline, and the slice of queries that each ranker serves worst."""
    slices = []
    table = Table("variant", "queries", "NDCG@10", "largest difference from torch", "gate")
    for built in _built(recipes, data):
        for variant in built.variants:
            difference = max(variant.figures["max_abs_difference_from_torch_by_query"].values())
            table.add_row(
                built.recipe.model_name(variant.variant),
                str(variant.figures["queries"]),
                f"{variant.figures['ndcg_at_10']:.4f}",
                f"{difference:.1e}",
                "passed" if variant.passed else "FAILED",
            )
        ndcg = built.variants[0].figures["ndcg_at_10_by_query"]
        rows = slice_quality(built.data, ndcg, built.recipe.judged_slices)
        slices.append(slice_table(rows, f"{built.recipe.model_name(built.recipe.variants[0])}: NDCG@10 by slice"))
    console.print(table, *slices)


@app.command()
def recommend_quality(recipes: Recipes = None, data: Data = None) -> None:
    """Judge the recommenders offline, over the whole catalogue, beside popularity and item-kNN (minutes)."""
    from builders.evaluate.full_catalogue import run

    console.print(run(_data(data).folder, _recipes(recipes)).table())


@app.command()
def explain(
    ranker: Annotated[str, typer.Argument(help="A recipe's name, or its path.")],
    query: Annotated[str, typer.Option(help="A search query; none = the first judged request.")] = "",
    history: Annotated[list[str] | None, typer.Option(help="An item that the user took; repeatable.")] = None,
    items: Annotated[list[str] | None, typer.Option(help="A candidate; repeatable. None = judged ones.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a page of plots here.")] = None,
    data: Data = None,
) -> None:
    """Say what each token or field contributes to a candidate's score (integrated gradients)."""
    from builders.evaluate.explain.run import run_explain

    run_explain(ranker, console, query=query, history=history or (), items=items or (), out=out, data=data)


@app.command("gate")
def gate_variant(
    variant: Annotated[str, typer.Argument(help="Such as cross_encoder_int8_onnx.")],
    recipe: OwnRecipe = None,
    data: Data = None,
    fidelity_lists: FidelityLists = None,
) -> None:
    """Judge a variant against its recipe's reference: figures, limits, and the queries that it serves worst."""
    from builders.evaluate.gate_report import gate_tables

    owner, chosen = _variant(variant, recipe)
    built = _built_ranker(owner, data, wanted=(chosen.name,), fidelity_lists=fidelity_lists).built(chosen)
    console.print(*gate_tables(owner, built, evaluation_data(owner.data, find_data(data).folder)))
    if not built.passed:
        raise GateFailed(built.figures["gate"])


@app.command()
def sensitivity(
    variant: Annotated[str, typer.Argument(help="One with a static int8 step.")],
    recipe: OwnRecipe = None,
    data: Data = None,
) -> None:
    """List the layers by what each costs when it alone is quantized; the worst are candidates for keep_fp32."""
    from builders.compress.sensitivity import sensitivity_table

    owner, chosen = _variant(variant, recipe)
    console.print(sensitivity_table(owner, chosen, evaluation_data(owner.data, _data(data).folder), say))


@app.command()
def repository(
    recipes: Recipes = None,
    data: Data = None,
    published: Published = None,
    fidelity_lists: FidelityLists = None,
) -> None:
    """Build what is missing of all recipes, fill the item store and write the model repository."""
    if published is None and not recipes:
        published = list(endpoints.published_variants().values())
    _publish(recipes, data, published, fidelity_lists=fidelity_lists)


@app.command("build")
def build_recipe(
    recipe: Path,
    data: Data = None,
    published: Published = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Also this variant although it is a trial, such as bf16_openvino; repeatable."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also variants that fail their gate; kept in the manifest.")
    ] = False,
    fidelity_lists: FidelityLists = None,
) -> None:
    """Take one ranker, yours for example, from its recipe to the model repository: export, parity, gate, store."""
    _publish([recipe], data, published, wanted=tuple(variant or ()), force=force, fidelity_lists=fidelity_lists)


@app.command()
def publish(
    variant: Annotated[str | None, typer.Argument(help="None = the choice of `choose`.")] = None,
    force: Force = False,
    recipe: OwnRecipe = None,
    data: Data = None,
) -> None:
    """Point `rank` (or `recommend`) at a variant, such as cross_encoder_int8_onnx: one rename. Rolls back likewise.

    A variant that the repository does not hold yet is built and gated before.
    """
    variant = variant or chosen_variant()
    endpoint = endpoints.endpoint_of(variant)
    if endpoint is None:
        owner, chosen = _variant(variant, recipe)
        built = _built_ranker(owner, data, wanted=(chosen.name,))
        if not built.built(chosen).passed and not force:
            raise GateFailed(built.built(chosen).figures["gate"])
        endpoints.fill_item_store([built], say)
        endpoints.publish_rankers([built], {}, _data_note(data), say, forced=[variant] if force else [])
        endpoint = built.ranker.endpoint.name
    promote(PROJECT.repository, endpoint, f"{endpoint}_{variant}")
    console.print(f"{endpoint} = {variant}; a running server takes it up when it loads '{endpoint}' anew")


@app.command()
def choose(
    slo_p99_ms: Annotated[float, typer.Option(min=0, help="Highest p99.")],
    min_ndcg_ratio: Annotated[float, typer.Option(min=0, help="Of the gate's metric, over the reference's.")],
    recipe: Annotated[Path | None, typer.Option(help="None = the only one measured.")] = None,
    max_size_mb: Annotated[float | None, typer.Option(min=0)] = None,
    min_rate: Annotated[float | None, typer.Option(min=0, help="Candidates/s.")] = None,
) -> None:
    """Name the cheapest measured variant that keeps every limit, and why each other one fell out."""
    choice, lines = run_choose(recipe, slo_p99_ms, min_ndcg_ratio, max_size_mb, min_rate)
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if choice.chosen is None:
        raise typer.Exit(1)


@app.command()
def add_items(corpus: Path, recipes: Recipes = None, attributes_only: bool = False) -> None:
    """Add or replace the products of a corpus.jsonl in the item store, also while it is being served.

    `--attributes-only`: just what business rules read, such as `in_stock`; takes a moment.
    """
    products = list(read_corpus(corpus).values())
    chosen = [] if attributes_only else [each for each in _recipes(recipes) if recipes or each.data == "judged"]
    endpoints.add_items([load_ranker(recipe) for recipe in chosen], products)
    console.print(
        f"{len(products)} items are {'up to date' if attributes_only else 'rankable'} from the next request on"
    )


@app.command()
def add_users(users: Path, recipes: Recipes = None) -> None:
    """Add or replace users (JSON lines: `_id` and raw fields) in the item store, also while it is being served."""
    found = read_users(users)
    chosen = [recipe for recipe in _recipes(recipes) if recipes or recipe.data == "purchases"]
    endpoints.add_users([load_ranker(recipe) for recipe in chosen], found)
    console.print(f"{len(found)} users are known from the next request on")


@app.command()
def tune(machine: str, instances: int = 2, threads: int = os.cpu_count() or 1) -> None:
    """Write configs/MACHINE.pbtxt beside every model; serve them with `make serve CONFIG=MACHINE`."""
    written = tune_machine(PROJECT.repository, machine, instances, threads)
    console.print(f"{len(written)} configurations for '{machine}': {instances} instances of {threads} threads")


def _data(option: Path | None) -> DataSource:
    source = find_data(option)
    console.print(source.note)
    return source


def _recipes(paths: list[Path] | None) -> list[Recipe]:
    return [load_recipe(path) for path in paths] if paths else list(load_recipes().values())


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
    recipes: list[Path] | None, data: Path | None, published: list[str] | None, *, force: bool = False, **choice: Any
) -> None:
    rankers = _built(recipes, data, **choice)
    endpoints.fill_item_store(rankers, say)
    wanted = endpoints.by_endpoint(rankers, published or [])
    failed = [one.recipe.model_name(each.variant) for one in rankers for each in one.variants if not each.passed]
    endpoints.publish_rankers(rankers, wanted, _data_note(data), say, forced=failed if force else [])
    write_atomically(CLIENT_CONTRACTS, client_contracts())


def _data_note(data: Path | None) -> str:
    return find_data(data).kind


EXPECTED = (
    BisectError, CheckpointError, ChoiceError, ContractError, DatasetError, DistillationError, EngineError,
    FeatureError, HalfPrecisionError, ItemStoreError, PruningError, QualityError, QuantizationError, RecipeError,
    RepositoryError, StoreLocked, TensorRTMissing, TokenizerError, VersionError,
)  # fmt: skip
"""What the kit raises on purpose."""


def main() -> None:
    """Run a verb; an error that the kit raises on purpose is one line, without a trace."""
    try:
        app()
    except EXPECTED as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
