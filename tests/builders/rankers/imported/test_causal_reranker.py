"""Causal rerankers: exported graphs, prefix shared or not, against ``CrossEncoder.predict`` of the same folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from sentence_transformers import CrossEncoder

from builders.core.recipe import Text
from builders.core.runtimes import Session, open_session
from builders.data.beir import JudgedQueries, Product, Request
from builders.evaluate.judge import score_in_process
from builders.export.onnx import onnx_from_ranker
from builders.rankers.backbone import CheckpointError
from builders.rankers.imported.causal_reranker import ImportedCausalReranker
from builders.rankers.imported.folder import look_at
from tests.support.causal_checkpoints import (
    CHANGING_TEMPLATE,
    DOCUMENT_FIRST,
    LENGTH,
    STRIPPING_TEMPLATE,
    write_causal,
    write_reranker,
)
from tests.support.library_checkpoints import shop
from tests.support.loaded_graphs import check_costs_no_more

TEMPLATE = "{title}. {brand}. {text}"
LONG_QUERY = "waterproof camping tent for kids, " * 30
Write = Callable[[Path], Path]
IDENTITY = {"activation_fn": torch.nn.Identity()}
PROMPTED = {"prompts": {"goods": "Find goods to buy"}, "default_prompt_name": "goods"}

SHARED: dict[str, Write] = {
    "a plain folder": write_causal,
    "one token, a system message": lambda folder: write_reranker(folder, "llama", no=None, **IDENTITY, **PROMPTED),
    "no template, padded on the right": lambda folder: write_reranker(
        folder, "qwen2", None, {"padding_side": "right"}, **PROMPTED
    ),
    "cut on the left": lambda folder: write_reranker(folder, "gemma3", words={"truncation_side": "left"}),
}
WHOLE: dict[str, Write] = {
    "sliding windows, capped logits": lambda folder: write_reranker(
        folder, "gemma2", **IDENTITY, processing={"text": {"max_length": 110}}
    ),
    "the document first, stripped": lambda folder: write_reranker(folder, "qwen2", DOCUMENT_FIRST),
}


@pytest.fixture(scope="module")
def judged() -> JudgedQueries:
    return shop()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_causal(tmp_path_factory.mktemp("plain"))


def sessions(ranker: ImportedCausalReranker, products: list[Product], folder: Path) -> dict[str, Session]:
    sample = ranker.sample(Request("mug"), products[:3])
    for graph in ranker.graphs:
        onnx_from_ranker(graph, sample[graph.name], folder / f"{graph.name}.onnx")
        if len(ranker.graphs) == 1:  # the older exporter takes no keys and values
            check_costs_no_more(folder / f"{graph.name}.onnx", graph, sample[graph.name])
    return {graph.name: open_session(folder / f"{graph.name}.onnx", threads=1) for graph in ranker.graphs}


USUAL = ("a plain folder", "the document first, stripped")
"""Those of every run; the rest of the matrix takes minutes."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in USUAL else pytest.mark.slow) for name in [*SHARED, *WHOLE]]
)
def test_scores_are_the_librarys_own(name: str, tmp_path: Path, judged: JudgedQueries) -> None:
    folder = {**SHARED, **WHOLE}[name](tmp_path)
    ranker = ImportedCausalReranker("mine", folder, Text(item=TEMPLATE))
    library = CrossEncoder(str(folder), device="cpu")
    products = list(judged.products.values())
    opened = sessions(ranker, products, tmp_path)
    assert len(opened) == (2 if name in SHARED else 1)
    for query, count in (("red running shoe", 1), ("!", 40), (LONG_QUERY, 40), ("mug", 1024)):
        wanted = library.predict([(query, one) for one in map(written_out, products[:count])])
        found = score_in_process(ranker, opened, Request(query), products[:count])
        assert np.abs(found[:, 0] - wanted).max() <= 1e-4
        assert query != "mug" or wanted.std() > 1e-2  # else any order would do


def written_out(product: Product) -> str:
    """The template's text, written by hand."""
    return ". ".join(filter(None, (product.title, product.brand, product.text)))


