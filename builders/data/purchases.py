"""A shop's purchase log as Parquet or CSV: one row an invoice line.

pyarrow is imported where a table is touched, so that those who only read judged queries do without it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from builders.data.beir import DatasetError
from builders.data.purchase_columns import LABEL, purchase_columns

if TYPE_CHECKING:
    import pyarrow as pa

PURCHASES = "purchases.parquet"
PURCHASES_CSV = "purchases.csv"


@dataclasses.dataclass(frozen=True)
class Purchases:
    """A purchase log as read.

    Attributes:
        lines: as :func:`purchases_schema`; with ``label``, bool, where the file has it: False = shown and not taken.
        notes: lines for a reader: what was left out, and what was taken for granted.
    """

    lines: pa.Table
    notes: tuple[str, ...]


def purchases_schema() -> pa.Schema:
    """The columns of a purchase log, as in UCI Online Retail II; ``price`` is a unit price in pounds sterling.

    ``customer_id`` is null for a guest; ``description`` and ``price`` are null where they are not known.
    """
    import pyarrow as pa

    return pa.schema(
        {
            "customer_id": pa.string(),
            "invoice": pa.string(),
            "invoice_date": pa.timestamp("us"),
            "stock_code": pa.string(),
            "description": pa.string(),
            "quantity": pa.int64(),
            "price": pa.float64(),
            "country": pa.string(),
        }
    )


def load_purchases(folder: Path) -> pa.Table:
    """The lines of :func:`read_purchases`. Raises: DatasetError."""
    return read_purchases(folder).lines


def read_purchases(folder: Path) -> Purchases:
    """Reads ``purchases.parquet`` or ``purchases.csv`` in ``folder/online_retail`` or ``folder``, with the
    ``columns.toml`` beside it (:mod:`builders.data.purchase_columns`).

    Raises:
        DatasetError: the file is missing, cannot be read, holds no row, lacks a column that is needed, or has cells
            that cannot be used.
    """
    import pyarrow as pa

    path = purchases_path(Path(folder))
    if path is None:
        places = " or ".join(str(place) for place in _places(Path(folder)))
        raise DatasetError(f"{folder}: no purchases, wanted {places}")
    kind = "Parquet" if path.name == PURCHASES else "CSV"
    try:
        table = _parquet(path) if path.name == PURCHASES else _csv(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a {kind} file ({str(error).splitlines()[0]})") from error
    if table.num_rows == 0:
        raise DatasetError(f"{path}: no rows, wanted at least one invoice line")
    lines, notes = purchase_columns(path, table)
    if lines.num_rows == 0:
        raise DatasetError(f"{path}: none of {table.num_rows} lines has both item and time, wanted at least one")
    names = [*purchases_schema().names, *([LABEL] if LABEL in lines.column_names else [])]
    others = [place for place in _places(Path(folder)) if place != path and place.is_file()]
    return Purchases(lines.select(names), (*(f"{other}: not read, {path} is" for other in others), *notes))


def _parquet(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(path)


def _csv(path: Path) -> pa.Table:
    """Every column as text, so that no id is taken for a number; null where nothing is written. UTF-8, commas, with a
    header."""
    import pyarrow as pa
    from pyarrow import csv

    layout = csv.ParseOptions(newlines_in_values=True)
    names = csv.open_csv(path, parse_options=layout).schema.names
    as_text = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
    )
    return csv.read_csv(path, parse_options=layout, convert_options=as_text)


def purchases_path(folder: Path) -> Path | None:
    """The file of purchases below a folder, None where there is none."""
    return next((place for place in _places(folder) if place.is_file()), None)


def _places(folder: Path) -> tuple[Path, ...]:
    return tuple(place / name for place in (folder / "online_retail", folder) for name in (PURCHASES, PURCHASES_CSV))
