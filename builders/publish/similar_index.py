"""A table's vectors => the index of ``similar``: made by whoever writes the table, read by the servers beside it.

An index is a FAISS inverted file: vectors of 8 bits a dimension in lists of near ones, some of which a search looks
through. It holds the table as of one change (its ``:changes`` number); what is written later is compared exactly beside
it, so that a new one is needed only when that has become much. How many lists a search looks through is chosen by
measuring: the fewest that find the wanted share of the exact 10 nearest. A folder in the store's holds it, a note in
the store names it, and the folder of the one before is removed: servers that read it keep their map.

A plan (:class:`SimilarPlan`), left in the store by the publication of ``similar``, says which tables have one, so that
every writer keeps it, whatever recipe it knows.

FAISS is imported where an index is made: most commands make none.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from builders.core.errors import BuilderError
from builders.core.files import folder_beside
from builders.core.locks import only_writer
from builders.features.batches import batched
from builders.publish.index_search import (
    ENDS,
    IDS,
    INDEXES,
    NOTE,
    VECTORS,
    IndexFault,
    IndexNote,
    SearchIndex,
    StoredVectorFault,
    asked_for,
    unit_vectors,
)
from builders.publish.item_store import ItemStore, Snapshot

Say = Callable[[str], object]
SEARCH_CODE = Path(__file__).with_name("index_search.py")
"""Published beside ``similar``."""
PLAN = "similar"
EXACT_UP_TO = 50_000
"""Items that are compared in 2 milliseconds; a larger table has an index, until it falls below half as many."""
CHANGED_SHARE, CHANGED_LEAST = 0.05, 5000
"""Changes since an index was made, of the table's items and at least so many: then the next one is made."""
NEAREST, QUERIES = 10, 256
"""What recall is measured with: so many nearest of so many items."""
LEAST_PROBES, MOST_PROBED = 4, 0.25
"""Lists that a search looks through, and of all of them at most this share: beyond it exact comparison is as quick."""
VECTORS_OF_A_LIST = 64
"""That the lists are learned from."""
ROWS_AT_ONCE = 16_384


class SimilarIndexError(BuilderError):
    """Vectors that cannot be indexed; the message says which and what to do."""


class SimilarPlan(NamedTuple):
    """What the publication of ``similar`` asks for.

    Attributes:
        width: of a vector.
        exact: no index, whatever the table's size.
        recall: least share of the exact 10 nearest that an index must find.
    """

    width: int
    exact: bool
    recall: float


def plan_index(store: ItemStore, table: str, plan: SimilarPlan, say: Say) -> None:
    """From now on every writer keeps the table's index by this plan."""
    store.set_note(table, PLAN, json.dumps(plan._asdict()))
    keep_indexes(store, [table], say)


def keep_indexes(store: ItemStore, tables: Iterable[str], say: Say, *, anew: bool = False) -> None:
    """Make an index where the table has grown large or changed much since the last; give it up where none is wanted.

    Args:
        tables: those without a plan are passed over.
        anew: make it although the one that is there would do.

    Raises:
        SimilarIndexError: a stored vector holds NaN or infinities, or has another width.
    """
    for table in tables:
        if (planned := store.note(table, PLAN)) and store.has(table):
            _keep(store, table, SimilarPlan(**json.loads(planned)), say, anew)


def planned_tables(store: ItemStore) -> list[str]:
    """Tables that ``similar`` was published with."""
    return [table for table in store.tables() if store.note(table, PLAN)]


def told(store: ItemStore, table: str) -> str:
    """One line for ``status``."""
    note = _note(store, table)
    if note is None:
        return f"similar: {table}: every item is compared"
    changes = f"{store.sequence(table) - note.sequence:,} changes since"
    recall = f"recall@{NEAREST} {note.recall:.3f} of {note.queries} items"
    if not note.folder:
        return f"similar: {table}: every item is compared, since an index would find too few ({recall}; {changes})"
    return f"similar: {table}: an index of {note.items:,} items, {recall}, {note.probes} lists a search; {changes}"


