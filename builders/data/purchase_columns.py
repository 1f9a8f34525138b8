"""A shop's table under the shop's own column names => the columns of a purchase log.

``columns.toml`` beside the table says what is called otherwise there::

    time_unit = "s"              # only where times are numbers: "s", "ms" or "us" since 1970

    [columns]
    customer_id = "user_id"      # the kit's name = yours
    stock_code = "item_id"
    invoice_date = "timestamp"
    label = "clicked"

A column that it does not name is looked for under the kit's name. pyarrow is imported where tables are touched.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builders.core.faults import unknown_name
from builders.data.beir import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS_FILE = "columns.toml"
TIME_UNITS = {"s": 1_000_000, "ms": 1000, "us": 1}
"""Microseconds of each."""
REQUIRED = ("customer_id", "stock_code", "invoice_date")
LABEL = "label"
"""1 = taken, 0 = shown and not taken. Not part of UCI's layout."""
OPTIONAL = {
    "invoice": "what a customer takes at one moment is one invoice",
    "description": "an item's id is its title",
    "quantity": "each line is one unit",
    "price": "no item has a price",
    "country": "no customer has a country",
    LABEL: "every line was taken",
}
"""Column => what follows where it is absent."""
_NAMES = (*REQUIRED, *OPTIONAL)
_TOP = ("columns", "time_unit")


class _Unfit(ValueError):
    """A column's type or values do not do; the message says what was wanted."""


@dataclasses.dataclass(frozen=True)
class ColumnNames:
    """What ``columns.toml`` says.

    Attributes:
        theirs: the kit's name of a column => its name in the table.
        time_unit: of times that are numbers; empty = they are times.
        file: where it lies, or would lie.
    """

    theirs: Mapping[str, str]
    time_unit: str
    file: Path

    @classmethod
    def beside(cls, table: Path) -> ColumnNames:
        """Of the file beside a table; nothing renamed where there is none. Raises: DatasetError."""
        file = table.with_name(COLUMNS_FILE)
        if not file.is_file():
            return cls({}, "", file)
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DatasetError(f"{file}: not TOML: {error}") from error
        if faults := [*_faults(content)]:
            raise DatasetError(f"{file}: {'; '.join(faults)}")
        return cls(content.get("columns", {}), content.get("time_unit", ""), file)

    def of(self, name: str) -> str:
        """The table's name of a column of ours."""
        return self.theirs.get(name, name)


