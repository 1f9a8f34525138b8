"""Rows as CSV text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping


def csv_text(rows: Iterable[Mapping[str, object]]) -> str:
    """A header of the first row's names, then a line a row; empty where there is no row."""
    listed = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(listed[0]) if listed else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return text.getvalue()
