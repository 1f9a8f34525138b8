"""A shop's purchase log as Parquet: one row an invoice line.

pyarrow is imported where Parquet is touched, so that those who only read judged queries do without it.
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
    """The columns of a purchase log, as in UCI Online Retail II; ``price`` is a unit price in pounds sterling."""
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
    """Reads ``folder/online_retail/purchases.parquet`` or ``folder/purchases.parquet``, with the ``columns.toml``
    beside it (:mod:`builders.data.purchase_columns`).

    Raises:
        DatasetError: the file is missing, is not Parquet, holds no row, or lacks a column that is needed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = purchases_path(Path(folder))
    if path is None:
        places = " or ".join(str(place) for place in _places(Path(folder)))
        raise DatasetError(f"{folder}: no purchases, wanted {places}")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
    lines, notes = purchase_columns(path, table)
    if lines.num_rows == 0:
        raise DatasetError(f"{path}: no rows, wanted at least one invoice line")
    names = [*purchases_schema().names, *([LABEL] if LABEL in lines.column_names else [])]
    return Purchases(lines.select(names), notes)


def purchases_path(folder: Path) -> Path | None:
    """The file of purchases below a folder, None where there is none."""
    return next((place for place in _places(folder) if place.is_file()), None)


def _places(folder: Path) -> tuple[Path, Path]:
    return folder / "online_retail" / PURCHASES, folder / PURCHASES