def purchase_columns(path: Path, table: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """The table's purchases in the kit's columns, and lines that say what was left out or taken for granted.

    Returns:
        Columns as :func:`builders.data.purchases.purchases_schema`, without null but in ``price``; and ``label``, bool,
        where the table has it. Lines without customer, item or time are left out.

    Raises:
        DatasetError: a column is missing or of a type that does not do; all faults at once.
    """
    names = ColumnNames.beside(path)
    present = {name: table[names.of(name)] for name in _NAMES if names.of(name) in table.column_names}
    faults = [*_missing(names, table)]
    converted: dict[str, pa.ChunkedArray] = {}
    for name, column in present.items():
        try:
            converted[name] = _CONVERT[name](column, names)
        except _Unfit as error:
            faults.append(f"column '{names.of(name)}' is {column.type}{error}")
    if faults:
        raise DatasetError(f"{path}: {'; '.join(faults)}")
    notes = [f"{path.name}: no {name}: {OPTIONAL[name]}" for name in OPTIONAL if name not in present and name != LABEL]
    kept, dropped = _complete(converted)
    return kept, (*notes, *dropped)


def _faults(content: Mapping[str, Any]) -> Iterable[str]:
    """Of ``columns.toml``."""
    yield from (f"{name}: {unknown_name(name, _TOP)}" for name in content if name not in _TOP)
    unit, columns = content.get("time_unit", "s"), content.get("columns", {})
    if unit not in TIME_UNITS:
        yield f"time_unit is {unit!r}, wanted one of {', '.join(TIME_UNITS)}"
    if not isinstance(columns, dict):
        yield f"columns is {columns!r}, wanted a table"
        return
    yield from (f"columns.{name}: {unknown_name(name, _NAMES, 'column')}" for name in columns if name not in _NAMES)
    yield from (
        f"columns.{name} is {theirs!r}, wanted a column's name"
        for name, theirs in columns.items()
        if not isinstance(theirs, str)
    )


def _missing(names: ColumnNames, table: pa.Table) -> Iterable[str]:
    """Of the table: what is named or needed and not there, once, with what is."""
    absent = [
        f"'{names.of(name)}'" + (f" for {name}" if name in names.theirs else "")
        for name in _NAMES
        if names.of(name) not in table.column_names and (name in REQUIRED or name in names.theirs)
    ]
    if absent:
        found = ", ".join(f"'{name}'" for name in table.column_names)
        yield f"no column {', '.join(absent)}; found {found}; say in [columns] of {names.file} what yours are called"


def _complete(columns: Mapping[str, pa.ChunkedArray]) -> tuple[pa.Table, list[str]]:
    """Lines with customer, item and time, every column there; and how many were left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.table(dict(columns))
    notes = []
    for name in REQUIRED:
        lacking = table[name].null_count
        if lacking:
            notes.append(f"{lacking} of {table.num_rows} lines without {name} are left out")
            table = table.filter(pc.is_valid(table[name]))
    moments = table["invoice_date"].cast(pa.string())
    defaults = {"invoice": moments, "description": table["stock_code"], "quantity": 1, "country": ""}
    filled = {name: _filled(table, name, default) for name, default in defaults.items()}
    price = table["price"] if "price" in table.column_names else pa.nulls(table.num_rows, pa.float64())
    label = {LABEL: table[LABEL]} if LABEL in table.column_names else {}
    kept = {name: table[name] for name in REQUIRED}
    return pa.table({**kept, **filled, "price": price, **label}), notes


def _filled(table: pa.Table, name: str, default: Any) -> Any:
    """A column with the default where it is null, or all default."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if name in table.column_names:
        return pc.coalesce(table[name], default)
    return pa.array([default] * table.num_rows) if isinstance(default, (str, int)) else default


# ---------------------------------------------------------------- types
def _text(column: pa.ChunkedArray, _names: ColumnNames) -> pa.ChunkedArray:
    """Strings and whole numbers; 12.0, as pandas writes whole numbers beside nulls, counts as 12."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = _whole(column, _names)
    if not (pa.types.is_integer(column.type) or _is_text(column)):
        raise _Unfit(", wanted string or int64")
    return column.cast(pa.string())


def _whole(column: pa.ChunkedArray, _names: ColumnNames) -> pa.ChunkedArray:
    import pyarrow as pa

    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise _Unfit(", wanted int64")
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise _Unfit(f" with numbers that are not whole, wanted int64 ({error})") from None


def _number(column: pa.ChunkedArray, _names: ColumnNames) -> pa.ChunkedArray:
    import pyarrow as pa

    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise _Unfit(", wanted double")
    return column.cast(pa.float64())


def _time(column: pa.ChunkedArray, names: ColumnNames) -> pa.ChunkedArray:
    """Times, days, texts in ISO 8601, or numbers of a stated unit; a zone becomes UTC."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        if not names.time_unit:
            raise _Unfit(f', wanted a time; for seconds since 1970 say time_unit = "s" in {names.file}')
        microseconds = pc.multiply(column.cast(pa.float64()), float(TIME_UNITS[names.time_unit]))
        return pc.round(microseconds).cast(pa.int64()).cast(pa.timestamp("us"))
    if not (pa.types.is_temporal(column.type) or _is_text(column)):
        raise _Unfit(", wanted a time")
    try:
        return column.cast(pa.timestamp("us"), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _Unfit(f", wanted times such as 2026-01-31T09:30:00 ({error})") from None


def _flag(column: pa.ChunkedArray, _names: ColumnNames) -> pa.ChunkedArray:
    import pyarrow as pa

    values = set(column.unique().to_pylist())
    if not values <= {0, 1}:  # True and False are equal to them
        strangers = ", ".join(sorted(map(repr, values - {0, 1}))[:3])
        raise _Unfit(f" and holds {strangers}, wanted 1 for taken and 0 for shown and not taken")
    return column.cast(pa.int64()).cast(pa.bool_()) if not pa.types.is_boolean(column.type) else column


def _is_text(column: pa.ChunkedArray) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


_CONVERT: dict[str, Callable[[pa.ChunkedArray, ColumnNames], pa.ChunkedArray]] = {
    "customer_id": _text,
    "invoice": _text,
    "invoice_date": _time,
    "stock_code": _text,
    "description": _text,
    "quantity": _whole,
    "price": _number,
    "country": _text,
    LABEL: _flag,
}
