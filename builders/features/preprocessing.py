"""Contracts of the pre-processing models of text rankers: what ``served/*_preprocess/model.py`` must know."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from builders.core.contract import (
    ITEM_FIELDS,
    ITEM_IDS,
    ITEM_TEXTS,
    KNOWN,
    LENGTH_STEPS,
    QUERY,
    RANK,
    Contract,
    Tensor,
)
from builders.core.keys import key_of
from builders.features import item_text
from builders.features.text import STORED_TOKENS_FORM, TextForm, padding_id

TEXT_CODE = Path(item_text.__file__)
"""Beside every served model that makes an item's text."""


def preprocess_contract(
    ranker: str,
    outputs: Sequence[Tensor],
    tokenizer: Tokenizer,
    form: TextForm,
    *,
    pair: bool,
    features_version: str | None,
    takes_texts: bool = True,
    **parameters: Any,
) -> Contract:
    """Contract of ``<ranker>_preprocess``.

    Args:
        ranker: also the name of its table in the item store.
        outputs: what the ranker's graphs take; ``known`` is added.
        tokenizer: of the checkpoint.
        form: how texts become tokens.
        pair: query and item in one sequence, or each text alone.
        features_version: of the item store's table; None = it reads no store, all texts come in the request.
        takes_texts: whether a request may bring the text of items, or their fields.
        parameters: further facts of this ranker's pre-processing.
    """
    texts = (ITEM_TEXTS, ITEM_FIELDS) if takes_texts else ()
    return Contract(
        name=f"{ranker}_preprocess",
        inputs=(QUERY, ITEM_IDS, *texts),
        outputs=(*outputs, KNOWN),
        parameters={
            **limits("max_candidates", "max_item_id_bytes", "max_query_bytes", "max_text_bytes", "max_context_bytes"),
            "length_steps": [list(step) for step in LENGTH_STEPS],
            "template": special_token_template(tokenizer, pair=pair),
            **dataclasses.asdict(form),
            "pad_token_id": padding_id(tokenizer) if form.pad_token_id is None else form.pad_token_id,
            "item_features": ranker if features_version else None,
            "item_features_version": features_version,
            **parameters,
        },
    )


def tokens_version(form: TextForm, tokenizer_json: str | Path) -> str:
    """Of a table of :func:`builders.features.text.stored_tokens`: whatever a stored token depends on."""
    return key_of(
        {"stored as": STORED_TOKENS_FORM, "text": form.version, "code": TEXT_CODE, "tokenizer": tokenizer_json}
    )


def limits(*names: str) -> dict[str, Any]:
    """Those limits of a request, as the endpoints' contracts state them."""
    return {name: RANK.parameters[name] for name in names}


def special_token_template(tokenizer: Tokenizer, *, pair: bool) -> dict[str, list[int]]:
    """The special tokens that the tokenizer's own post-processor sets: ``before`` the query, ``between`` query and
    item, ``after`` the last; BERT's pair gives [101], [102], [102]. ``types``: the token types of these three and of
    the two texts, in the order of the sequence: BERT's [0, 0, 0, 1, 1]."""
    encoding = tokenizer.encode("a", "b") if pair else tokenizer.encode("a")
    found: dict[str, list[int]] = {"before": [], "between": [], "after": []}
    types = {"before": 0, "query": 0, "between": 0, "item": 0, "after": 0}
    texts_passed = 0
    for token, sequence, kind in zip(encoding.ids, encoding.sequence_ids, encoding.type_ids, strict=True):
        if sequence is not None:
            texts_passed = sequence + 1
            types["item" if sequence else "query"] = kind
            continue
        place = "before" if texts_passed == 0 else "between" if pair and texts_passed == 1 else "after"
        found[place].append(token)
        types[place] = kind
    return {**found, "types": list(types.values())}
