"""What the served pre-processing is told of a tokenizer."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from builders.core.contract import ATTENTION_MASK, INPUT_IDS, ITEM_IDS, KNOWN, LENGTH_BUCKET, MAX_LENGTH, QUERY
from builders.features.preprocessing import preprocess_contract, special_token_template
from builders.features.text import load_tokenizer
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
        (XLM_ROBERTA, True, {"before": [0], "between": [2, 2], "after": [2]}),
        (XLM_ROBERTA, False, {"before": [0], "between": [], "after": [2]}),
        (NO_START, True, {"before": [], "between": [2], "after": [2]}),
        (NO_START, False, {"before": [], "between": [], "after": [2]}),
    ],
)
def test_the_template_is_the_tokenizers_own(made: Tokenizer, pair: bool, wanted: dict[str, list[int]]) -> None:
    assert special_token_template(made, pair=pair) == wanted


def test_the_packaged_backbone_has_berts_template() -> None:
    packaged = load_tokenizer(packaged_backbone())
    assert special_token_template(packaged, pair=True) == {"before": [101], "between": [102], "after": [102]}


def test_the_contract_holds_all_that_a_served_model_needs() -> None:
    contract = preprocess_contract(
        "mugs", (INPUT_IDS, ATTENTION_MASK), XLM_ROBERTA, pair=True, features_version="abc", vector_width=7
    )
    assert contract.name == "mugs_preprocess"
    assert contract.inputs == (QUERY, ITEM_IDS)
    assert contract.outputs == (INPUT_IDS, ATTENTION_MASK, KNOWN)
    assert contract.parameters == {
        "max_candidates": 1024,
        "max_item_id_bytes": 511,
        "max_query_bytes": 2048,
        "max_query_tokens": 32,
        "max_length": MAX_LENGTH,
        "length_bucket": LENGTH_BUCKET,
        "template": {"before": [0], "between": [2, 2], "after": [2]},
        "pad_token_id": 1,
        "item_features": "mugs",
        "item_features_version": "abc",
        "vector_width": 7,
    }
