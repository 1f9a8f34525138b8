"""A shop's purchase log as Parquet: one row an invoice line.

pyarrow is imported where Parquet is touched, so that those who only read judged queries do without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from builders.data.beir import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

PURCHASES = "purchases.parquet"


def purchases_schema() -> pa.Schema:
    """The columns of a purchase log, as in UCI Online Retail II; ``price`` is a unit price in pounds sterling."""
    import pyarrow as pa

    return pa.schema(
        {
            "customer_id": pa.int64(),
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
    """Reads ``folder/online_retail/purchases.parquet`` or ``folder/purchases.parquet``.

    Raises:
        DatasetError: the file is missing, is not Parquet, holds no row, or lacks a column of :func:`purchases_schema`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = _purchases_path(Path(folder))
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
    _check_schema(path, table.schema)
    if table.num_rows == 0:
        raise DatasetError(f"{path}: no rows, wanted at least one invoice line")
    return table.select(purchases_schema().names).cast(purchases_schema())


def _purchases_path(folder: Path) -> Path:
    places = (folder / "online_retail" / PURCHASES, folder / PURCHASES)
    for place in places:
        if place.is_file():
            return place
    raise DatasetError(f"{folder}: no purchases, wanted {places[0]} or {places[1]}")


def _check_schema(path: Path, found: pa.Schema) -> None:
    faults = []
    for wanted in purchases_schema():
        if wanted.name not in found.names:
            faults.append(f"no column '{wanted.name}', wanted {wanted.type}")
        elif _type_name(found, wanted.name) != str(wanted.type):
            faults.append(f"column '{wanted.name}' is {_type_name(found, wanted.name)}, wanted {wanted.type}")
    if faults:
        raise DatasetError(f"{path}: {'; '.join(faults)}")


def _type_name(schema: pa.Schema, name: str) -> str:
    """``large_string`` counts as ``string``: which of the two a file has depends on its writer alone."""
    return str(schema.field(name).type).removeprefix("large_")
