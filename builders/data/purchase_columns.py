"""A shop's table under the shop's own column names => the columns of a purchase log.

``columns.toml`` beside the table says what is called otherwise there::

    time_unit = "s"              # only where times are numbers: "s", "ms" or "us" since 1970

    [columns]
    customer_id = "user_id"      # the kit's name = yours
    stock_code = "item_id"
    invoice_date = "timestamp"
    label = "clicked"

A column that it does not name is looked for under the kit's name. Ids stay the text that the file holds. What cannot be
used is refused by row and column, all at once; rows are counted from 1, without a header. pyarrow and pandas are
imported where tables are touched.
"""

from __future__ import annotations

import dataclasses
import datetime
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
LACKING = {
    "customer_id": "guests, who count for their items alone",
    "stock_code": "left out",
    "invoice_date": "left out",
    "invoice": "what their customer takes at one moment is one invoice",
    "description": "their item is named by its other lines, or by its id",
    "quantity": "one unit each",
    "price": "they count for no price",
    "country": "they tell no country",
}
"""Column => what follows for a line in which it is empty."""
FAULTS_TOLD = 5
LARGEST_QUANTITY = 1_000_000_000
LARGEST_EXACT = 2**53
"""From here on a float does not tell a whole number from the next."""
_NAMES = (*REQUIRED, *OPTIONAL)
_TOP = ("columns", "time_unit")
_MISSING_AS_TEXT = ("nan", "NaN", "None", "<NA>", "NaT")
"""What pandas' ``astype(str)`` makes of a missing value."""
_ZONE = r"\d:\d\d.*(?:Z|[+-]\d\d(?::?\d\d)?)$"
_YEARS = (datetime.datetime(1, 1, 1), datetime.datetime(9999, 1, 1))


class _Unfit(ValueError):
    """A column's type does not do; the message says what was wanted."""


class _UnfitCells(ValueError):
    """Some cells of a column do not do."""

    def __init__(self, rows: np.ndarray, column: pa.ChunkedArray, wanted: str) -> None:
        """rows: from 0."""
        super().__init__(wanted)
        self.count = len(rows)
        self.first = [(int(row), column[int(row)].as_py()) for row in rows[:FAULTS_TOLD]]

    def told(self, name: str) -> list[tuple[int, str]]:
        """The first rows, each with a sentence."""
        return [(row, f"row {row + 1}, column '{name}': {value!r}, wanted {self}") for row, value in self.first]


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
    """The table's lines in the kit's columns, and lines for a reader: what was left out or taken for granted.

    Returns:
        Columns as :func:`builders.data.purchases.purchases_schema`, without null but in ``customer_id`` (guests),
        ``description`` and ``price``; and ``label``, bool, where the table has it. Lines without item or time are left
        out.

    Raises:
        DatasetError: a column is missing, empty or of a type that does not do, or cells cannot be used; all at once.
    """
    names = ColumnNames.beside(path)
    present = {name: table[names.of(name)] for name in _NAMES if table.column_names.count(names.of(name)) == 1}
    converted, faults = _converted(present, names)
    faults = [*_missing(names, table), *faults]
    faults += [
        f"column '{names.of(name)}' is empty in all {table.num_rows} rows, wanted a value for {name}"
        for name in REQUIRED
        if name in converted and _is_empty(converted[name])
    ]
    if faults:
        raise DatasetError(f"{path}: {'; '.join(faults)}")
    kept = {name: column for name, column in converted.items() if not _is_empty(column)}
    lines, notes = _complete(kept)
    return lines, (*_told_of_columns(path, names, present, kept), *notes)


def _converted(
    present: Mapping[str, pa.ChunkedArray], names: ColumnNames
) -> tuple[dict[str, pa.ChunkedArray], list[str]]:
    """Columns in the kit's types, and faults: of types, then of cells by row."""
    converted: dict[str, pa.ChunkedArray] = {}
    faults: list[str] = []
    cells: list[tuple[int, str]] = []
    count = 0
    for name, column in present.items():
        try:
            converted[name] = column if _is_empty(column) and name != LABEL else _CONVERT[name](column, names)
        except _Unfit as error:
            faults.append(f"column '{names.of(name)}' is {column.type}{error}")
        except _UnfitCells as error:
            cells += error.told(names.of(name))
            count += error.count
    told = [text for _, text in sorted(cells)[:FAULTS_TOLD]]
    rest = [f"and {count - len(told)} more cells"] if count > len(told) else []
    return converted, [*faults, *told, *rest]


def _is_empty(column: pa.ChunkedArray) -> bool:
    return bool(len(column)) and column.null_count == len(column)


