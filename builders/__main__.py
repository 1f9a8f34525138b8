"""``python -m builders VERB``: everything that happens before serving."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

# The kit reads checkpoints from folders only; a hub is never asked.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import typer
from rich.console import Console
from rich.table import Table

from builders import build
from builders.backbone import CheckpointError
from builders.build_engine import TensorRTMissing, skipped_engines
from builders.contract import ContractError
from builders.datasets import DatasetError, DataSource, find_data, load_judged
from builders.item_store import ItemStoreError
from builders.quality import QualityError
from builders.quantize import QuantizationError
from builders.recipe import Recipe, RecipeError, load_recipe, load_recipes
from builders.repository import RepositoryError, point_rank_at, tune_machine
from builders.text import TokenizerError

Data = Annotated[Path | None, typer.Option("--data", help="Folder with the data.")]
Recipes = Annotated[list[Path] | None, typer.Argument(help="Recipes; all of recipes/ when none is given.")]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console()


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
def train(recipe: Path = Path("recipes/cross_encoder.toml"), data: Data = None) -> None:
    """Train the cross-encoder's adapter and head as its recipe says; writes its checkpoint."""
    from builders.training import train_cross_encoder

    loaded = load_recipe(recipe)
    if loaded.checkpoint is None:
        raise RecipeError(f'{recipe}: no checkpoint to write; wanted checkpoint = "<folder>"')
    train_cross_encoder(_data(data).folder, build.in_project(loaded.checkpoint), loaded.training)


@app.command()
def export(recipes: Recipes = None, data: Data = None) -> None:
    """Export, check, quantize and gate every variant of the recipes."""
    judged = load_judged(_data(data).folder)
    for recipe in _recipes(recipes):
        build.build_variants(recipe, build.load_ranker(recipe), judged, console.print)


@app.command()
def engines(require_tensorrt: bool = False) -> None:
    """Build TensorRT engines where there is a TensorRT; elsewhere say what was skipped."""
    console.print(skipped_engines(require_tensorrt))


@app.command()
def quality(recipes: Recipes = None, data: Data = None) -> None:
    """Show quality and parity of every variant, offline."""
    judged = load_judged(_data(data).folder)
    table = Table("variant", "queries", "NDCG@10", "largest difference from torch", "gate")
    for recipe in _recipes(recipes):
        for built in build.build_variants(recipe, build.load_ranker(recipe), judged, lambda _: None):
            difference = max(built.figures["max_abs_difference_from_torch_by_query"].values())
            table.add_row(
                recipe.model_name(built.variant),
                str(built.figures["queries"]),
                f"{built.figures['ndcg_at_10']:.4f}",
                f"{difference:.1e}",
                "passed" if built.passed else "FAILED",
            )
    console.print(table)


@app.command()
def repository(recipes: Recipes = None, data: Data = None, published: str | None = None) -> None:
    """Build what is missing, fill the item store and write the model repository.

    `--published` names the variant that the endpoint `rank` serves.
    """
    source = _data(data)
    judged = load_judged(source.folder)
    rankers = []
    for recipe in _recipes(recipes):
        ranker = build.load_ranker(recipe)
        rankers.append((recipe, ranker, build.build_variants(recipe, ranker, judged, console.print)))
    build.fill_item_store([ranker for _, ranker, _ in rankers], list(judged.products.values()), console.print)
    build.publish_rankers(rankers, published or build.published_variant(), source.kind, console.print)


@app.command()
def publish(variant: str) -> None:
    """Point the endpoint `rank` at a variant, such as cross_encoder_int8_onnx: one rename. Rolls back likewise."""
    point_rank_at(build.PROJECT.repository, "rank", f"rank_{variant}")
    console.print(f"rank = {variant}; a running server takes it up when it loads 'rank' anew")


@app.command()
def add_items(corpus: Path, recipes: Recipes = None) -> None:
    """Add or replace the products of a corpus.jsonl in the item store, also while it is being served."""
    from builders.beir import read_corpus

    products = list(read_corpus(corpus).values())
    build.add_items([build.load_ranker(recipe) for recipe in _recipes(recipes)], products)
    console.print(f"{len(products)} items are rankable from the next request on")


@app.command()
def tune(machine: str, instances: int = 2, threads: int = os.cpu_count() or 1) -> None:
    """Write configs/MACHINE.pbtxt beside every model; serve them with `make serve CONFIG=MACHINE`."""
    written = tune_machine(build.PROJECT.repository, machine, instances, threads)
    console.print(f"{len(written)} configurations for '{machine}': {instances} instances of {threads} threads")


def _data(option: Path | None) -> DataSource:
    source = find_data(option)
    console.print(source.note)
    return source


def _recipes(paths: list[Path] | None) -> list[Recipe]:
    return [load_recipe(path) for path in paths] if paths else list(load_recipes().values())


def main() -> None:
    """Run a verb; an error that the kit raises on purpose is one line, without a trace."""
    expected = (
        CheckpointError, ContractError, DatasetError, ItemStoreError, QualityError, QuantizationError, RecipeError,
        RepositoryError, TensorRTMissing, TokenizerError,
    )  # fmt: skip
    try:
        app()
    except expected as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
