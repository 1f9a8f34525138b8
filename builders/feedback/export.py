"""A feedback log => training data: judged queries in BEIR's layout, and lists without a query as a purchase log."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from builders.core.errors import listed
from builders.core.files import fingerprint, replaced_folder, write_atomically
from builders.data.beir import (
    CORPUS,
    QRELS,
    QUERIES,
    DatasetError,
    JudgedQueries,
    Product,
    product_of_row,
    write_judged,
)
from builders.data.purchase_columns import LABEL
from builders.data.purchases import PURCHASES, purchases_schema
from builders.feedback.grades import Graded, graded
from builders.feedback.impressions import Impressions, impressions_of
from builders.feedback.log import FeedbackLog, ShownList
from builders.feedback.propensities import Propensities, estimated_propensities
from builders.feedback.settings import LEAST_IMPRESSIONS, Bias

REPORT = "feedback.json"
"""Counts, propensities and settings, beside the data."""
OWN_FILES = (CORPUS, QUERIES, QRELS, PURCHASES, REPORT)
_COLUMNS = ("title", "text")


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        notes: lines for a reader: counts of what was written and of what was left out.
        propensities: by position from the top, None where not known; None where bias is not corrected.
    """

    notes: tuple[str, ...]
    propensities: tuple[float | None, ...] | None


def export(
    log: FeedbackLog,
    folder: Path,
    corpus: Mapping[str, Product] | None = None,
    bias: Bias = "none",
    least_impressions: float = LEAST_IMPRESSIONS,
) -> Exported:
    """Writes training data into ``folder``, in the place of an earlier export.

    Lists with a query give ``queries.jsonl``, ``qrels.tsv`` and ``corpus.jsonl``; lists with a history and no query
    give ``purchases.parquet``.

    Args:
        corpus: fields of items for which the log holds none; all of it is written.
        bias: whether clicks are corrected by the propensity of their position, see :mod:`builders.feedback.grades`.
        least_impressions: of a graded pair, see :func:`builders.feedback.grades.graded`.

    Raises:
        DatasetError: the folder holds other files; no fields of any graded item are known; nothing can be graded.
    """
    _check_folder(folder)
    if not any(each.taken for each in log.lists):
        raise DatasetError(f"nothing was clicked or bought in {len(log.lists)} lists, wanted clicks or purchases")
    served = _served_items(log.lists)
    products = {**(corpus or {}), **_products(served, corpus or {})}
    searched = [each for each in log.lists if (each.shown.query or "").strip()]
    others = [each for each in log.lists if not (each.shown.query or "").strip()]
    notes = [*log.told(), *served.notes, *_unwritten_histories(searched)]
    propensities = None
    with replaced_folder(folder) as fresh:
        if searched:
            propensities = _write_queries(fresh, searched, products, bias, least_impressions, notes)
        if others:
            _write_purchases(fresh, others, products, notes)
        exported = Exported(tuple(notes), propensities)
        settings = {"bias": bias, "least_impressions": least_impressions}
        write_atomically(fresh / REPORT, json.dumps(settings | dataclasses.asdict(exported), indent=2) + "\n")
    return exported


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise DatasetError(f"{folder} is a file, wanted a folder to write")
    strangers = sorted(each.name for each in folder.iterdir() if each.name not in OWN_FILES) if folder.exists() else []
    if strangers:
        raise DatasetError(
            f"{folder} holds {listed(strangers)}, wanted a new or empty folder, or one that this verb wrote; name "
            "another one with --out"
        )


# ---------------------------------------------------------------- items
@dataclasses.dataclass(frozen=True)
class _ServedItems:
    """Item id to the raw fields that the log holds of it, of the latest list that does."""

    fields: dict[str, dict[str, Any]]
    request_ids: dict[str, str]
    notes: tuple[str, ...]


def _served_items(lists: Sequence[ShownList]) -> _ServedItems:
    latest: dict[str, tuple[datetime.datetime, str, dict[str, Any]]] = {}
    changing: set[str] = set()
    for each in lists:
        for item_id, fields in (each.shown.features or {}).items():
            known = latest.setdefault(item_id, (each.shown.time, each.shown.request_id, fields))
            if known[2] != fields:
                changing.add(item_id)
            if each.shown.time > known[0]:
                latest[item_id] = (each.shown.time, each.shown.request_id, fields)
    notes = (f"{len(changing)} items were ranked by fields that changed: the latest are kept",) if changing else ()
    return _ServedItems(
        {item_id: fields for item_id, (_, _, fields) in latest.items()},
        {item_id: request_id for item_id, (_, request_id, _) in latest.items()},
        notes,
    )


def _products(served: _ServedItems, corpus: Mapping[str, Product]) -> dict[str, Product]:
    """Served fields over those of the corpus. Raises: DatasetError: a field cannot be one of a product."""
    products = {}
    for item_id, fields in served.fields.items():
        known = corpus[item_id].raw_fields if item_id in corpus else {}
        merged = {**{name: value for name, value in known.items() if name != "item_id"}, **fields}
        merged = {name: list(value) if isinstance(value, tuple) else value for name, value in merged.items()}
        row = {"_id": item_id, **{name: merged.pop(name, None) or "" for name in _COLUMNS}, "metadata": merged}
        where = f"features of '{item_id}' in request '{served.request_ids[item_id]}'"
        products[item_id] = product_of_row(where, row)
    return products