def _told_of_columns(
    path: Path, names: ColumnNames, present: Mapping[str, pa.ChunkedArray], kept: Mapping[str, pa.ChunkedArray]
) -> list[str]:
    """Of the whole table: columns without anything, and ids that look like another program's numbers."""
    notes = []
    for name in OPTIONAL:
        if name not in kept and name != LABEL:
            lack = f"{names.of(name)} is empty in all rows" if name in present else f"no {name}"
            notes.append(f"{path.name}: {lack}: {OPTIONAL[name]}")
    for name in ("customer_id", "stock_code", "invoice"):
        if name in kept and (like_floats := _whole_floats(present[name])):
            notes.append(
                f"{path.name}: {like_floats} of {len(kept[name])} values of {names.of(name)} are texts such as '12.0', "
                "kept as they are; pandas writes whole numbers so beside missing ones: read them as text, dtype=str"
            )
    return notes


def _whole_floats(column: pa.ChunkedArray) -> int:
    """How many texts are a whole number with ".0"."""
    import pyarrow.compute as pc

    column = _plain(column)
    return (pc.sum(pc.match_substring_regex(column, r"^\d+\.0$")).as_py() or 0) if _is_text(column) else 0


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
    yield from (
        f"column '{names.of(name)}' stands {table.column_names.count(names.of(name))} times, wanted it once"
        for name in _NAMES
        if table.column_names.count(names.of(name)) > 1
    )
    if absent:
        found = ", ".join(f"'{name}'" for name in table.column_names)
        yield f"no column {', '.join(absent)}; found {found}; say in [columns] of {names.file} what yours are called"


def _complete(columns: Mapping[str, pa.ChunkedArray]) -> tuple[pa.Table, list[str]]:
    """Lines with item and time, every column there; and how many lack what."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.table(dict(columns))
    notes = [
        f"{lacking} of {table.num_rows} lines without {name}: {LACKING[name]}"
        for name in LACKING
        if name in columns and (lacking := table[name].null_count)
    ]
    table = table.filter(pc.and_(pc.is_valid(table["stock_code"]), pc.is_valid(table["invoice_date"])))
    moments = table["invoice_date"].cast(pa.string())
    defaults = {"invoice": moments, "quantity": 1, "country": ""}
    filled = {name: _filled(table, name, default) for name, default in defaults.items()}
    empty = {"description": pa.string(), "price": pa.float64()}
    filled |= {
        name: table[name] if name in table.column_names else pa.nulls(table.num_rows, type_)
        for name, type_ in empty.items()
    }
    label = {LABEL: table[LABEL]} if LABEL in table.column_names else {}
    return pa.table({**{name: table[name] for name in REQUIRED}, **filled, **label}), notes


def _filled(table: pa.Table, name: str, default: Any) -> Any:
    """A column with the default where it is null, or all default."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if name in table.column_names:
        return pc.coalesce(table[name], default)
    return pa.array([default] * table.num_rows) if isinstance(default, (str, int)) else default


# ---------------------------------------------------------------- types
def _text(column: pa.ChunkedArray, _names: ColumnNames) -> pa.ChunkedArray:
    """Strings as they are and whole numbers; 12.0, as pandas writes whole numbers beside nulls, counts as 12. Null
    where nothing is written."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _plain(column)
    if pa.types.is_floating(column.type):
        column = _whole_numbers(column, LARGEST_EXACT, "a whole number below 2**53, or text")
    if not (pa.types.is_integer(column.type) or _is_text(column)):
        raise _Unfit(", wanted string or int64")
    text = column.cast(pa.string())
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), pa.scalar(None, pa.string()), text)


def _id(column: pa.ChunkedArray, names: ColumnNames) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    text = _text(column, names)
    missing = pc.is_in(text, value_set=pa.array(_MISSING_AS_TEXT))
    _refuse(missing, column, "an id, or nothing; so pandas writes a missing value as text, leave it null")
    return text


def _quantity(column: pa.ChunkedArray, _names: ColumnNames) -> pa.ChunkedArray:
    import pyarrow as pa

    read = _numbers(column, "a whole number")
    if not (pa.types.is_integer(read.type) or pa.types.is_floating(read.type)):
        raise _Unfit(", wanted int64")
    return _whole_numbers(read.cast(pa.float64()), LARGEST_QUANTITY, "a whole number of units up to a billion", column)


def _whole_numbers(
    numbers: pa.ChunkedArray, largest: int, wanted: str, told: pa.ChunkedArray | None = None
) -> pa.ChunkedArray:
    """Floats as int64, NaN as null. told: the column as the file has it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers = _without_nan(numbers)
    unfit = pc.or_(pc.not_equal(pc.floor(numbers), numbers), pc.greater(pc.abs(numbers), float(largest)))
    _refuse(unfit, numbers if told is None else told, wanted)
    return numbers.cast(pa.int64())


def _price(column: pa.ChunkedArray, _names: ColumnNames) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    read = _numbers(column, "a number such as 2.55, without currency")
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if not any(is_kind(read.type) for is_kind in kinds):
        raise _Unfit(", wanted double")
    price = _without_nan(read.cast(pa.float64()))
    _refuse(pc.is_inf(price), column, "a finite price")
    return price


