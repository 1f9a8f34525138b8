"""Products and users => the item store: what changed is computed anew, what is new is added, what has gone is removed.

A catalogue is all that one ranker knows; the items of several lie side by side in one store. A product is known by the
rankers whose catalogues hold it, or was added one by one, and then stays until a catalogue has held it.

Knows nothing of how a variant was built or judged, and nothing of the model repository.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from builders.compress.context import Say
from builders.core.errors import BuilderError
from builders.core.files import replaced_folder
from builders.core.keys import digests
from builders.core.workspace import PROJECT, Workspace
from builders.data.beir import DatasetError, Deletion, Product, catalogue_lines, is_generated
from builders.evaluate.judge import BuiltRanker
from builders.features.batches import batched
from builders.publish.item_store import ADDED, Entry, ItemStore, Kind, table_name
from builders.publish.postprocessing import ATTRIBUTES_TABLE, ATTRIBUTES_VERSION, attribute_records
from builders.publish.similar_index import keep_indexes
from builders.rankers.base import Ranker

T = TypeVar("T")
User = tuple[str, Mapping[str, Any]]
"""User id and raw fields."""
LARGEST_SHARE_REMOVED = 0.5
"""Of a catalogue's items in the store; a refresh that would remove more is refused."""
REFRESHED_AT_ONCE = 4096
"""Products held at once."""
_ATTRIBUTES = table_name(ATTRIBUTES_TABLE, ATTRIBUTES_VERSION)


class CatalogueError(BuilderError):
    """A catalogue that the item store is not brought to; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Changes:
    """How many items of a table were ..."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0

    def __add__(self, other: Changes) -> Changes:
        return Changes(*(mine + its for mine, its in zip(*map(dataclasses.astuple, (self, other)), strict=True)))

    def __str__(self) -> str:
        return f"{self.added:,} added, {self.changed:,} changed, {self.removed:,} removed, {self.unchanged:,} unchanged"


@dataclasses.dataclass(frozen=True)
class Record(Generic[T]):
    """A product or a user, with the digest of its content."""

    key: str
    content: str
    thing: T


@dataclasses.dataclass(frozen=True)
class Table(Generic[T]):
    """A table of the store, and how things become its values.

    Attributes:
        name: ``<features>@<version>``.
        sources: who knows what is written: the names of rankers whose catalogue it is, or ADDED.
        values: (id, stored bytes) of each thing.
        shared: whether rankers besides these have items in it.
    """

    name: str
    sources: frozenset[str]
    values: Callable[[Sequence[T]], Iterable[tuple[str, bytes]]]
    shared: bool = False

    @property
    def features(self) -> str:
        """Its name without the version."""
        return self.name.rpartition("@")[0]


class Pace:
    """Says from time to time how many items are computed, and how quickly: a catalogue can take hours.

    What was told is stored: a run that ends early is gone on with by the next.
    """

    def __init__(self, what: str, items: int, say: Say, every_s: float = 30.0) -> None:
        self._what, self._items, self._say, self._every_s = what, items, say, every_s
        self._start_s = self._told_s = time.monotonic()

    def tell(self, done: int) -> None:
        """Of all items ``done`` are stored."""
        now_s = time.monotonic()
        if not done or now_s - self._told_s < self._every_s:
            return
        self._told_s = now_s
        per_s = done / (now_s - self._start_s)
        left_minutes = max(0, self._items - done) / per_s / 60
        self._say(
            f"{self._what}: {done:,} of {self._items:,} stored, {per_s:,.0f} items/s, {left_minutes:,.0f} minutes left"
        )


def _quiet(line: str) -> None:
    """Takes a line and shows nothing."""


# ---------------------------------------------------------------- builds
def fill_item_store(
    rankers: Sequence[BuiltRanker], say: Say = print, workspace: Workspace = PROJECT, *, anew: bool = False
) -> None:
    """Bring the store to these rankers' catalogues and users: features of what is new or changed are computed, what has
    gone from a ranker's catalogue is removed. Products that were added one by one stay.

    Args:
        anew: fill a store beside the present one, of either kind of data, and rename it into its place.

    Raises:
        ItemStoreError: the store holds generated data and this is real, or the other way round.
    """
    with _store(workspace.item_store, anew) as store:
        for built in rankers:
            store.claim(_kind(built.data.generated))
        store.remember(workspace.repository)
        records: dict[int, list[Record[Product]]] = {}
        for built in rankers:
            if id(built.data) not in records:
                records[id(built.data)] = product_records(built.data.products.values())
            _fill(store, built, records[id(built.data)], say)
        keep_indexes(store, store.tables(), say)
    if anew:
        say(f"item store {workspace.item_store} is a new one: start the servers that read it again")


