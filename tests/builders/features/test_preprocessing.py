"""What the served pre-processing is told of a tokenizer."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from builders.core.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    ITEM_FIELDS,
    ITEM_IDS,
    ITEM_TEXTS,
    KNOWN,
    LENGTH_STEPS,
    MAX_LENGTH,
    QUERY,
)
from builders.features.preprocessing import preprocess_contract, special_token_template
from builders.features.text import KIT_FORM, load_tokenizer
from builders.rankers.backbone import packaged_backbone

VOCABULARY = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5}


def tokenizer(single: str, pair: str) -> Tokenizer:
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = [("<s>", 0), ("</s>", 2)]
    made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=specials)
    return made


XLM_ROBERTA = tokenizer("<s> $A </s>", "<s> $A </s> </s> $B </s>")
NO_START = tokenizer("$A </s>", "$A </s> $B </s>")


@pytest.mark.parametrize(
    ("made", "pair", "wanted"),
    [
        (XLM_ROBERTA, True, {"before": [0], "between": [2, 2], "after": [2], "types": [0] * 5}),
        (XLM_ROBERTA, False, {"before": [0], "between": [], "after": [2], "types": [0] * 5}),
        (NO_START, True, {"before": [], "between": [2], "after": [2], "types": [0] * 5}),
        (NO_START, False, {"before": [], "between": [], "after": [2], "types": [0] * 5}),
    ],
)
def test_the_template_is_the_tokenizers_own(made: Tokenizer, pair: bool, wanted: dict[str, list[int]]) -> None:
    assert special_token_template(made, pair=pair) == wanted


def test_the_packaged_backbone_has_berts_template() -> None:
    packaged = load_tokenizer(packaged_backbone())
    assert special_token_template(packaged, pair=True) == {
        "before": [101],
        "between": [102],
        "after": [102],
        "types": [0, 0, 0, 1, 1],
    }


def test_the_contract_holds_all_that_a_served_model_needs() -> None:
    contract = preprocess_contract(
        "mugs", (INPUT_IDS, ATTENTION_MASK), XLM_ROBERTA, KIT_FORM, pair=True, features_version="abc", vector_width=7
    )
    assert contract.name == "mugs_preprocess"
    assert contract.inputs == (QUERY, ITEM_IDS, ITEM_TEXTS, ITEM_FIELDS)
    assert contract.outputs == (INPUT_IDS, ATTENTION_MASK, KNOWN)
    assert contract.parameters == {
        "max_candidates": 1024,
        "max_item_id_bytes": 511,
        "max_query_bytes": 2048,
        "max_text_bytes": 32_768,
        "max_context_bytes": 4096,
        "max_query_tokens": 32,
        "max_length": MAX_LENGTH,
        "length_steps": [list(step) for step in LENGTH_STEPS],
        "truncation_side": "right",
        "template": {"before": [0], "between": [2, 2], "after": [2], "types": [0] * 5},
        "pad_token_id": 1,
        "item": "",
        "query_prompt": "",
        "item_prompt": "",
        "item_features": "mugs",
        "item_features_version": "abc",
        "vector_width": 7,
    }


def test_without_a_version_no_store_is_read() -> None:
    parameters = preprocess_contract("mugs", (), XLM_ROBERTA, KIT_FORM, pair=True, features_version=None).parameters
    assert parameters["item_features"] is None and parameters["item_features_version"] is None