def _time(column: pa.ChunkedArray, names: ColumnNames) -> pa.ChunkedArray:
    """Times, days, texts in ISO 8601, or numbers of a stated unit; a zone becomes UTC."""
    import pyarrow as pa

    read = _numbers(column, f"a number of {names.time_unit}") if names.time_unit else _plain(column)
    if pa.types.is_integer(read.type) or pa.types.is_floating(read.type):
        return _moments(read, column, names)
    if _is_text(read):
        return _parsed_times(read)
    if not pa.types.is_temporal(read.type):
        raise _Unfit(", wanted a time")
    try:
        times = read.cast(pa.timestamp("us"), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _Unfit(f", wanted times such as 2026-01-31T09:30:00 ({error})") from None
    return _within_years(times, column)


def _moments(numbers: pa.ChunkedArray, column: pa.ChunkedArray, names: ColumnNames) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not names.time_unit:
        raise _Unfit(f', wanted a time; for seconds since 1970 say time_unit = "s" in {names.file}')
    microseconds = _without_nan(pc.multiply(numbers.cast(pa.float64()), float(TIME_UNITS[names.time_unit])))
    _refuse(pc.greater(pc.abs(microseconds), 9e18), column, f"a time in {names.time_unit} since 1970")
    return _within_years(pc.round(microseconds).cast(pa.int64()).cast(pa.timestamp("us")), column)


def _within_years(times: pa.ChunkedArray, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """What Python's datetime holds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    first, last = (pa.scalar(each, pa.timestamp("us")) for each in _YEARS)
    _refuse(pc.or_(pc.less(times, first), pc.greater(times, last)), column, "a year of 1 to 9998; see time_unit")
    return times


def _parsed_times(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    import pandas as pd
    import pyarrow as pa

    series = texts.to_pandas().str.strip()
    given = (series.notna() & (series != "")).to_numpy(dtype=bool)
    times = pd.to_datetime(series, format="ISO8601", utc=True, errors="coerce")
    _refuse(given & times.isna().to_numpy(), texts, "a time such as 2026-01-31T09:30:00 (ISO 8601)")
    zoned = given & series.str.contains(_ZONE, regex=True, na=False).to_numpy(dtype=bool)
    if zoned.any() and (zoned != given).any():
        few = zoned if zoned.sum() * 2 <= given.sum() else given & ~zoned
        _refuse(few, texts, f"a time zone in all {given.sum()} times or in none, {zoned.sum()} have one")
    return pa.chunked_array([pa.Array.from_pandas(times.dt.tz_localize(None), type=pa.timestamp("us"), safe=False)])


def _flag(column: pa.ChunkedArray, _names: ColumnNames) -> pa.ChunkedArray:
    import pyarrow as pa

    texts: dict[object, bool] = {"0": False, "1": True, "false": False, "true": True}
    known: dict[object, bool] = {0: False, 1: True, **texts}  # False and True are equal to 0 and 1
    found = [known.get(value.lower() if isinstance(value, str) else value) for value in _plain(column).to_pylist()]
    unknown = np.array([value is None for value in found], dtype=bool)
    _refuse(unknown, column, "1 for taken and 0 for shown and not taken")
    return pa.chunked_array([pa.array(found, pa.bool_())])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Not encoded by a dictionary."""
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _is_text(column: pa.ChunkedArray) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _numbers(column: pa.ChunkedArray, wanted: str) -> pa.ChunkedArray:
    """Texts, as CSV has them, as double, NaN where nothing is written; else the column."""
    import pandas as pd
    import pyarrow as pa

    column = _plain(column)
    if not _is_text(column):
        return column
    texts = column.to_pandas().str.strip()
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    given = (texts.notna() & ~texts.str.lower().isin(["", "nan"])).to_numpy(dtype=bool)
    _refuse(given & np.isnan(numbers), column, wanted)
    return pa.chunked_array([pa.array(numbers)])


def _without_nan(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Null in its place."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, numbers.type), numbers)


def _refuse(unfit: pa.ChunkedArray | np.ndarray, column: pa.ChunkedArray, wanted: str) -> None:
    """Raises: _UnfitCells for the rows that are true."""
    mask = unfit if isinstance(unfit, np.ndarray) else np.asarray(unfit.fill_null(False), dtype=bool)
    rows = np.flatnonzero(mask)
    if len(rows):
        raise _UnfitCells(rows, column, wanted)


_CONVERT: dict[str, Callable[[pa.ChunkedArray, ColumnNames], pa.ChunkedArray]] = {
    "customer_id": _id,
    "invoice": _id,
    "invoice_date": _time,
    "stock_code": _id,
    "description": _text,
    "quantity": _quantity,
    "price": _price,
    "country": _text,
    LABEL: _flag,
}