def _keep(store: ItemStore, table: str, plan: SimilarPlan, say: Say, anew: bool) -> None:
    items, note = store.tables()[table], _note(store, table)
    if plan.exact or items < (EXACT_UP_TO // 2 if note else EXACT_UP_TO):
        _give_up(store, table)
    elif anew or _is_wanted(store, table, plan):
        with only_writer(store.folder / INDEXES, "an index of the item store", say):
            if anew or _is_wanted(store, table, plan):  # another writer may have made it meanwhile
                _make(store, table, plan, say)


def _is_wanted(store: ItemStore, table: str, plan: SimilarPlan) -> bool:
    note = _note(store, table)
    if note is None or note.width != plan.width:
        return True
    if store.sequence(table) - note.sequence > max(CHANGED_LEAST, CHANGED_SHARE * note.items):
        return True
    refused = not note.folder
    is_there = refused or (_folder(store, table) / note.folder).is_dir()
    return not is_there or refused != (note.recall < plan.recall)


def _note(store: ItemStore, table: str) -> IndexNote | None:
    try:
        stored = store.note(table, NOTE)
        return IndexNote.decoded(stored) if stored else None
    except IndexFault:  # by another version of the kit: as if there were none
        return None


def _folder(store: ItemStore, table: str) -> Path:
    return store.folder / INDEXES / table


def _give_up(store: ItemStore, table: str) -> None:
    store.set_note(table, NOTE, None)
    shutil.rmtree(_folder(store, table), ignore_errors=True)


# ---------------------------------------------------------------- making one
def _make(store: ItemStore, table: str, plan: SimilarPlan, say: Say) -> None:
    start_s = time.monotonic()
    name = f"{store.sequence(table)}-{secrets.token_hex(4)}"
    say(f"item store: {table}: making the index of {store.tables()[table]:,} items for similar")
    try:
        with folder_beside(_folder(store, table) / name) as folder, store.snapshot(table) as snapshot:
            note = _written(snapshot, plan, folder, name)
    except (IndexFault, StoredVectorFault) as fault:
        raise SimilarIndexError(f"item store {store.folder}: {table}: {fault}") from fault
    if note.recall < plan.recall:
        shutil.rmtree(_folder(store, table) / name)
        note = note._replace(folder="")
        say(
            f"item store: {table}: WARNING: an index finds {note.recall:.3f} of the exact {NEAREST} nearest "
            f"({note.queries} items), and the recipe wants {plan.recall:g}: none is kept, and similar compares every "
            "item. Set a lower recall under [similar] to have one"
        )
    store.set_note(table, NOTE, note.encoded())
    for other in _folder(store, table).iterdir():
        if other.name != note.folder:
            shutil.rmtree(other)
    if note.folder:
        say(f"item store: {told(store, table).removeprefix('similar: ')}; {time.monotonic() - start_s:,.0f} s")


def _written(snapshot: Snapshot, plan: SimilarPlan, folder: Path, name: str) -> IndexNote:
    """The index's files, and what is measured of them."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(max(1, threads // 2))  # the other half is for who serves beside
    try:
        index = _learned(snapshot, plan.width)
        exact = _filled(index, snapshot, plan.width, folder)
        faiss.write_index(index, str(folder / VECTORS))
        note = IndexNote(name, snapshot.sequence, snapshot.items, plan.width, LEAST_PROBES, 0.0, len(exact.rows))
        return _measured(SearchIndex(folder, note), note, plan.recall, exact, snapshot)
    finally:
        faiss.omp_set_num_threads(threads)


def _learned(snapshot: Snapshot, width: int) -> Any:
    """Without vectors: how they are parted into lists and rounded, learned from a part of them."""
    import faiss

    lists = 2 ** round(math.log2(2 * math.sqrt(snapshot.items)))
    step = max(1, snapshot.items // (VECTORS_OF_A_LIST * lists))
    sample = np.concatenate([vectors for _, vectors in _vectors(snapshot, width, step)])
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width), width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.min_points_per_centroid = 1
    index.train(sample)
    return index


def _filled(index: Any, snapshot: Snapshot, width: int, folder: Path) -> Exact:
    """All vectors go into the index, and which item each row is into files; the exact nearest are found on the way."""
    exact = Exact(snapshot, width)
    keys: list[bytes] = []
    for ids, vectors in _vectors(snapshot, width):
        exact.compare(len(keys), vectors)
        index.add(vectors)
        keys += ids
    np.save(folder / IDS, np.frombuffer(b"".join(keys), dtype=np.uint8))
    np.save(folder / ENDS, np.cumsum([len(key) for key in keys], dtype=np.int64))
    return exact


def _vectors(snapshot: Snapshot, width: int, step: int = 1) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """(ids, FP32 [items, width] of length 1) of each ``step``-th item, ROWS_AT_ONCE at a time."""
    chosen = (item for row, item in enumerate(snapshot) if row % step == 0)
    for some in batched(chosen, ROWS_AT_ONCE):
        vectors = unit_vectors([bytes(value) for _, value in some], width)
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            bad = some[int(np.argmin(finite))][0].decode()
            raise SimilarIndexError(
                f"item '{bad}' has a vector with NaN or infinities, wanted numbers: mend the checkpoint or the item's "
                "text, and run 'make repository'"
            )
        yield [item_id for item_id, _ in some], vectors


class Exact:
    """The exact nearest of some items of the table, found while it is read.

    Attributes:
        rows: of these items.
    """

    def __init__(self, snapshot: Snapshot, width: int) -> None:
        step = max(1, snapshot.items // QUERIES)
        parts = list(_vectors(snapshot, width, step))
        self.ids = [item_id for ids, _ in parts for item_id in ids][:QUERIES]
        self.vectors = np.concatenate([vectors for _, vectors in parts])[:QUERIES]
        self.rows = np.arange(len(self.ids)) * step
        self._best = np.full((len(self.ids), NEAREST), -np.inf, dtype=np.float32)

    def compare(self, first_row: int, vectors: np.ndarray) -> None:
        """With the table's next vectors (FP32 [rows, width], of length 1)."""
        scores = self.vectors @ vectors.T
        own = np.flatnonzero((self.rows >= first_row) & (self.rows < first_row + len(vectors)))
        scores[own, self.rows[own] - first_row] = -np.inf
        both = np.concatenate([self._best, scores], axis=1)
        self._best = np.partition(both, both.shape[1] - NEAREST, axis=1)[:, -NEAREST:]

    def found(self, query: int, scores: np.ndarray) -> float:
        """Share of a query's nearest that are among items with these scores; equal ones stand for each other."""
        best = self._best[query][np.isfinite(self._best[query])]
        return min(1.0, np.count_nonzero(scores >= best.min() - 1e-6) / len(best))


def _measured(search: SearchIndex, note: IndexNote, wanted: float, exact: Exact, snapshot: Snapshot) -> IndexNote:
    """With the fewest probes whose recall is enough, or the most that are allowed."""
    most = max(LEAST_PROBES, int(MOST_PROBED * search.lists))
    probes = LEAST_PROBES
    while True:
        search.probes = probes
        recall = float(np.mean([_recall(search, exact, query, snapshot) for query in range(len(exact.ids))]))
        if recall >= wanted or probes >= most:
            return note._replace(probes=probes, recall=round(recall, 4))
        probes = min(most, probes * 2)


def _recall(search: SearchIndex, exact: Exact, query: int, snapshot: Snapshot) -> float:
    """As ``similar`` answers: asked for more than wanted, which are then ordered by the stored vectors."""
    found = search.nearest(exact.vectors[query], asked_for(NEAREST))
    others = [item_id for item_id in found if item_id != exact.ids[query]]
    scores = unit_vectors(snapshot.values(others), exact.vectors.shape[1]) @ exact.vectors[query]
    return exact.found(query, np.sort(scores)[-NEAREST:])
