"""Tables of the item store that no version of a published model reads any more => dropped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from builders.publish.item_store import ItemStore, ItemStoreError, table_name
from builders.publish.postprocessing import ATTRIBUTES_TABLE, ATTRIBUTES_VERSION

_NAMED_BY = {
    "item_features": "item_features_version",
    "user_features": "item_features_version",
    "attributes": "attributes_version",
}
"""Parameter of a contract that names features => the one that names their version."""


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What was dropped.

    Attributes:
        freed_bytes: that new items can use; the store's file does not shrink.
    """

    tables: tuple[str, ...] = ()
    freed_bytes: int = 0

    def __str__(self) -> str:
        if not self.tables:
            return "item store: every table is read by a version of a published model"
        return (
            f"item store: dropped {len(self.tables)} tables that no version of a published model reads "
            f"({', '.join(self.tables)}); {self.freed_bytes / 1e6:,.1f} MB are free for new items"
        )


def prune_tables(repository: Path, store: Path) -> Pruned:
    """Drop the tables that no version folder names, of this repository and of any other that was published with the
    store. Safe while the store is being served: readers in flight finish with what they see.

    A table that is being filled stays, and so do the attributes.

    Raises:
        ItemStoreError: a version folder cannot be read, so that what it needs is not known; nothing is dropped.
    """
    if not (store / "data.mdb").is_file():
        return Pruned()
    with ItemStore(store) as opened:
        opened.remember(repository)
        beside = store.absolute().with_name("model_repository")  # the usual place, also before stores remembered any
        kept = {table_name(ATTRIBUTES_TABLE, ATTRIBUTES_VERSION), *opened.unfilled()}
        for each in {*opened.repositories, beside}:
            kept |= tables_read(each)
        unread = tuple(sorted(opened.tables().keys() - kept))
        return Pruned(unread, opened.drop(unread))


def tables_read(repository: Path) -> set[str]:
    """Of the item store, by any version folder of the repository, those included that are being written.

    Raises:
        ItemStoreError: a contract cannot be read.
    """
    contracts = repository.glob("*/*/**/contract.json")  # those of a fused model's steps, too
    return {table for path in contracts for table in _tables_of(path)}


def _tables_of(contract: Path) -> Iterator[str]:
    try:
        parameters = json.loads(contract.read_text(encoding="utf-8"))["parameters"]
    except FileNotFoundError:  # a version that was removed just now
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ItemStoreError(
            f"{contract}: no contract ({type(error).__name__}: {error}), so that it is not known which tables of the "
            "item store it reads: none was dropped. Remove that version folder and run 'make repository'"
        ) from error
    for features, version in _NAMED_BY.items():
        if parameters.get(features):
            yield table_name(parameters[features], parameters[version])
