"""One small real request for each endpoint, with the scores that this build gives: what a ready server answers.

It goes into the repository's manifest, from where ``server/canary.py`` sends it. Of real items, and of nobody's search
or history: the query is an item's title, and the history another item.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from typing import Any

from builders.core.contract import (
    BOOST_AMOUNTS,
    BOOSTED,
    HISTORY,
    IN_STOCK_ONLY,
    ITEM_ID,
    ITEM_IDS,
    ITEM_TEXTS,
    MAX_PER_BRAND,
    PINNED_IDS,
    PINNED_POSITIONS,
    QUERY,
    TOP_K,
    Contract,
    Tensor,
)
from builders.core.workspace import Workspace
from builders.data.beir import Product, Request
from builders.evaluate.judge import BuiltRanker, BuiltVariant, as_served, open_sessions, score_in_process
from builders.publish.catalogue import items_table, stores_items
from builders.publish.item_store import ItemStore
from builders.publish.manifest import Canary

ITEMS = 3
QUERY_CHARACTERS = 60
EXACT, COMPRESSED = 1e-3, 0.1
"""Share of the largest score, or of 1, by which a served score may differ: of FP32, and of what computes in fewer bits,
where the processor decides how."""
WITHOUT_RULES: dict[Tensor, list[Any]] = {
    TOP_K: [ITEMS],
    IN_STOCK_ONLY: [False],
    BOOSTED: [],
    BOOST_AMOUNTS: [],
    PINNED_IDS: [],
    PINNED_POSITIONS: [],
    MAX_PER_BRAND: [0],
}


def endpoint_canary(built: BuiltRanker, variant: BuiltVariant, contract: Contract, workspace: Workspace) -> Canary:
    """Of an endpoint that serves this variant. There are no scores of a variant that computes on a GPU, nor where the
    items are not in the store."""
    products = _products(built)
    first, names = products[0], {tensor.name for tensor in contract.inputs}
    query = (first.title.strip() or first.item_id)[:QUERY_CHARACTERS]
    request = Request(query=query) if QUERY.name in names else Request(history=(first.item_id,))
    given: dict[Tensor, list[Any]] = {ITEM_IDS: [product.item_id for product in products], **WITHOUT_RULES}
    given |= {QUERY: [query]} if request.query else {HISTORY: list(request.history)}
    if not stores_items(built.ranker):
        given[ITEM_TEXTS] = [product.title or product.item_id for product in products]
    stored = _stored(built, products, workspace)
    scores = _scores(built, variant, request, products) if stored and not variant.variant.runtime.needs_gpu else {}
    return Canary(
        inputs=[_tensor(tensor, values) for tensor, values in given.items() if tensor.name in names],
        items=given[ITEM_IDS],
        scores=scores,
        tolerance=max([1.0, *map(abs, scores.values())]) * (EXACT if variant.variant.exact else COMPRESSED),
        stored=stored,
    )


def similar_canary(built: BuiltRanker) -> Canary:
    """Of ``similar``. Its answer changes with every product, so that nothing but its form can be checked."""
    first = _products(built)[0].item_id
    return Canary(inputs=[_tensor(ITEM_ID, [first]), _tensor(TOP_K, [ITEMS])], may_be_refused=True)


def _products(built: BuiltRanker) -> list[Product]:
    """The first few by id: the same ones at every build of the same catalogue."""
    return [built.data.products[item_id] for item_id in heapq.nsmallest(ITEMS, built.data.products)]


def _scores(
    built: BuiltRanker, variant: BuiltVariant, request: Request, products: Sequence[Product]
) -> dict[str, float]:
    sessions = open_sessions(built.recipe, variant.variant, variant.models, built.ranker.graphs)
    raw = score_in_process(built.ranker, sessions, request, products)
    scores = as_served(built.recipe, built.ranker, request, products, raw)
    return {product.item_id: float(score) for product, score in zip(products, scores, strict=True)}


def _stored(built: BuiltRanker, products: Sequence[Product], workspace: Workspace) -> dict[str, dict[str, str]]:
    """Table => item id => SHA-256 of what is stored; empty where not all of them are."""
    if not stores_items(built.ranker) or not workspace.item_store.is_dir():
        return {}
    table, ids = items_table(built.ranker), [product.item_id for product in products]
    with ItemStore(workspace.item_store) as store:
        values = store.values(table, ids)
    digests = {item_id: hashlib.sha256(value).hexdigest() for item_id, value in zip(ids, values, strict=True) if value}
    return {table: digests} if len(digests) == len(ids) else {}


def _tensor(tensor: Tensor, values: Sequence[Any]) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.dtype, "shape": [len(values)], "data": list(values)}
