"""Contracts of ``postprocess`` and ``similar``, and the items' attributes that business rules read.

What the rules do and in which order is in ``served/postprocess/rules.py``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from builders.core.contract import (
    FALLBACK,
    ITEM_IDS,
    KNOWN,
    LEFT_OUT,
    MAX_ATTRIBUTE_BYTES,
    MAX_BOOST_AMOUNT,
    MAX_BOOSTS,
    RANKED_IDS,
    RULE_INPUTS,
    SCORE,
    SCORES,
    SIMILAR,
    TOP_K,
    UNSCORED,
    Contract,
    ContractError,
)
from builders.core.recipe import RuleDefaults
from builders.data.beir import DatasetError, Product

ATTRIBUTES_TABLE = "attributes"
ATTRIBUTES_VERSION = "1"
"""Of the form of the stored attributes; they belong to no ranker."""
IN_STOCK = "in_stock"


def postprocess_contract(
    name: str = "postprocess",
    heads: int = 1,
    head_weights: Sequence[float] = (),
    rules: RuleDefaults = RuleDefaults(),  # noqa: B008 - frozen
    falls_back: bool = False,
) -> Contract:
    """Contract of the last step.

    Args:
        heads: of the network's score.
        head_weights: one each; none = 1 for a single head.
        rules: the recipe's.
        falls_back: whether the step before gives ``fallback``.

    Raises:
        ContractError: not a weight a head.
    """
    if len(head_weights) != heads and (head_weights or heads > 1):
        raise ContractError(
            f"{name}: {len(head_weights)} head_weights for a score of {heads} heads, wanted one each: "
            f"set head_weights = {[1.0] * heads} (or as you weigh them) under [postprocess] in the recipe"
        )
    score = dataclasses.replace(SCORE, dims=("candidates", heads))
    fallback = (FALLBACK,) if falls_back else ()
    return Contract(
        name=name,
        inputs=(ITEM_IDS, score, KNOWN, *fallback, TOP_K, *RULE_INPUTS),
        outputs=(RANKED_IDS, SCORES, LEFT_OUT),
        parameters={
            "unscored": UNSCORED,
            "head_weights": list(head_weights),
            "rules": rules.model_dump(),
            "max_attribute_bytes": MAX_ATTRIBUTE_BYTES,
            "max_boosts": MAX_BOOSTS,
            "max_boost_amount": MAX_BOOST_AMOUNT,
            "attributes": ATTRIBUTES_TABLE,
            "attributes_version": ATTRIBUTES_VERSION,
        },
    )


def similar_contract(features: str, version: str, width: int, *, exact: bool = False) -> Contract:
    """Contract of ``similar``.

    Args:
        features: table of the item store whose values are FP32 vectors, little-endian, such as ``two_tower``.
        version: of the table.
        width: of a vector.
        exact: compare every item although there is an index.
    """
    parameters = {
        "item_features": features,
        "item_features_version": version,
        "vector_width": width,
        "exact": exact,
    }
    return dataclasses.replace(SIMILAR, parameters={**SIMILAR.parameters, **parameters})


def attribute_records(products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
    """(item id, JSON object) of what rules may ask of each product: brand, color, its widest category, and whatever
    text, number or boolean its ``fields`` hold, such as ``in_stock``. What is absent is left out.

    Raises:
        DatasetError: ``in_stock`` is neither true, false nor absent.
    """
    for product in products:
        yield product.item_id, json.dumps(_attributes(product), ensure_ascii=False).encode()


def _attributes(product: Product) -> dict[str, Any]:
    if not isinstance(product.fields.get(IN_STOCK), bool | None):
        raise DatasetError(
            f"item '{product.item_id}': {IN_STOCK} is {product.fields[IN_STOCK]!r}, wanted true, false or nothing"
        )
    own = {"brand": product.brand, "color": product.color, "category": product.category[0] if product.category else ""}
    given = {**own, **product.fields}
    return {name: value for name, value in given.items() if _is_attribute(value)}


def _is_attribute(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | int) or (isinstance(value, str) and value != "")
