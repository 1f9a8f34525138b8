"""Pre- and post-processing without a server: token sequences against the tokenizer's own, order, the store's lock."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.core.contract import MAX_QUERY_TOKENS, padded_length
from builders.core.workspace import REPOSITORY_ROOT, SERVED_CODE, SHARED_CODE
from builders.features.preprocessing import preprocess_contract
from builders.features.text import (
    KIT_FORM,
    TextForm,
    cut_texts,
    encode_pairs,
    encode_texts,
    form_of_queries,
    load_tokenizer,
    padded,
    stored_tokens,
    truncated_pairs,
    truncated_texts,
)
from builders.features.vectors import VectorForm, as_stored, stored_vectors
from builders.publish.item_store import MAX_READERS, SIZE_VARIABLE, ItemStore
from builders.rankers.backbone import packaged_backbone

WORDS = ["red", "blue", "mug", "tent", "stoneware", "杯", "x1-200", "unbelievably", "waterproof"]


@pytest.fixture(scope="module")
def served_code() -> Iterator[Any]:
    """Loads a served ``model.py`` as Triton's stub would, with an empty stand-in for Triton's own module."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in = types.ModuleType("triton_python_backend_utils")
        patch.setitem(sys.modules, stand_in.__name__, stand_in)
        patch.syspath_prepend(SERVED_CODE / "postprocess")
        for path in SHARED_CODE:
            patch.syspath_prepend(path.parent)
        yield _load
        for path in SHARED_CODE:
            sys.modules.pop(path.stem, None)


def _load(model: str) -> types.ModuleType:
    path = SERVED_CODE / model / "model.py"
    spec = importlib.util.spec_from_file_location(f"served_{model}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(packaged_backbone())


def parameters(tokenizer: Any, pair: bool, form: TextForm = KIT_FORM) -> dict[str, Any]:
    return preprocess_contract("x", (), tokenizer, form, pair=pair, features_version="1").parameters


def token_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def title(generator: random.Random) -> str:
    """0 to 200 words: from nothing to far longer than a sequence."""
    return " ".join(generator.choices(WORDS, k=generator.choice([0, 1, 3, 12, 60, 200])))


FORMS = [
    KIT_FORM,
    TextForm(max_query_tokens=None),
    TextForm(max_query_tokens=None, max_length=31),
    TextForm(max_query_tokens=None, max_length=32, truncation_side="left"),
    TextForm(max_query_tokens=5, max_length=17, truncation_side="left"),
    TextForm(max_query_tokens=200, max_length=21),
]


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
@pytest.mark.parametrize("seed", range(12))
def test_joined_sequences_are_the_tokenizers_own(served_code: Any, tokenizer: Any, seed: int, form: TextForm) -> None:
    generator = random.Random(seed)
    query, titles = f"mug {title(generator)}", [title(generator) for _ in range(generator.choice([1, 5, 30]))]
    pairs = served_code("pair_preprocess")
    stored = [pairs.stored_item(one) for one in stored_tokens(tokenizer, titles, form)]
    found, truncated = pairs.join(token_ids(tokenizer, query), stored, parameters(tokenizer, pair=True, form=form))
    wanted = encode_pairs(tokenizer, query, titles, form)
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in wanted.items()
    }
    assert {array.dtype for array in found.values()} == {np.dtype(np.int32)}
    assert truncated == truncated_pairs(tokenizer, query, titles, form)


@pytest.mark.parametrize("maximum", [40, 128, 300, 512, 8192])
def test_the_server_pads_to_the_contracts_buckets(served_code: Any, tokenizer: Any, maximum: int) -> None:
    served_code("pair_preprocess")
    settings = {**parameters(tokenizer, pair=True), "max_length": maximum}
    served = [sys.modules["served"].padded_length(longest, settings) for longest in range(maximum + 1)]
    assert served == [padded_length(longest, maximum) for longest in range(maximum + 1)]


def test_an_unknown_item_has_the_row_of_an_empty_title(served_code: Any, tokenizer: Any) -> None:
    pairs = served_code("pair_preprocess")
    query = token_ids(tokenizer, "mug")
    known, empty = (pairs.stored_item(one) for one in stored_tokens(tokenizer, ["red mug", ""], KIT_FORM))
    settings = parameters(tokenizer, pair=True)
    of_unknown, _ = pairs.join(query, [known, pairs.stored_item(None)], settings)
    of_empty, _ = pairs.join(query, [known, empty], settings)
    assert all(np.array_equal(of_unknown[name], of_empty[name]) for name in of_unknown)


@pytest.mark.parametrize("words", [1, 5, 6, 7, 40])
def test_a_query_alone_is_the_tokenizers_own_sequence(served_code: Any, tokenizer: Any, words: int) -> None:
    settings = parameters(tokenizer, pair=False)
    query = "mug " * words
    found, [truncated] = served_code("vector_preprocess").sequences([token_ids(tokenizer, query)], settings)
    wanted = encode_texts(tokenizer, [query], TextForm(max_length=MAX_QUERY_TOKENS + 2))
    for name in ("input_ids", "attention_mask"):
        width = found[name].shape[1]
        assert width % 8 == 0
        assert found[name][:, : wanted[name].shape[1]].tolist() == wanted[name].tolist()
        assert not found["attention_mask"][:, wanted[name].shape[1] :].any()
    assert truncated == (words > MAX_QUERY_TOKENS)