def _fill(store: ItemStore, built: BuiltRanker, records: Sequence[Record[Product]], say: Say) -> None:
    ranker = built.ranker
    of_catalogue = frozenset({ranker.name})
    *features, attributes = _tables([ranker], of_catalogue)
    for table in (*features, attributes):
        found = _synchronised(store, table, records, say if table in features else None)
        if table in features or not features:
            say(f"item store: {table.features}: {found}")
    for users in _user_tables([ranker], of_catalogue):
        found = _synchronised(store, users, user_records(built.data.users), None)
        say(f"item store: {users.features}: {found}")


def _synchronised(store: ItemStore, table: Table[T], records: Sequence[Record[T]], say: Say | None) -> Changes:
    """The table holds just these, besides what others know."""
    store.create(table.name)
    present = {record.key for record in records}
    stale = sum(map(len, (_stale(store, table, some) for some in batched(records)))) if say else 0
    if say and stale:
        say(f"item store: features of {stale:,} items for {table.features}")
    pace = Pace(f"item store: {table.features}", stale, say or _quiet)
    found = Changes()
    for some in batched(records):
        found += _bring_up(store, table, some)
        pace.tell(found.added + found.changed)
    absent, _ = store.gone(table.name, present, table.sources, unmarked=not table.shared)
    removed = _forget(store, table, absent, table.sources)
    store.set_whole(table.name)
    if say and (left := _added_to_other_versions(store, table)):
        say(
            f"item store: {table.features}: {left:,} items that were added one by one have no features of this "
            "version; add them again: 'python -m builders add-items'"
        )
    return found + Changes(removed=removed)


def _added_to_other_versions(store: ItemStore, table: Table[T]) -> int:
    """Items whose features only other versions have; what they were computed from is not kept."""
    others = [other for other in store.versions(table.features) if other != table.name]
    added = {item_id for other in others for item_id, mark in store.known(other) if mark.sources == {ADDED}}
    return sum(mark is None for mark in store.marks(table.name, sorted(added)))


# ---------------------------------------------------------------- while it is served
def add_items(
    rankers: Sequence[Ranker],
    products: Sequence[Product],
    workspace: Workspace = PROJECT,
    *,
    generated: bool | None = None,
    say: Say = print,
) -> Changes:
    """Add or replace products while the store is being served; the next request sees them.

    Args:
        rankers: whose features are computed; attributes are stored in any case.
        generated: whether the products are made up; None = they are as those of the store.

    Returns:
        What happened to the attributes, which every product has.
    """
    with ItemStore(workspace.item_store) as store:
        _claim(store, generated)
        tables = _tables(rankers, frozenset({ADDED}))
        found = _added(store, tables, product_records(products))
        keep_indexes(store, [table.name for table in tables], say)
        return found


def add_users(
    rankers: Sequence[Ranker], users: Mapping[str, Mapping[str, Any]], workspace: Workspace = PROJECT
) -> None:
    """Add or replace users while the store is being served; nothing for rankers that read none."""
    with ItemStore(workspace.item_store) as store:
        for table in _user_tables(rankers, frozenset({ADDED})):
            _added(store, [table], user_records(users))


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """A file of products whose every line was looked at.

    Attributes:
        present: ids of its products.
        deleted: ids of the lines that say that a product is gone.
        state: size and time of change of the file as it was read.
        generated: whether the products are made up.
    """

    path: Path
    present: frozenset[str]
    deleted: frozenset[str]
    state: tuple[int, int]
    generated: bool = False

    def products(self) -> Iterator[Product]:
        """One after the other, as they are in the file."""
        return (line for _, line in catalogue_lines(self.path) if isinstance(line, Product))

    def check_unchanged(self) -> None:
        """Raises: CatalogueError: the file is another one by now."""
        if _state(self.path) != self.state:
            raise CatalogueError(f"{self.path} changed while it was read: nothing was removed; run the command again")