# ---------------------------------------------------------------- what is shared, and what is computed
def test_instruction_and_query_are_encoded_once(plain: Path, judged: JudgedQueries) -> None:
    ranker = ImportedCausalReranker("mine", plain, Text(item="{title}"))
    products = list(judged.products.values())[:40]
    sample = ranker.sample(Request("red running shoe"), products)
    [length] = sample["mine"]["prefix_length"]
    prefix = sample["mine_prefix"]["prefix_ids"][0, :length].tolist()
    tokenizer = CrossEncoder(str(plain), device="cpu").tokenizer
    assert "<Query>: red running shoe\n<Document>:" in tokenizer.decode(prefix)
    conversation = [
        {"role": "query", "content": "red running shoe"},
        {"role": "document", "content": products[0].title},
    ]
    wanted = tokenizer.apply_chat_template(conversation, tokenize=True)["input_ids"]
    assert ranker.tokens(sample) == tokenizer.convert_ids_to_tokens(wanted)


def test_sharing_changes_no_score(plain: Path, judged: JudgedQueries) -> None:
    ranker = ImportedCausalReranker("mine", plain, Text(item=TEMPLATE))
    products = list(judged.products.values())[:40]
    shared, whole = (one.score(Request("mug"), products) for one in (ranker, ranker.without_sharing()))
    assert shared == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("items", [["a"], ["a", "a"], ["a", ""]])
def test_every_candidate_keeps_a_token_of_its_own(plain: Path, items: list[str]) -> None:
    ranker = ImportedCausalReranker("mine", plain, Text(item="{title}"))
    products = [Product(f"p{number}", title) for number, title in enumerate(items)]
    assert ranker.sample(Request("mug"), products)["mine"]["attention_mask"].sum(axis=1).min() >= 1
    wanted = ranker.library_scores(Request("mug"), products)
    assert ranker.score(Request("mug"), products) == pytest.approx(wanted, abs=1e-5)


def test_only_the_asked_rows_of_the_vocabulary_are_in_the_graphs(tmp_path: Path, judged: JudgedQueries) -> None:
    folder = write_causal(tmp_path / "llama", "llama")  # its output layer is no copy of the embedding
    ranker = ImportedCausalReranker("mine", folder)
    sessions(ranker, list(judged.products.values()), tmp_path)
    words = json.loads((folder / "config.json").read_text())["vocab_size"]
    for graph in ranker.graphs:
        tensors = onnx.load(tmp_path / f"{graph.name}.onnx").graph.initializer
        assert [list(one.dims) for one in tensors if words in one.dims] == [[words, 32]]


REASONS = {
    "sliding windows, capped logits": "some layers see 16 tokens, sequences have up to 110",
    "the document first, stripped": "the template puts the document before the query",
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_reason_for_computing_prompts_whole_is_told(name: str, tmp_path: Path) -> None:
    ranker = ImportedCausalReranker("mine", WHOLE[name](tmp_path))
    assert ranker.facts[-1] == f"every prompt is computed whole: {REASONS[name]}"


# ---------------------------------------------------------------- text
def test_a_prompt_beyond_the_length_is_counted(plain: Path, judged: JudgedQueries) -> None:
    ranker = ImportedCausalReranker("mine", plain, Text(item="{text}"))
    products = list(judged.products.values())[:10]
    assert ranker.truncated(Request("mug"), products) == 2  # every fifth has a description
    assert ranker.truncated(Request(LONG_QUERY), products) == 10


@pytest.mark.parametrize("template", [STRIPPING_TEMPLATE, None], ids=["chat", "pair"])
def test_the_recipes_text_is_what_the_library_is_asked(
    template: str | None, tmp_path: Path, judged: JudgedQueries
) -> None:
    text = Text(item=TEMPLATE, query_prompt=" Find goods ", item_prompt="Offer: ", max_length=60)
    folder = write_reranker(tmp_path, "qwen2", template, processing={"text": {"max_length": 90}})
    ranker = ImportedCausalReranker("mine", folder, text)
    products = list(judged.products.values())[:40]
    pairs = [("mug", f"Offer: {written_out(one)}") for one in products]
    limit: Any = {"text": {"max_length": 60}}
    wanted = CrossEncoder(str(folder), device="cpu").predict(pairs, prompt=" Find goods ", processing_kwargs=limit)
    assert ranker.truncated(Request("mug"), products) > 0
    assert ranker.score(Request("mug"), products) == pytest.approx(wanted, abs=1e-5)
    assert ranker.library_scores(Request("mug"), products) == pytest.approx(wanted, abs=1e-6)


def test_stored_texts_outlive_what_changes_tokens_alone(plain: Path) -> None:
    def version(**text: Any) -> str:
        parameters = ImportedCausalReranker("mine", plain, Text(**text)).preprocess.parameters
        return str(parameters["item_features_version"])

    assert version() == version(max_length=100) == version(query_prompt="Find goods")
    assert len({version(), version(item="{brand}"), version(item_prompt="Offer: ")}) == 3


def test_the_format_is_told_from_the_folder(plain: Path, tmp_path: Path) -> None:
    assert look_at(plain).format == look_at(write_reranker(tmp_path)).format == "causal_reranker"


# ---------------------------------------------------------------- refused
def stretched(folder: Path) -> Path:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    return write_causal(folder, rope_parameters=rope)


def asking_for(folder: Path, **tokens: Any) -> Path:
    saved = write_reranker(folder)
    config = saved / "1_LogitScore" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **tokens}))
    return saved


