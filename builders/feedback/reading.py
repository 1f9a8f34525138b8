"""Feedback logs as files: JSON lines, Parquet or CSV, one record an event. Refuses broken records by file and line.

A cell of Parquet or CSV that is null or empty is an absent field; there, lists and mappings may be JSON text. pyarrow
is imported where a Parquet file is read.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic

from builders.data.beir import DatasetError
from builders.feedback.events import EVENT, Click, Purchase, Shown

FAULTS_TOLD = 3
"""Broken records that one error describes."""
STRUCTURES = ("history", "item_ids", "scores", "features", "teams")
"""Fields that a table may hold as JSON text."""

Record = tuple[str, bytes | dict[str, Any]]
"""(where, JSON text or the fields of the record)"""


class _Unreadable(ValueError):
    """A record that is none, or the rest of a file; the message says where."""


def read_events(paths: Sequence[Path]) -> Iterator[Shown | Click | Purchase]:
    """The events of all files, in their order; a file is read as its ending says: ``.jsonl``, ``.parquet``, ``.csv``.

    Raises:
        DatasetError: a file is missing, empty or of another kind, or records are broken: the first few, and how many
            there are, of all files.
    """
    readers = [(path, _reader(path)) for path in paths]
    faults = _Faults()
    for path, reader in readers:
        found = False
        for event in _events(reader(path), faults):
            found = True
            yield event
        if not found and not faults.count:
            raise DatasetError(f"{path}: no record, wanted one a line")
    faults.raise_if_any()


class _Faults:
    """The first few, and how many."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def add(self, fault: str) -> None:
        self.count += 1
        if len(self.first) < FAULTS_TOLD:
            self.first.append(fault)

    def raise_if_any(self) -> None:
        if self.count:
            rest = f"; and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
            raise DatasetError(
                f"{'; '.join(self.first)}{rest}: {self.count} broken records, wanted none; "
                "docs/reference/feedback-log.md says what a record holds"
            )


def _events(records: Iterator[Record], faults: _Faults) -> Iterator[Shown | Click | Purchase]:
    try:
        for where, record in records:
            try:
                event = EVENT.validate_json(record) if isinstance(record, bytes) else EVENT.validate_python(record)
            except pydantic.ValidationError as error:
                faults.add(f"{where}: {_told(error)}")
            else:
                yield event
    except _Unreadable as error:
        faults.add(str(error))


def _told(error: pydantic.ValidationError) -> str:
    """The first fault of a record, and how many more it has."""
    faults = error.errors(include_url=False)
    first, rest = faults[0], len(faults) - 1
    place = ".".join(str(part) for part in first["loc"][1:])  # the first part is the kind of event
    message = first["msg"].removeprefix("Value error, ")
    whole = not place or first["type"] in ("missing", "extra_forbidden", "json_invalid")
    found = "" if whole else f" is {_short(first['input'])}"
    return (f"'{place}'{found}: " if place else "") + message + (f" (and {rest} more)" if rest else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


# ---------------------------------------------------------------- kinds of files
def _reader(path: Path) -> Callable[[Path], Iterator[Record]]:
    if path.suffix not in READERS:
        raise DatasetError(f"{path}: ends with '{path.suffix}', wanted one of {', '.join(READERS)}")
    if not path.is_file():
        raise DatasetError(f"{path}: no such file, wanted a feedback log")
    return READERS[path.suffix]


def _json_lines(path: Path) -> Iterator[Record]:
    """A byte order mark and blank lines at the end are none of the content."""
    blank: list[Record] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record = (f"{path}:{number}", line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            if not record[1].strip():
                blank.append(record)
                continue
            yield from blank
            blank.clear()
            yield record


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = (row for batch in pq.ParquetFile(path).iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"{path}: row {number}", _fields(row)
    except (pa.ArrowException, OSError) as error:
        raise _Unreadable(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error


def _csv(path: Path) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, restkey="cells without a column", strict=True)
            for row in rows:
                yield f"{path}:{rows.line_num}", _fields({name: cell or None for name, cell in row.items()})
    except (UnicodeDecodeError, csv.Error) as error:
        raise _Unreadable(f"{path}: not CSV in UTF-8 ({error})") from error


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    """Without absent ones; structures that are JSON text are parsed, and stay text where they cannot be."""
    fields = {name: value for name, value in row.items() if value is not None}
    for name in STRUCTURES:
        if name in fields:
            fields[name] = _structure(fields[name])
    return fields


def _structure(value: Any) -> Any:
    """JSON text as what it says; Arrow gives a map as pairs, and a struct with None for items that other rows have."""
    if isinstance(value, str):
        with contextlib.suppress(json.JSONDecodeError, RecursionError):
            return json.loads(value)
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):
        value = dict(value)
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return value


def _without_none(value: Any) -> Any:
    return {name: each for name, each in value.items() if each is not None} if isinstance(value, dict) else value


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".csv": _csv,
}
"""Ending of a file => its records."""
