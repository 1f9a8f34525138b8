"""A purchase log => what features declare over it: vocabularies, means and deviations, and starts for embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.sparse.linalg

from builders.data.purchase_fields import CONTEXT_VALUES, ITEM_NUMBERS, USER_NUMBERS, context_fields
from builders.data.purchase_log import SEED, PurchaseLog


def vocabulary(values: Iterable[Any], at_least: int = 1) -> tuple[str, ...]:
    """The distinct texts among ``values`` that occur at least so often, the commonest first, ties by the alphabet."""
    counted = pd.Series([value for value in values if value], dtype=object).value_counts()
    kept = counted[counted >= at_least]
    return tuple(sorted(kept.index, key=lambda value: (-kept[value], value)))


def item_vocabularies(log: PurchaseLog, fields: Sequence[str], at_least: int = 2) -> tuple[tuple[str, ...], ...]:
    """One vocabulary a field, from the items sold before the cut."""
    products = [log.items[item_id].raw_fields for item_id in log.known_items]
    return tuple(vocabulary((product.get(field) for product in products), at_least) for field in fields)


def user_vocabularies(log: PurchaseLog, fields: Sequence[str], at_least: int = 2) -> tuple[tuple[str, ...], ...]:
    """One vocabulary a field, from the customers as of the cut."""
    return tuple(vocabulary((user.get(field) for user in log.users.values()), at_least) for field in fields)


def context_vocabularies(log: PurchaseLog, fields: Sequence[str] = CONTEXT_VALUES) -> tuple[tuple[str, ...], ...]:
    """One vocabulary a field, from the invoices before the cut."""
    contexts = [context_fields(basket.time) for baskets in log.baskets.values() for basket in baskets]
    return tuple(vocabulary(context[field] for context in contexts) for field in fields)


def normalization(
    rows: Iterable[Mapping[str, Any]], fields: Sequence[str], *, log1p: bool = False
) -> dict[str, tuple[float, ...] | bool]:
    """``mean``, ``std`` and ``log1p`` of a dense feature; a field that is everywhere alike gets the deviation 1."""
    table = np.array([[np.nan if row.get(field) is None else row[field] for field in fields] for row in rows], float)
    table = np.log1p(table) if log1p else table
    table[:, np.isnan(table).all(axis=0)] = 0  # a field that no row has
    deviations = np.nan_to_num(np.nanstd(table, axis=0))
    return {
        "mean": tuple(float(mean) for mean in np.nanmean(table, axis=0)),
        "std": tuple(float(deviation) if deviation > 1e-6 else 1.0 for deviation in deviations),
        "log1p": log1p,
    }


def item_normalization(log: PurchaseLog, fields: Sequence[str] = ITEM_NUMBERS, *, log1p: bool = True) -> dict[str, Any]:
    """:func:`normalization` over the items sold before the cut."""
    return normalization((log.items[item_id].raw_fields for item_id in log.known_items), fields, log1p=log1p)


def user_normalization(log: PurchaseLog, fields: Sequence[str] = USER_NUMBERS, *, log1p: bool = True) -> dict[str, Any]:
    """:func:`normalization` over the customers as of the cut."""
    return normalization(log.users.values(), fields, log1p=log1p)


def purchase_vectors(log: PurchaseLog, width: int) -> np.ndarray:
    """float32 [known items, width]: a start for an embedding of items, whose root mean square is 1.

    The right singular vectors of the customers' purchases before the cut, 0 or 1 (PureSVD: Cremonesi, Koren and
    Turrin, RecSys 2010): items that the same customers buy get like vectors.
    """
    row_of = {item_id: row for row, item_id in enumerate(log.known_items)}
    bought = [(user, row_of[item_id]) for user, items in enumerate(log.histories.values()) for item_id in items]
    users, items = np.array(bought).T
    ones = np.ones(len(bought), np.float32)
    matrix = scipy.sparse.csr_matrix((ones, (users, items)), shape=(len(log.histories), len(row_of)))
    vectors = np.zeros((len(row_of), width), np.float32)
    rank = min(width, min(matrix.shape) - 1)
    if rank:
        _, _, right = scipy.sparse.linalg.svds(matrix, k=rank, rng=SEED)
        vectors[:, :rank] = right.T * np.sqrt(len(row_of))
    return vectors


def recent_log_popularity(log: PurchaseLog) -> np.ndarray:
    """float32 [known items]: ln(1 + customers in the last days before the cut), mean 0: a start for an item's bias."""
    recent = np.log1p([log.items[item_id].fields["recent_popularity"] for item_id in log.known_items])
    return (recent - recent.mean()).astype(np.float32)