def multimodal(folder: Path) -> Path:
    saved = write_reranker(folder)
    config = saved / "sentence_bert_config.json"
    found = json.loads(config.read_text())
    found["modality_config"]["image"] = found["modality_config"]["text"]
    config.write_text(json.dumps(found))
    return saved


REFUSED: dict[str, tuple[Write, str]] = {
    "no yes, but an unknown token": (
        lambda folder: write_causal(folder, words={"answers": False, "unk_token": "<|im_end|>"}),
        "no tokens 'yes' and 'no'",
    ),
    "no yes": (lambda folder: write_causal(folder, words={"answers": False}), "does not have 'yes' and/or 'no' tokens"),
    "a token beyond the vocabulary": (lambda folder: asking_for(folder, true_token_id=9999), r"for the tokens \[9999"),
    "the same token twice": (lambda folder: asking_for(folder, true_token_id=7, false_token_id=7), r"\[7, 7\]"),
    "images": (multimodal, r"a multimodal model \(image\)"),
    "a template that looks at the document": (
        lambda folder: write_reranker(folder, chat_template=CHANGING_TEMPLATE),
        "it changes with the document",
    ),
    "a template without the roles": (
        lambda folder: write_reranker(folder, chat_template="{% for message in messages %}{% endfor %}<|im_start|>"),
        "does not write the messages of the roles 'query' and 'document'",
    ),
    "a template with the date": (
        lambda folder: write_reranker(folder, chat_template=STRIPPING_TEMPLATE + "{{ strftime_now('%d') }}"),
        "writes today's date",
    ),
    "another tokenizer": (
        lambda folder: write_causal(folder, vocab_size=600, pad_token_id=None),
        "its tokenizer gives ids up to [0-9]+, but the embedding has 600 rows",
    ),
    "absolute positions": (
        lambda folder: write_reranker(folder, "gpt2"),
        "its network counts positions from the padding on",
    ),
    "positions that stretch": (stretched, "of the kind 'dynamic'"),
    "no padding token": (
        lambda folder: write_causal(folder, words={"pad_token": None}, pad_token_id=None), "has no padding token",
    ),
    "truncation of its own": (
        lambda folder: write_reranker(folder, processing={"text": {"padding": "max_length"}}),
        "sets text.padding, which is not served",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_served_wrong_is_refused(name: str, tmp_path: Path) -> None:
    write, message = REFUSED[name]
    folder = write(tmp_path)
    with pytest.raises(CheckpointError, match=message) as refused:
        ImportedCausalReranker("mine", folder)
    assert "\n" not in str(refused.value)


def test_a_length_beyond_the_positions_is_refused(plain: Path) -> None:
    with pytest.raises(CheckpointError, match=f"has positions for {LENGTH} tokens"):
        ImportedCausalReranker("mine", plain, Text(max_length=LENGTH + 1))
