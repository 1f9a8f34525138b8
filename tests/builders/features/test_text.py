"""Token sequences against the tokenizer's own joining, limits, padding, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors

from builders.core.contract import LENGTH_BUCKET, MAX_LENGTH, MAX_QUERY_TOKENS
from builders.data.beir import Product
from builders.features.text import (
    KIT_FORM,
    TextForm,
    TokenizerError,
    encode_pairs,
    encode_texts,
    load_tokenizer,
    separator_id,
    special_ids,
)
from builders.rankers.backbone import packaged_backbone


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(packaged_backbone())


def test_brand_is_added_only_where_the_title_does_not_name_it() -> None:
    assert KIT_FORM.items([Product("1", "Trail shoe", brand="Acme")]) == ["Trail shoe Acme"]
    assert KIT_FORM.items([Product("1", "ACME trail shoe", brand="Acme")]) == ["ACME trail shoe"]
    assert KIT_FORM.items([Product("1", "Trail shoe", brand="")]) == ["Trail shoe"]
    assert KIT_FORM.items([Product("1", "", brand="Acme")]) == ["Acme"]


def test_pairs_equal_the_tokenizers_own_joining(tokenizer: Tokenizer) -> None:
    wanted = tokenizer.encode("red shoe", "Trail shoe, size 9")
    row = {
        name: array[0][: len(wanted.ids)]
        for name, array in encode_pairs(tokenizer, "red shoe", ["Trail shoe, size 9"]).items()
    }
    assert row["input_ids"].tolist() == wanted.ids
    assert row["token_type_ids"].tolist() == wanted.type_ids
    assert row["attention_mask"].tolist() == [1] * len(wanted.ids)


def test_pairs_are_int32_padded_on_the_right_to_the_bucket(tokenizer: Tokenizer) -> None:
    pairs = encode_pairs(tokenizer, "red shoe", ["shoe", "a much longer title of a shoe for the trail"])
    assert {array.dtype for array in pairs.values()} == {np.dtype(np.int32)}
    rows, length = pairs["input_ids"].shape
    assert rows == 2 and length % LENGTH_BUCKET == 0
    assert (pairs["input_ids"][pairs["attention_mask"] == 0] == 0).all()
    assert (np.diff(pairs["attention_mask"], axis=1) <= 0).all()


def test_query_is_cut_first_and_the_item_to_what_is_left(tokenizer: Tokenizer) -> None:
    pairs = encode_pairs(tokenizer, "red " * 100, ["shoe " * 300])
    ids = pairs["input_ids"][0].tolist()
    assert len(ids) == MAX_LENGTH
    assert ids.index(separator_id(tokenizer)) == MAX_QUERY_TOKENS + 1
    assert ids[-1] == separator_id(tokenizer)


def test_limits_are_arguments(tokenizer: Tokenizer) -> None:
    pairs = encode_pairs(tokenizer, "red blue", ["shoe " * 50], TextForm(max_query_tokens=1, max_length=12))
    assert pairs["input_ids"].shape == (1, 12)
    assert pairs["input_ids"][0].tolist().index(separator_id(tokenizer)) == 2


def test_a_length_without_room_for_an_item_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        ValueError, match="leaves no token for a query and an item beside the special tokens; wanted at least 5"
    ):
        encode_pairs(tokenizer, "red shoe", ["shoe"], TextForm(max_length=4))


def test_no_items_and_empty_texts_are_encoded(tokenizer: Tokenizer) -> None:
    assert encode_pairs(tokenizer, "red", [])["input_ids"].shape == (0, LENGTH_BUCKET)
    assert encode_pairs(tokenizer, "red", [""])["attention_mask"].sum() == 4


def test_single_texts_equal_the_tokenizers_own_template(tokenizer: Tokenizer) -> None:
    texts = encode_texts(tokenizer, ["red shoe", "red " * 300])
    assert texts["input_ids"].shape == (2, MAX_LENGTH)
    assert texts["input_ids"][0][:4].tolist() == tokenizer.encode("red shoe").ids


def test_special_tokens_come_from_the_template(tokenizer: Tokenizer) -> None:
    assert special_ids(tokenizer) == (101, 102)
    assert separator_id(tokenizer) == 102


def test_xlm_roberta_template_has_two_separators_between() -> None:
    xlm = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="<pad>"))
    xlm.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    assert special_ids(xlm) == (0, 2)
    assert separator_id(xlm) == 2
    assert encode_pairs(xlm, "a", ["b"])["input_ids"][0].tolist() == [0, 3, 2, 2, 4, 2, 1, 1]


def test_missing_tokenizer_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not there.*save_pretrained"):
        load_tokenizer(tmp_path)


def test_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


def test_tokenizer_that_joins_without_separator_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="special token between them"):
        load_tokenizer(tmp_path)