def read_catalogue(path: Path, called: str = "") -> Catalogue:
    """Look at every line; ids are held, products are not.

    Args:
        called: the file in messages; "" = its path.

    Raises:
        DatasetError: a line is no product and no deletion, or an id stands twice.
    """
    present: set[str] = set()
    deleted: set[str] = set()
    state = _state(path)
    for where, line in catalogue_lines(path, called):
        if line.item_id in present or line.item_id in deleted:
            raise DatasetError(f"{where}: product '{line.item_id}' stands twice, wanted distinct ids")
        if isinstance(line, Deletion):
            deleted.add(line.item_id)
            continue
        present.add(line.item_id)
        try:
            list(attribute_records([line]))
        except DatasetError as error:
            raise DatasetError(f"{where}: {error}") from error
    return Catalogue(path, frozenset(present), frozenset(deleted), state, not called and is_generated(path.parent))


def _state(path: Path) -> tuple[int, int]:
    if not path.is_file():
        return 0, 0
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def refresh(
    rankers: Sequence[Ranker],
    catalogue: Catalogue,
    workspace: Workspace = PROJECT,
    *,
    partial: bool = False,
    allow_shrink: bool = False,
    progress: Callable[[Iterable[list[Product]], int], Iterable[list[Product]]] = lambda batches, _: batches,
    say: Say = print,
) -> Changes:
    """Bring the store to a catalogue while it is being served; each 4,096 products are seen by the next request.

    Args:
        rankers: whose catalogue it is, and whose features are computed of what is new or changed.
        partial: the catalogue is some products: nothing is removed but what its lines call deleted.
        allow_shrink: remove however many have gone.
        progress: of (batches, their number), gives the batches.

    Returns:
        What happened to the attributes, which every product has.

    Raises:
        CatalogueError: more than LARGEST_SHARE_REMOVED of a ranker's items have gone; nothing was written.
        ItemStoreError: the store holds generated data and this is real, or the other way round.
    """
    sources = frozenset({ADDED}) if partial else frozenset(ranker.name for ranker in rankers)
    tables = _tables(rankers, sources)
    with ItemStore(workspace.item_store) as store:
        _claim(store, catalogue.generated)
        absent = {} if partial else {table.name: _gone(store, table, catalogue, allow_shrink) for table in tables}
        found = dict.fromkeys((table.name for table in tables), Changes())
        _create(store, tables)
        count = -(-len(catalogue.present) // REFRESHED_AT_ONCE)
        for some in progress(batched(catalogue.products(), REFRESHED_AT_ONCE), count):
            records = product_records(some)
            for table in tables:
                found[table.name] += _bring_up(store, table, records)
        catalogue.check_unchanged()
        everyone = frozenset({ADDED, *(ranker.name for ranker in rankers)})
        for table in tables:
            removed = _forget(store, table, absent.get(table.name, ()), table.sources)
            removed += _forget(store, table, catalogue.deleted, everyone)
            found[table.name] += Changes(removed=removed)
            if not partial:
                store.set_whole(table.name)
        for table in tables[:-1]:
            say(f"{table.features}: {found[table.name]}")
        keep_indexes(store, found, say)
        return found[tables[-1].name]


def check_versions(ranker: Ranker, read: Collection[str]) -> None:
    """Whether the features that the ranker computes are those that published models read.

    Args:
        read: tables that they read; none = the ranker is not published.

    Raises:
        CatalogueError: they read other versions only, so that a refresh would change nothing that is served.
    """
    if not stores_items(ranker) or not read or items_table(ranker) in read:
        return
    published = sorted(table for table in read if table.rpartition("@")[0] == ranker.name)
    raise CatalogueError(
        f"{ranker.name}: published models read {', '.join(published) or 'no table of the item store'}, and the recipe "
        f"and checkpoint here compute {items_table(ranker)}: run 'make repository', or take the checkpoint that was "
        "published"
    )


def _gone(store: ItemStore, table: Table[Product], catalogue: Catalogue, allow_shrink: bool) -> list[str]:
    absent, count = store.gone(table.name, catalogue.present, table.sources, unmarked=not table.shared)
    if len(absent) > LARGEST_SHARE_REMOVED * count and not allow_shrink:
        raise CatalogueError(
            f"the catalogue of {len(catalogue.present):,} products would remove {len(absent):,} of the {count:,} items "
            f"of {table.features}, more than half: nothing was changed. If its export was cut off, export it again; if "
            "it is meant so, say --allow-shrink; if it is only some of the products, say --partial"
        )
    return absent


# ---------------------------------------------------------------- records and tables
def product_records(products: Iterable[Product]) -> list[Record[Product]]:
    """Each product with the digest of all that it holds."""
    return [Record(product.item_id, _digest(product), product) for product in products]


def user_records(users: Mapping[str, Mapping[str, Any]]) -> list[Record[User]]:
    """Each user with the digest of its raw fields."""
    return [Record(user_id, _digest(fields), (user_id, fields)) for user_id, fields in users.items()]


def stores_items(ranker: Ranker) -> bool:
    """Whether it has a table in the item store; else all that it reads of an item comes in the request."""
    return ranker.preprocess.parameters["item_features"] is not None


def items_table(ranker: Ranker) -> str:
    """Of a ranker that has one."""
    parameters = ranker.preprocess.parameters
    return table_name(parameters["item_features"], parameters["item_features_version"])


def _tables(rankers: Sequence[Ranker], sources: frozenset[str]) -> list[Table[Product]]:
    """The rankers' own, then that of the attributes. A ranker's own table knows no other ranker."""
    own = [
        Table(items_table(each), sources & {ADDED, each.name}, each.item_features)
        for each in rankers
        if stores_items(each)
    ]
    return [*own, Table(_ATTRIBUTES, sources, attribute_records, shared=True)]


def _user_tables(rankers: Sequence[Ranker], sources: frozenset[str]) -> Iterator[Table[User]]:
    for ranker in rankers:
        parameters = ranker.preprocess.parameters
        if parameters.get("user_features"):
            name = table_name(parameters["user_features"], parameters["item_features_version"])
            yield Table(name, sources, functools.partial(_user_values, ranker))


def _user_values(ranker: Ranker, users: Sequence[User]) -> Iterable[tuple[str, bytes]]:
    return ranker.user_features(dict(users))


def _digest(content: object) -> str:
    return digests({"content": content})["content"]


# ---------------------------------------------------------------- one table
def _added(store: ItemStore, tables: Sequence[Table[T]], records: Sequence[Record[T]]) -> Changes:
    """To every table; returns what happened to the last."""
    new = _create(store, tables)
    found = Changes()
    for table in tables:
        found = sum((_bring_up(store, table, some) for some in batched(records)), Changes())
        if table.name in new:
            store.set_whole(table.name)
    return found


def _create(store: ItemStore, tables: Sequence[Table[T]]) -> set[str]:
    """Names of those that were not there."""
    return {table.name for table in tables if store.create(table.name)}


def _stale(store: ItemStore, table: Table[T], records: Sequence[Record[T]]) -> list[Record[T]]:
    marks = store.marks(table.name, [record.key for record in records])
    return [one for one, mark in zip(records, marks, strict=True) if mark is None or mark.content != one.content]


def _bring_up(store: ItemStore, table: Table[T], records: Sequence[Record[T]]) -> Changes:
    """Compute and write what is new or changed; of the rest write who knows it."""
    marks = dict(zip((one.key for one in records), store.marks(table.name, [one.key for one in records]), strict=True))
    stale = [one for one in records if (mark := marks[one.key]) is None or mark.content != one.content]
    values = dict(table.values([one.thing for one in stale])) if stale else {}
    entries = [Entry(one.key, values[one.key], one.content) for one in stale]
    for one in records:
        mark = marks[one.key]
        if mark is not None and mark.content == one.content and mark.known_by(table.sources) != mark:
            entries.append(Entry(one.key, None, one.content))
    store.write(table.name, entries, table.sources)
    added = sum(marks[one.key] is None for one in stale)
    return Changes(added=added, changed=len(stale) - added, unchanged=len(records) - len(stale))


def _forget(store: ItemStore, table: Table[T], item_ids: Collection[str], sources: Collection[str]) -> int:
    """Also in the tables of the features' other versions, which may still be served; counted in the table itself."""
    removed = store.remove(table.name, item_ids, sources)
    for other in store.versions(table.features):
        if other != table.name and item_ids:
            store.remove(other, item_ids, sources)
    return removed


# ---------------------------------------------------------------- the store
@contextlib.contextmanager
def _store(folder: Path, anew: bool) -> Iterator[ItemStore]:
    if not anew:
        with ItemStore(folder) as store:
            yield store
        return
    with replaced_folder(folder) as fresh, ItemStore(fresh) as store:
        yield store


def _claim(store: ItemStore, generated: bool | None) -> None:
    if generated is not None:
        store.claim(_kind(generated))


def _kind(generated: bool) -> Kind:
    return "generated" if generated else "real"