# ---------------------------------------------------------------- lists with a query
def _unwritten_histories(lists: Sequence[ShownList]) -> list[str]:
    count = sum(bool(each.shown.history) for each in lists)
    return [f"{count} lists have a query and a history: the query is written, the history is not"] if count else []


def _write_queries(
    folder: Path,
    lists: Sequence[ShownList],
    products: Mapping[str, Product],
    bias: Bias,
    least_impressions: float,
    notes: list[str],
) -> tuple[float | None, ...] | None:
    """The propensities that the grades were corrected by."""
    impressions = impressions_of(lists)
    propensities = estimated_propensities(impressions) if bias == "inverse-propensity" else None
    found = graded(impressions, propensities, least_impressions)
    judgements = _of_known_items(found, products, notes)
    judged = _judged(judgements, impressions, products)
    write_judged(judged, folder)
    notes += found.notes
    if propensities is not None:
        notes.append(f"propensities by {propensities.source}: {_by_position(propensities)}")
    notes.append(_told_grades(judged))
    return None if propensities is None else _listed(propensities)


def _of_known_items(found: Graded, products: Mapping[str, Product], notes: list[str]) -> dict[str, dict[str, int]]:
    """The grades of items whose fields are known, of queries with a clicked one. Raises: DatasetError: none is."""
    kept = {
        query: {item_id: grade for item_id, grade in grades.items() if item_id in products}
        for query, grades in found.grades.items()
    }
    unknown = {item_id for grades in found.grades.values() for item_id in grades if item_id not in products}
    useful = {query: grades for query, grades in kept.items() if any(grades.values())}
    if not useful:
        raise DatasetError(
            f"no fields of {len(unknown)} graded items, first {listed(sorted(unknown))}: the log holds no 'features' "
            "of them, and no corpus does; wanted --corpus corpus.jsonl"
        )
    if unknown:
        notes.append(
            f"{len(unknown)} items, {listed(sorted(unknown))}, have no 'features' in the log and are in no corpus: "
            f"left out, and with them {len(kept) - len(useful)} queries"
        )
    return useful


def _judged(
    judgements: Mapping[str, Mapping[str, int]], impressions: Impressions, products: Mapping[str, Product]
) -> JudgedQueries:
    ids = {query: f"q{fingerprint([query])}" for query in judgements}  # the same from night to night
    return JudgedQueries(
        queries={ids[query]: impressions.texts[query] for query in judgements},
        products=dict(products),
        judgements={ids[query]: dict(grades) for query, grades in judgements.items()},
    )


def _listed(propensities: Propensities) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(each) else float(each) for each in propensities.of_position)


def _by_position(propensities: Propensities) -> str:
    return ", ".join("not known" if each is None else f"{each:.2f}" for each in _listed(propensities))


def _told_grades(judged: JudgedQueries) -> str:
    grades = [grade for of_query in judged.judgements.values() for grade in of_query.values()]
    counts = ", ".join(f"{grades.count(grade)} of grade {grade}" for grade in (3, 2, 1, 0))
    return (
        f"written: {len(judged.queries)} queries, {len(grades)} judged pairs ({counts}), {len(judged.products)} items"
    )


# ---------------------------------------------------------------- lists without a query
def _write_purchases(
    folder: Path, lists: Sequence[ShownList], products: Mapping[str, Product], notes: list[str]
) -> None:
    """A row for each item of each list: clicked or bought, or neither. The bias of positions is not corrected."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    taken = sum(len(each.taken) for each in lists)
    if not taken:
        notes.append(f"{len(lists)} lists without a query, in which nothing was clicked or bought: left out")
        return
    rows = [row for each in lists for row in _purchase_rows(each, products)]
    pq.write_table(pa.Table.from_pylist(rows, _purchases_schema()), folder / PURCHASES)
    notes.append(
        f"written: {len(lists)} lists without a query as {len(rows)} lines of {PURCHASES}, {taken} of them taken; "
        "the bias of positions is not corrected in it"
    )


def _purchases_schema() -> Any:
    import pyarrow as pa

    return purchases_schema().append(pa.field(LABEL, pa.int8()))


def _purchase_rows(each: ShownList, products: Mapping[str, Product]) -> list[dict[str, Any]]:
    taken = each.taken
    time = each.shown.time.astimezone(datetime.UTC).replace(tzinfo=None)
    rows = []
    for item_id in each.shown.item_ids:
        product = products.get(item_id)
        rows.append(
            {
                "customer_id": each.shown.user,
                "invoice": each.shown.request_id,
                "invoice_date": time,
                "stock_code": item_id,
                "description": product.title or None if product else None,
                "quantity": 1,
                "price": product.price if product else None,
                LABEL: int(item_id in taken),
            }
        )
    return rows