def test_vectors_are_read_in_order_with_zeros_for_the_unknown(served_code: Any) -> None:
    vectors = served_code("vector_preprocess").vectors
    rows = np.arange(6, dtype="<f4").reshape(2, 3)
    found = vectors([rows[1].tobytes(), None, rows[0].tobytes()], 3, "fp32")
    assert found.tolist() == [[3, 4, 5], [0, 0, 0], [0, 1, 2]]


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8"])
def test_stored_vectors_are_read_as_the_builder_rounds_them(served_code: Any, form: VectorForm) -> None:
    wanted = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    stored = list(stored_vectors(wanted, form))
    found = served_code("vector_preprocess").vectors([stored[3], None, stored[0]], 7, form)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[[0, 2]], as_stored(wanted, form)[[3, 0]])
    assert not found[1].any()


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
def test_a_query_and_given_texts_are_the_tokenizers_own_sequences(
    served_code: Any, tokenizer: Any, form: TextForm
) -> None:
    generator = random.Random(3)
    query, *titles = (title(generator) for _ in range(9))
    settings = parameters(tokenizer, pair=False, form=form)
    rows = [token_ids(tokenizer, text) for text in (query, *titles)]
    found, truncated = served_code("vector_preprocess").sequences(rows, settings)
    cut = cut_texts(tokenizer, [query], form_of_queries(tokenizer, form)), cut_texts(tokenizer, titles, form)
    wanted = padded(tokenizer, [*cut[0], *cut[1]], form)
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in wanted.items()
    }
    assert sum(truncated[1:]) == truncated_texts(tokenizer, titles, form)


def test_equal_scores_keep_first_stage_order(served_code: Any) -> None:
    best_first = served_code("postprocess").best_first
    scores = np.array([0.5, 2, 0.5, -1, 2, 0.5], np.float32)
    assert best_first(scores).tolist() == [1, 4, 0, 2, 5, 3]
    assert best_first(np.zeros(1000, np.float32)).tolist() == list(range(1000))


def test_a_store_mounted_read_only_is_refused(
    served_code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ItemStore(tmp_path) as store:
        store.put("mugs", "1", [("a", b"x")])
    served_code("postprocess")
    served = sys.modules["served"]
    monkeypatch.setenv(served.ITEM_STORE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(served.os, "access", lambda path, mode: False)
    with pytest.raises(RuntimeError, match=r"lock\.mdb' is not writable: mount the item store writable"):
        served.ItemStore()


def test_a_table_that_is_not_whole_is_refused(
    served_code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ItemStore(tmp_path) as store:
        store.create("mugs@1")
        store.put("mugs", "1", [("a", b"x")])
    served_code("postprocess")
    served = sys.modules["served"]
    monkeypatch.setenv(served.ITEM_STORE_VARIABLE, str(tmp_path))
    opened = served.ItemStore()
    try:
        with pytest.raises(RuntimeError, match=r"mugs@1 is being filled, or its filling was cut off: run the build"):
            opened.table("mugs", "1")
    finally:
        opened.close()
    with ItemStore(tmp_path) as store:
        store.set_whole("mugs@1")
    opened = served.ItemStore()
    assert opened.table("mugs", "1").read([b"a", b"b"]) == [b"x", None]
    opened.close()


def test_a_reader_goes_on_after_a_writer_enlarged_the_store(
    served_code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, "0.0001")
    with ItemStore(tmp_path) as store:
        store.put("mugs", "1", [("a", b"x")])
    served_code("postprocess")
    served = sys.modules["served"]
    monkeypatch.setenv(served.ITEM_STORE_VARIABLE, str(tmp_path))
    opened = served.ItemStore()
    reader = opened.table("mugs", "1")
    code = (
        "import pathlib, sys; from builders.publish.item_store import ItemStore\n"
        "with ItemStore(pathlib.Path(sys.argv[1])) as store: store.put('mugs', '1', [('b', b'y' * 20_000_000)])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=REPOSITORY_ROOT)
    assert [value and len(value) for value in reader.read([b"a", b"b"])] == [1, 20_000_000]
    opened.close()


KILLED_READER = """
import lmdb, os, sys
environment = lmdb.open(sys.argv[1], readonly=True, create=False)
transaction = environment.begin()
os._exit(9)  # its slot stays taken
"""


def test_slots_of_killed_readers_are_freed_where_few_are_left(
    served_code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ItemStore(tmp_path) as store:
        store.put("mugs", "1", [("a", b"x")])
    served_code("postprocess")
    served = sys.modules["served"]
    monkeypatch.setenv(served.ITEM_STORE_VARIABLE, str(tmp_path))
    opened = served.ItemStore()
    try:
        free = opened.free_readers()
        assert MAX_READERS - 1 <= free <= MAX_READERS
        for _ in range(2):
            subprocess.run([sys.executable, "-c", KILLED_READER, str(tmp_path)], check=False)
        assert opened.free_readers() == free - 2
        monkeypatch.setattr(served, "LOW_READERS", 2.0)  # whatever is left is too few
        assert opened.free_readers() == free
        assert 0 <= opened.age_s < 600
    finally:
        opened.close()
