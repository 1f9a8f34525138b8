"""Small purchase logs: hand-written lines, and the generated shop."""

from __future__ import annotations

import datetime
import functools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.core.recipe import Recipe, load_recipe
from builders.core.training_settings import RecommenderSettings
from builders.core.workspace import REPOSITORY_ROOT
from builders.data.purchase_log import PurchaseLog, purchase_log
from builders.data.purchases import PURCHASES, purchases_schema
from builders.data.synthetic import write_generated

CUT = datetime.datetime(2010, 6, 1)


def line(
    customer: int, invoice: str, day: str, item_id: str, quantity: int = 1, price: float = 2.0, **more: str
) -> Any:
    """A row of a log; ``day`` is ISO."""
    time = datetime.datetime.fromisoformat(day)
    title = more.get("title", f"RED {item_id} LAMP")
    return str(customer), invoice, time, item_id, title, quantity, price, more.get("country", "Norway")


def write_lines(folder: Path, lines: Iterable[Any]) -> Path:
    """As ``folder/purchases.parquet``; returns ``folder``."""
    schema = purchases_schema()
    columns = [pa.array(column, field.type) for column, field in zip(zip(*lines, strict=True), schema, strict=True)]
    pq.write_table(pa.table(columns, schema=schema), folder / PURCHASES)
    return folder


@functools.cache
def generated_folder() -> Path:
    """With the generated shop; made once a run."""
    folder = Path(tempfile.mkdtemp()) / "generated"
    write_generated(folder)
    return folder


@functools.cache
def generated_log() -> PurchaseLog:
    """Of the generated shop, cut where nine invoices of ten lie before."""
    return purchase_log(generated_folder())


def small_recipe(ranker: str, **training: Any) -> Recipe:
    """The kit's, but trained for a few steps on one thread."""
    recipe = load_recipe(REPOSITORY_ROOT / "recipes" / f"{ranker}.toml")
    quick = {"epochs": 1, "examples": 64, "batch": 16, "threads": 1, **training}
    return recipe.model_copy(
        update={"training": RecommenderSettings.of({**RecommenderSettings.of(recipe.training).model_dump(), **quick})}
    )
