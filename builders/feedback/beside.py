"""What a feedback log teaches, beside the data that is there: the folder that a retraining reads.

judged, categories   The log's queries are for training alone: those that people judged, whatever their split, keep
                     these judgements, and nobody's click judges a ranker. Items have the fields by which they were
                     ranked, where the log holds them.
purchases            The log's lists follow the purchases as further lines; what was shown and not taken says so in
                     ``label``. A purchase that both hold, by customer, item and day (UTC), counts once.
"""

from __future__ import annotations

import dataclasses
import datetime
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from builders.core.files import replaced_folder
from builders.data.beir import (
    CORPUS,
    QRELS,
    QUERIES,
    DatasetError,
    JudgedQueries,
    judged_folder,
    load_judged,
    write_judged,
)
from builders.data.purchase_columns import COLUMNS_FILE, LABEL
from builders.data.purchases import PURCHASES, PURCHASES_CSV, purchases_path, read_purchases
from builders.feedback.events import Shown
from builders.feedback.export import export
from builders.feedback.impressions import query_key
from builders.feedback.log import FeedbackLog, read_feedback
from builders.feedback.settings import LEAST_IMPRESSIONS, Bias

if TYPE_CHECKING:
    import pyarrow as pa


_JUDGED_FILES = (CORPUS, QUERIES, QRELS)
_PURCHASE_FILES = (PURCHASES, PURCHASES_CSV, COLUMNS_FILE)


@dataclasses.dataclass(frozen=True)
class Feedback:
    """Logs, and how their clicks are read, see :func:`builders.feedback.export.export`."""

    logs: tuple[Path, ...]
    bias: Bias = "none"
    least_impressions: float = LEAST_IMPRESSIONS

    def write_beside(self, kind: str, folder: Path, target: Path) -> tuple[str, ...]:
        """Write ``target``: the data of ``folder`` and what the logs add to it.

        Args:
            kind: a recipe's ``data``.

        Returns:
            Lines for a reader: counts of what was read, added and left out.

        Raises:
            DatasetError: the folder or a log cannot be read, or the logs hold nothing for this kind of data.
        """
        log = read_feedback(list(self.logs))
        with replaced_folder(target) as fresh:
            if kind == "purchases":
                return self._purchases(log, folder, fresh)
            return self._judged(log, folder, fresh)

    # ------------------------------------------------------------ judged queries
    def _judged(self, log: FeedbackLog, folder: Path, fresh: Path) -> tuple[str, ...]:
        own = load_judged(folder)
        searched = _lists_for(log, "a query", lambda shown: bool((shown.query or "").strip()))
        with tempfile.TemporaryDirectory() as scratch:
            clicked = Path(scratch) / "clicks"
            notes = export(searched, clicked, own.products, self.bias, self.least_impressions).notes
            added = load_judged(clicked)
        known = {query_key(text) for text in own.queries.values()}
        new = [query_id for query_id, text in added.queries.items() if query_key(text) not in known]
        place = _others_linked(folder, judged_folder(folder) or folder, fresh, _JUDGED_FILES)
        write_judged(_joined(own, added.only(new)), place)
        told = f"beside {len(own.queries)} judged queries: {len(new)} of the log, for training alone"
        left = len(added.queries) - len(new)
        return (*notes, f"{told}; {left} that people judged keep their judgements" if left else told)

    # ------------------------------------------------------------ purchases
    def _purchases(self, log: FeedbackLog, folder: Path, fresh: Path) -> tuple[str, ...]:
        import pyarrow.parquet as pq

        own = read_purchases(folder)
        others = _lists_for(log, "a history and no query", lambda shown: not (shown.query or "").strip())
        with tempfile.TemporaryDirectory() as scratch:
            clicked = Path(scratch) / "clicks"
            notes = export(others, clicked, None, self.bias, self.least_impressions).notes
            added = read_purchases(clicked).lines
        new = _not_in(added, own.lines)
        path = purchases_path(folder) or folder / PURCHASES
        place = _others_linked(folder, path.parent, fresh, _PURCHASE_FILES)
        pq.write_table(_joined_lines(own.lines, new), place / PURCHASES)
        told = f"beside {own.lines.num_rows} purchase lines: {new.num_rows} of the log"
        twice = added.num_rows - new.num_rows
        return (*own.notes, *notes, f"{told}; {twice} that the purchases hold, too, count once" if twice else told)


def _others_linked(folder: Path, place: Path, fresh: Path, written: Collection[str]) -> Path:
    """Everything else of the data by symbolic links, since a trainer may read any file; the place to write in."""
    for entry in folder.iterdir():
        if entry != place and not (place == folder and entry.name in written):
            (fresh / entry.name).symlink_to(entry.resolve())
    if place == folder:
        return fresh
    (fresh / place.name).mkdir()
    return _others_linked(place, place, fresh / place.name, written)


def _lists_for(log: FeedbackLog, wanted: str, fits: Callable[[Shown], bool]) -> FeedbackLog:
    """The lists that this kind of data can learn from; the others are counted. Raises: DatasetError: there is none."""
    fitting = [each for each in log.lists if fits(each.shown)]
    if not fitting:
        raise DatasetError(f"{len(log.lists)} shown lists, none with {wanted}, which is what this recipe learns from")
    left = len(log.lists) - len(fitting)
    counts = {
        **log.counts,
        **({f"shown lists without {wanted}, which this recipe does not learn from": left} if left else {}),
    }
    return FeedbackLog(fitting, counts)


def _joined(own: JudgedQueries, added: JudgedQueries) -> JudgedQueries:
    """Each query of the own keeps its split, the added ones train."""
    return JudgedQueries(
        queries={**own.queries, **added.queries},
        products={**own.products, **added.products},
        judgements={**own.judgements, **added.judgements},
        splits={
            **{query_id: own.split_of(query_id) for query_id in own.queries},
            **dict.fromkeys(added.queries, "train"),
        },
    )


def _joined_lines(own: pa.Table, added: pa.Table) -> pa.Table:
    import pyarrow as pa

    if LABEL not in own.column_names:
        taken = pa.array([True] * own.num_rows, added.schema.field(LABEL).type)
        own = own.append_column(LABEL, taken)
    return pa.concat_tables([own, added.select(own.column_names)])


def _not_in(added: pa.Table, own: pa.Table) -> pa.Table:
    """The lines whose purchase the own lines do not hold."""
    known = set(_purchase_keys(own))
    new = [key not in known or not taken
           for key, taken in zip(_purchase_keys(added), added[LABEL].to_pylist(), strict=True)]  # fmt: skip
    return added.filter(new)


def _purchase_keys(lines: pa.Table) -> list[tuple[str | None, str, datetime.date]]:
    columns = (lines[name].to_pylist() for name in ("customer_id", "stock_code", "invoice_date"))
    return [(customer, item, time.date()) for customer, item, time in zip(*columns, strict=True)]
