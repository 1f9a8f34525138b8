"""Contracts of the pre-processing models of text rankers: what ``served/*_preprocess/model.py`` must know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from builders.core.contract import (
    ITEM_IDS,
    KNOWN,
    LENGTH_BUCKET,
    MAX_LENGTH,
    MAX_QUERY_TOKENS,
    QUERY,
    RANK,
    Contract,
    Tensor,
)
from builders.features.text import padding_id


def preprocess_contract(
    ranker: str,
    outputs: Sequence[Tensor],
    tokenizer: Tokenizer,
    *,
    pair: bool,
    features_version: str,
    **parameters: Any,
) -> Contract:
    """Contract of ``<ranker>_preprocess``.

    Args:
        ranker: also the name of its table in the item store.
        outputs: what the ranker's graphs take; ``known`` is added.
        tokenizer: of the backbone.
        pair: query and item in one sequence, or the query alone.
        features_version: of the item store's table.
        parameters: further facts of this ranker's pre-processing.
    """
    return Contract(
        name=f"{ranker}_preprocess",
        inputs=(QUERY, ITEM_IDS),
        outputs=(*outputs, KNOWN),
        parameters={
            **limits("max_candidates", "max_item_id_bytes", "max_query_bytes"),
            "max_query_tokens": MAX_QUERY_TOKENS,
            "max_length": MAX_LENGTH,
            "length_bucket": LENGTH_BUCKET,
            "template": special_token_template(tokenizer, pair=pair),
            "pad_token_id": padding_id(tokenizer),
            "item_features": ranker,
            "item_features_version": features_version,
            **parameters,
        },
    )


def limits(*names: str) -> dict[str, Any]:
    """Those limits of a request, as the endpoints' contracts state them."""
    return {name: RANK.parameters[name] for name in names}


def special_token_template(tokenizer: Tokenizer, *, pair: bool) -> dict[str, list[int]]:
    """The special tokens that the tokenizer's own post-processor sets: ``before`` the query, ``between`` query and
    item, ``after`` the last; BERT's pair gives [101], [102], [102]."""
    encoding = tokenizer.encode("a", "b") if pair else tokenizer.encode("a")
    template: dict[str, list[int]] = {"before": [], "between": [], "after": []}
    texts_passed = 0
    for token, sequence in zip(encoding.ids, encoding.sequence_ids, strict=True):
        if sequence is not None:
            texts_passed = sequence + 1
        elif texts_passed == 0:
            template["before"].append(token)
        else:
            template["between" if pair and texts_passed == 1 else "after"].append(token)
    return template
