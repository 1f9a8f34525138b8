"""Raw fields => tensors: what each kind makes of present, absent, unseen and broken values."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from builders.features.encoder import (
    Feature,
    FeatureEncoder,
    FeatureError,
    bag,
    dense,
    history,
    multi_hot,
    sparse,
    tokens,
    vector,
)

WORDS = ["[PAD]", "red", "blue", "mug", "tent", "[UNK]"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def rows(encoder: FeatureEncoder, name: str, *items: dict[str, Any]) -> list[Any]:
    return encoder.candidate_tensors([encoder.item_record(item) for item in items])[name].tolist()


# ---------------------------------------------------------------- ids
def test_ids_are_0_for_absent_then_buckets_then_the_vocabulary() -> None:
    brand = sparse("made_by", ["brand"], vocabularies=[("Acme", "Bolt")], oov_buckets=3)
    encoder = FeatureEncoder([brand])
    unseen = 1 + zlib.crc32(b"Corvid") % 3
    found = rows(encoder, "made_by", {"brand": "Acme"}, {"brand": "Bolt"}, {"brand": "Corvid"}, {"brand": ""}, {})
    assert found == [[4], [5], [unseen], [0], [0]]
    assert brand.rows() == 6


def test_every_field_of_a_sparse_feature_has_ids_of_its_own() -> None:
    declared = sparse("fields", ["brand", "color"], vocabularies=[("Acme",), ("red", "blue")], oov_buckets=2)
    assert rows(FeatureEncoder([declared]), "fields", {"brand": "Acme", "color": "blue"}) == [[3, 4]]
    assert declared.table_rows == (4, 5)


def test_numbers_and_booleans_count_as_their_json_text() -> None:
    declared = sparse("hour", ["hour", "gift"], "context", vocabularies=[("14",), ("true",)])
    encoder = FeatureEncoder([declared, dense("price", ["price"])])
    assert encoder.request_tensors(context={"hour": 14, "gift": True})["hour"].tolist() == [[2, 2]]


def test_the_first_of_a_list_is_the_value_of_a_sparse_field() -> None:
    declared = sparse("category", ["category"], vocabularies=[("Home", "Kitchen")])
    assert rows(FeatureEncoder([declared]), "category", {"category": ["Kitchen", "Mugs"]}, {"category": []}) == [
        [3],
        [0],
    ]


def test_a_bag_is_padded_in_front_and_keeps_its_last_values() -> None:
    declared = multi_hot("path", "category", "item", 3, vocabularies=[("a", "b", "c", "d")])
    found = rows(
        FeatureEncoder([declared]), "path", {"category": ("a",)}, {"category": list("abcd")}, {"category": "d"}, {}
    )
    assert found == [[0, 0, 2], [3, 4, 5], [0, 0, 5], [0, 0, 0]]


def test_without_buckets_ids_start_at_1_and_an_unseen_value_is_absent() -> None:
    declared = sparse("item", ["item_id", "brand"], vocabularies=[("a", "b"), ("acme",)], oov_buckets=0)
    encoder = FeatureEncoder([declared])
    assert rows(encoder, "item", {"item_id": "a", "brand": "acme"}, {"item_id": "b", "brand": "?"}) == [[1, 1], [2, 0]]
    assert declared.table_rows == (3, 2)


@pytest.mark.parametrize(("padding", "wanted"), [("front", [0, 2, 1]), ("behind", [2, 1, 0])])
def test_a_history_without_buckets_leaves_unseen_items_out(padding: str, wanted: list[int]) -> None:
    declared = history("taken", 3, ["a", "b"], oov_buckets=0, padding=padding)
    encoder = FeatureEncoder([declared, dense("price", ["price"])])
    assert encoder.request_tensors(history=["b", "?", "a", "??"])["taken"].tolist() == [wanted]


@pytest.mark.parametrize(
    ("oov_buckets", "events", "read"),
    [
        (9, [b"\xff", b"a", b"x", b"b"], ["a", "x", "b"]),
        (9, [b"a", b"x"], ["a", "x"]),
        (0, [b"\xff", b"a", b"x", b"b", b"a"], ["a", "x", "b", "a"]),
        (0, [b"a", b"x", b"x", b"x"], ["a", "x", "x", "x"]),
        (0, [], []),
    ],
)
def test_of_a_history_only_the_events_that_the_network_reads_are_decoded(
    oov_buckets: int, events: list[bytes], read: list[str]
) -> None:
    encoder = FeatureEncoder([history("taken", 3, ["a", "b"], oov_buckets=oov_buckets)])
    assert encoder.events_read(events) == read
    whole = [event.decode(errors="replace") for event in events]
    assert (encoder.request_tensors(history=read)["taken"] == encoder.request_tensors(history=whole)["taken"]).all()


def test_of_a_history_as_many_events_are_read_as_its_longest_feature_reads() -> None:
    features = [history("latest", 2, ["a"]), history("all", 4, ["a"]), history("known", 1, ["a"], oov_buckets=0)]
    events = [b"a", b"a", b"x", b"x", b"x", b"x"]
    assert FeatureEncoder(features).events_read(events) == ["a", "x", "x", "x", "x"]
    assert FeatureEncoder([dense("price", ["price"])]).events_read(events) == []


def test_padding_behind_survives_the_file_and_the_default_leaves_no_trace_in_it() -> None:
    behind = FeatureEncoder([history("taken", 3, ["a"], padding="behind"), dense("price", ["price"])])
    assert FeatureEncoder.from_json(behind.to_json()).features == behind.features
    default = FeatureEncoder([history("taken", 3, ["a"]), dense("price", ["price"])])
    assert "padding" not in default.to_json()


# ---------------------------------------------------------------- numbers
def test_a_dense_field_is_normalised_and_absent_is_the_mean() -> None:
    declared = dense("numbers", ["price", "rating"], mean=(10.0, 3.0), std=(2.0, 0.5))
    encoder = FeatureEncoder([declared])
    assert rows(encoder, "numbers", {"price": 14, "rating": 2.5}, {}, {"price": None}) == [[2, -1], [0, 0], [0, 0]]


def test_log1p_comes_before_the_mean() -> None:
    encoder = FeatureEncoder([dense("price", ["price"], log1p=True, mean=(1.0,))])
    assert rows(encoder, "price", {"price": math.e - 1}) == [[pytest.approx(0.0, abs=1e-6)]]


def test_a_vector_is_kept_as_it_is_and_absent_is_zeros() -> None:
    encoder = FeatureEncoder([vector("image", "image", 3)])
    assert rows(encoder, "image", {"image": [1, -2, 0.5]}, {}) == [[1, -2, 0.5], [0, 0, 0]]


@pytest.mark.parametrize(
    ("feature", "fields", "message"),
    [
        (dense("price", ["price"]), {"price": "dear"}, "field 'price': found 'dear', wanted a finite number or null"),
        (dense("price", ["price"]), {"price": float("nan")}, "found nan, wanted a finite number"),
        (dense("price", ["price"], log1p=True), {"price": -1}, "found -1, wanted a finite number above -1"),
        (vector("image", "image", 2), {"image": [1.0]}, r"found shape \[1\], wanted 2 finite numbers"),
        (vector("image", "image", 2), {"image": [1.0, float("inf")]}, r"shape \[2\] with values that are not finite"),
        (vector("image", "image", 2), {"image": "cat"}, "found 'cat', wanted 2 numbers"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(feature: Feature, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        FeatureEncoder([feature]).item_record(fields)


# ---------------------------------------------------------------- text
def test_tokens_are_padded_to_the_longest_ones_bucket(tokenizer: Tokenizer) -> None:
    encoder = FeatureEncoder([tokens("title", "item", 12, field="title")], tokenizer)
    short, long = {"title": "red mug"}, {"title": "red " * 9}
    assert rows(encoder, "title", short) == [[1, 3, 0, 0, 0, 0, 0, 0]]
    found = rows(encoder, "title", short, long)
    assert [len(row) for row in found] == [16, 16]  # 12 are kept at most, and the bucket is 8
    assert found[1] == [1] * 9 + [0] * 7


def test_more_tokens_than_the_size_are_cut(tokenizer: Tokenizer) -> None:
    encoder = FeatureEncoder([tokens("asked", "query", 3), dense("price", ["price"])], tokenizer)
    assert encoder.request_tensors(query="red blue mug tent")["asked"].tolist() == [[1, 2, 3, 0, 0, 0, 0, 0]]


# ---------------------------------------------------------------- requests
def test_a_request_has_one_row_of_each_of_its_features() -> None:
    features = [history("taken", 3, ["a", "b"]), sparse("lives_in", ["country"], "user", vocabularies=[("se",)])]
    encoder = FeatureEncoder([*features, dense("price", ["price"])])
    found = encoder.request_tensors(history=("b", "a", "?"), user=encoder.user_record({"country": "se"}))
    assert {name: array.tolist() for name, array in found.items()} == {"taken": [[3, 2, 1]], "lives_in": [[2]]}


def test_an_unknown_user_is_one_without_fields() -> None:
    encoder = FeatureEncoder([dense("age", ["age"], "user", mean=(30.0,)), dense("price", ["price"])])
    assert encoder.request_tensors(user=None)["age"].tolist() == [[0.0]]


def test_popularity_ranks_for_a_history_without_a_known_item() -> None:
    features = [history("taken", 2, ["a"]), dense("price", ["price"])]
    encoder = FeatureEncoder(features, fallback_field="popularity")
    records = [encoder.item_record({"popularity": 7}), encoder.item_record({}), None]
    for cold in ((), ("?",), ("a", "?", "??")):  # the last two count
        assert encoder.fallback_scores(records, cold).tolist() == [7, 0, 0]
    assert np.isnan(encoder.fallback_scores(records, ("?", "a"))).all()


def test_without_a_history_among_the_features_there_is_no_fallback() -> None:
    encoder = FeatureEncoder([dense("price", ["price"])], fallback_field="popularity")
    assert np.isnan(encoder.fallback_scores([encoder.item_record({"popularity": 7})], ())).all()


# ---------------------------------------------------------------- records and files
def test_a_record_is_as_long_as_its_columns_and_an_absent_one_is_zeros() -> None:
    encoder = FeatureEncoder([dense("price", ["price"]), multi_hot("path", "category", "item", 3)])
    assert len(encoder.item_record({"price": 1.0})) == len(encoder.item_record({})) == 4 + 3 * 4 + 4
    assert encoder.candidate_tensors([None])["path"].tolist() == [[0, 0, 0]]


def test_a_record_of_another_form_is_refused() -> None:
    encoder = FeatureEncoder([dense("price", ["price"])])
    with pytest.raises(FeatureError, match="a stored item is not of 8 bytes; fill the item store anew"):
        encoder.candidate_tensors([b"123"])


def test_what_is_written_as_json_encodes_the_same(tokenizer: Tokenizer) -> None:
    features = [
        tokens("title", "item", 8, field="title"),
        sparse("made_by", ["brand"], vocabularies=[("Åse",)], oov_buckets=4),
        dense("price", ["price"], log1p=True, mean=(1.5,), std=(0.25,)),
        history("taken", 4, ["a"]),
    ]
    encoder = FeatureEncoder(features, tokenizer, fallback_field="popularity", length_bucket=4)
    again = FeatureEncoder.from_json(encoder.to_json(), tokenizer)
    assert again.features == encoder.features
    assert again.to_json() == encoder.to_json()
    item = {"title": "red tent", "brand": "Åse", "price": 3, "popularity": 2}
    assert again.item_record(item) == encoder.item_record(item)


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"features": [{"name": "x"}]})])
def test_a_broken_file_is_refused(text: str) -> None:
    with pytest.raises(FeatureError, match="not features"):
        FeatureEncoder.from_json(text)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: dense("x", []), r"fields \[\], wanted at least one"),
        (lambda: tokens("x", "item", 0, field="title"), "size 0, wanted at least 1"),
        (lambda: Feature("x", "multi_hot", ("a", "b"), "item", 3), "wanted just one"),
        (lambda: Feature("x", "tokens", ("query",), "user", 3), "kind 'tokens' of source 'user', wanted dense"),
        (lambda: dense("x", ["a", "b"], mean=(1.0,)), "1 mean for 2 fields"),
        (lambda: dense("x", ["a"], std=(0.0,)), "wanted all above 0"),
        (lambda: sparse("x", ["a"], oov_buckets=0), "oov_buckets 0 without a vocabulary, wanted one or the other"),
        (lambda: sparse("x", ["a"], oov_buckets=-1), "oov_buckets -1, wanted at least 0"),
        (lambda: multi_hot("x", "a", "item", 3, padding="left"), "padding 'left' of kind 'multi_hot', wanted 'front'"),
        (lambda: dense("x", ["a"], padding="behind"), "padding 'behind' of kind 'dense'"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(declare: Any, message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        declare()


def test_two_features_of_one_name_are_refused() -> None:
    with pytest.raises(FeatureError, match="wanted distinct names"):
        FeatureEncoder([dense("x", ["a"]), dense("x", ["b"])])


DEPTH = 2000
NESTED: list[object] = []
for _ in range(DEPTH):
    NESTED = [NESTED]
UNBOUNDED: dict[str, tuple[Feature, object]] = {
    "a number beyond FP32": (dense("x", ["price"]), 1e300),
    "an integer of 400 digits": (dense("x", ["price"]), 10**400),
    "an integer of 9,000 digits": (dense("x", ["price"]), 10**9000),
    "a number that the recipe's std takes beyond FP32": (dense("x", ["price"], std=(1e-30,)), 1e30),
    "a long text for a number": (dense("x", ["price"]), "9" * 9000),
    "a list without end for a number": (dense("x", ["price"]), NESTED),
    "a vector beyond FP32": (vector("x", "price", 2), [1e300, 0]),
    "a vector of integers of 400 digits": (vector("x", "price", 2), [10**400, 0]),
    "a vector of long texts": (vector("x", "price", 2), ["x" * 9000, ""]),
    "half a surrogate pair as an id": (sparse("x", ["price"]), "\ud800"),
    "half a surrogate pair in a list of ids": (multi_hot("x", "price", "item", 2), ["a", "\ud800"]),
}


@pytest.mark.parametrize("fault", UNBOUNDED)
def test_a_field_that_no_tensor_can_hold_is_refused_in_a_short_sentence(fault: str) -> None:
    feature, value = UNBOUNDED[fault]
    with pytest.raises(FeatureError, match="field 'price': found ") as refusal:
        FeatureEncoder([feature]).item_record({"price": value})
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize("value", ["12", [1], {"a": 1}, 1e300, float("inf"), float("nan"), 10**400])
def test_what_ranks_for_unknown_users_is_a_finite_number(value: object) -> None:
    encoder = FeatureEncoder([history("taken", 3, ["a"])], fallback_field="popularity")
    with pytest.raises(FeatureError, match=r"field 'popularity': found .*, wanted a finite number or null"):
        encoder.item_record({"popularity": value})


# ---------------------------------------------------------------- names until 0.1
def test_bag_and_buckets_are_read_with_a_warning_that_names_the_names_of_now() -> None:
    with pytest.warns(FutureWarning, match="bag is now called multi_hot"):
        assert bag("x", "a", "item", 3) == multi_hot("x", "a", "item", 3)
    with pytest.warns(FutureWarning, match="'buckets' is now called 'oov_buckets'"):
        assert sparse("x", ["a"], buckets=4) == sparse("x", ["a"], oov_buckets=4)
    with pytest.warns(FutureWarning, match="'buckets' is now called 'oov_buckets'"):
        assert history("x", 3, ["a"], buckets=4) == history("x", 3, ["a"], oov_buckets=4)


def test_buckets_under_both_names_are_refused() -> None:
    with pytest.raises(FeatureError, match=r"'buckets' is the name of 'oov_buckets' until 0\.1, and both are given"):
        sparse("x", ["a"], buckets=4, oov_buckets=5)


def test_features_kept_under_the_names_until_0_1_load_as_those_of_now() -> None:
    encoder = FeatureEncoder([multi_hot("x", "a", "item", 3, vocabularies=[("b",)], oov_buckets=4)])
    old = encoder.to_json().replace("oov_buckets", "buckets").replace("multi_hot", "bag")
    assert FeatureEncoder.from_json(old).features == encoder.features
