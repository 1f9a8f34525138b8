"""Late-interaction checkpoints as their libraries write them: scores of the exported graphs against the library's."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sentence_transformers import MultiVectorEncoder

from builders.core.recipe import Recipe, RecipeError, Text
from builders.data.beir import Product, Request
from builders.export.onnx import check_onnx, onnx_from_ranker, run_onnx
from builders.rankers.backbone import CheckpointError
from builders.rankers.imported.late_interaction import ImportedLateInteraction
from builders.rankers.load import load_ranker
from tests.support.tiny_colbert import (
    POSITIONS,
    modern_bert,
    roberta,
    write_multi_vector,
    write_pylate,
    write_stanford,
)

PUNCTUATION = list(string.punctuation)
FIXED = {"strategy": "fixed", "length": 12}
CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "markers, expansion, punctuation left out": lambda folder: write_multi_vector(
        folder, prompts={"query": "[Q] ", "document": "[D] "}, mask={"skiplist_words": PUNCTUATION},
        query_expansion=FIXED, document_length=40,
    ),
    "attended expansion up to a length, of positions behind the padding id": lambda folder: write_multi_vector(
        folder, roberta(), prompts={"query": "query: ", "passage": "passage: "},
        query_expansion={"strategy": "min", "length": 10, "attend": True, "token": "[SEP]"}, query_length=30,
    ),
    "unattended expansion up to a length": lambda folder: write_multi_vector(
        folder, query_expansion={"strategy": "min", "length": 10}, query_length=30, do_lower_case=True
    ),
    "mean, no expansion, dot product, sliding window": lambda folder: write_multi_vector(
        folder, modern_bert(), normalize=False, similarity="meanmaxsim"
    ),
    "queries' punctuation left out too, items pooled": lambda folder: write_multi_vector(
        folder, pooling=True, mask={"skiplist_words": PUNCTUATION, "skiplist_tasks": ["query", "document"]},
        query_expansion=FIXED,
    ),
    "pylate": write_pylate,
    "pylate, attended": lambda folder: write_pylate(folder, attend_to_expansion_tokens=True, skiplist_words=["."]),
    "pylate, no expansion": lambda folder: write_pylate(folder, do_query_expansion=False, query_length=20),
    "pylate, a prompt behind the marker": lambda folder: write_pylate(folder, prompts={"query": "find: "}),
    "stanford": write_stanford,
}  # fmt: skip
QUERIES = ("mug", "Red, steel Coffee-mug! 0.3 l? [MASK] for the office and (the) garden, dishwasher safe: 2 pieces")


USUAL = ("markers, expansion, punctuation left out", "pylate")
"""Those of every run; the rest of the matrix takes minutes."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in USUAL else pytest.mark.slow) for name in CHECKPOINTS],
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CHECKPOINTS[request.param](tmp_path_factory.mktemp("checkpoint") / "colbert")


@pytest.fixture(scope="module")
def punctuated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CHECKPOINTS["markers, expansion, punctuation left out"](tmp_path_factory.mktemp("marked"))


def ranker_of(folder: Path, **text: Any) -> ImportedLateInteraction:
    text = {"item": "{title}. {brand}", "vectors": "fp32", **text}
    return ImportedLateInteraction("late", folder, Text(**text))


def products(count: int) -> list[Product]:
    """Texts of one letter to more than any checkpoint reads; one is empty."""
    words = ("red", "Steel,", "mug", "(blue)", "tent!", "lamp", "0.5")
    texts = [" ".join(words[(row * 3 + place) % 7] for place in range(row % 9 * 4)) for row in range(count)]
    return [Product(f"i{row}", f"{text} {row}" if text else "", brand="Åcme" if row % 2 else "")
            for row, text in enumerate(texts)]  # fmt: skip


def texts_of(items: list[Product]) -> list[str]:
    return [". ".join(part for part in (item.title, item.brand) if part) for item in items]


def by_library(folder: Path, items: list[Product]) -> Callable[[str], np.ndarray]:
    """Query => scores of a user of the library, who knows nothing of the kit."""
    model = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)
    vectors = model.encode_document(texts_of(items))
    return lambda query: np.asarray(model.similarity(model.encode_query([query]), vectors)[0].numpy())


def exported(ranker: ImportedLateInteraction, to: Path) -> Callable[[str, list[Product]], np.ndarray]:
    """Query and items => scores of the ONNX graphs, each fed what the one before gives."""
    usual, sessions = ranker.sample(Request(QUERIES[0]), products(40)), {}
    for graph in ranker.graphs:
        example = usual[graph.name]
        if graph.batches:
            example = {name: np.concatenate([array, array]) for name, array in example.items()}
        onnx_from_ranker(graph, example, to / f"{graph.name}.onnx")
        samples = [ranker.sample(Request(query), products(count))[graph.name] for query in QUERIES for count in (1, 40)]
        check_onnx(graph, to / f"{graph.name}.onnx", samples)
        sessions[graph.name] = onnxruntime.InferenceSession(to / f"{graph.name}.onnx")

    def score(query: str, items: list[Product]) -> np.ndarray:
        samples = ranker.sample(Request(query), items)
        outputs: dict[str, np.ndarray] = {}
        for graph in ranker.graphs:
            outputs = run_onnx(sessions[graph.name], {**samples[graph.name], **outputs})
        return outputs["score"][:, 0]

    return score


def test_scores_are_the_librarys_own(folder: Path, tmp_path: Path) -> None:
    ranker, items = ranker_of(folder), products(1024)
    score, wanted_of = exported(ranker, tmp_path), by_library(folder, items)
    for query in QUERIES:
        wanted = wanted_of(query)
        assert np.std(wanted) > 1e-3
        for count in (1, 40, 1024):
            assert score(query, items[:count]) == pytest.approx(wanted[:count], abs=1e-4)
        assert ranker.score(Request(query), items) == pytest.approx(wanted, abs=1e-4)
        assert ranker.library_scores(Request(query), items[:40]) == pytest.approx(wanted[:40], abs=1e-5)


def test_rows_of_several_requests_do_not_change_each_other(folder: Path) -> None:
    ranker = ranker_of(folder)
    rows = [ranker.sample(Request(query), products(1))["late_query"] for query in ("mug", "a mug")]
    with torch.inference_mode():
        apart = [ranker.network(*map(torch.from_numpy, row.values())) for row in rows]
        joined = ranker.network(*(torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in rows[0]))
    assert joined.numpy() == pytest.approx(torch.cat(apart).numpy(), abs=1e-5)


@pytest.mark.parametrize(("form", "bytes_a_token", "limit"), [("fp16", 32, 0.01), ("int8", 20, 0.1)])
def test_smaller_vectors_cost_a_little(
    punctuated: Path, tmp_path: Path, form: str, bytes_a_token: int, limit: float
) -> None:
    whole, small = ranker_of(punctuated), ranker_of(punctuated, vectors=form)
    items = products(40)
    difference = np.abs(exported(small, tmp_path)(QUERIES[1], items) - whole.score(Request(QUERIES[1]), items))
    assert 0 < difference.max() < limit
    assert small.library_scores(Request(QUERIES[1]), items) == pytest.approx(
        small.score(Request(QUERIES[1]), items), abs=1e-4
    )
    assert whole.unrounded is None and small.unrounded is not None
    assert small.unrounded.score(Request("mug"), items) == pytest.approx(whole.score(Request("mug"), items), abs=1e-6)
    sizes = [(len(a), len(b)) for (_, a), (_, b) in zip(
        small.item_features(items), whole.item_features(items), strict=True
    )]  # fmt: skip
    assert all(a * 64 == b * bytes_a_token for a, b in sizes)
    assert small.preprocess.parameters["item_features_version"] != whole.preprocess.parameters["item_features_version"]


def test_the_recipe_may_read_less_of_items_and_the_library_then_does_too(punctuated: Path) -> None:
    short = ranker_of(punctuated, max_length=12, query_prompt="[Q] find ", item_prompt="")
    items = products(40)
    model = MultiVectorEncoder(str(punctuated), device="cpu")
    model[0].document_length = 12
    wanted = model.similarity(
        model.encode_query(["mug"], prompt="[Q] find "), model.encode_document(texts_of(items), prompt="")
    )
    assert short.score(Request("mug"), items) == pytest.approx(wanted[0].numpy(), abs=1e-5)


def test_truncations_are_told(punctuated: Path) -> None:
    ranker = ranker_of(punctuated)
    items = products(40)
    cut = sum(len(ranker._tokenizer.encode(f"[D] {text}").ids) > 40 for text in texts_of(items))
    assert 0 < ranker.truncated(Request("mug"), items) == cut < 40
    assert ranker.truncated(Request(QUERIES[1]), items) == 40


def test_facts_say_what_is_served(punctuated: Path) -> None:
    told = "\n".join(ranker_of(punctuated, vectors="fp16").facts)
    assert "Transformer => Dense => MultiVectorMask => Normalize" in told
    assert "prompt '[Q] '; filled up to 12 tokens with '[MASK]', which is not attended to" in told
    assert "at most 40 tokens" in told and "fp16, 32 bytes a token" in told
    assert ranker_of(punctuated).own_text == {
        "query_prompt": "[Q] ", "item_prompt": "[D] ", "max_length": 40, "vectors": "fp32",
    }  # fmt: skip


def test_a_recipe_names_the_format(punctuated: Path) -> None:
    content = {"ranker": "mine", "format": "late_interaction", "checkpoint": punctuated,
               "variants": [{"name": "fp32_onnx"}]}  # fmt: skip
    ranker = load_ranker(Recipe.model_validate(content))
    assert [graph.name for graph in ranker.graphs] == ["mine_query", "mine"]
    with pytest.raises(RecipeError, match=r"\[text\] sets max_query_tokens, which ImportedLateInteraction does not"):
        load_ranker(Recipe.model_validate({**content, "text": {"max_query_tokens": 3}}))


# ---------------------------------------------------------------- what cannot be served
def test_a_bare_encoder_is_refused_for_its_projection_would_be_made_up(tmp_path: Path) -> None:
    write_multi_vector(tmp_path)
    with pytest.raises(CheckpointError, match="untrained projection"):
        ranker_of(tmp_path / "backbone")


def test_a_projection_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = write_pylate(tmp_path / "colbert")
    (folder / "1_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="its library cannot load it"):
        ranker_of(folder)


def test_pooled_queries_are_refused(tmp_path: Path) -> None:
    folder = write_multi_vector(tmp_path, pooling=True)
    [config] = folder.glob("*_HierarchicalTokenPooling/config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "tasks": ["query", "document"]}))
    with pytest.raises(CheckpointError, match="HierarchicalTokenPooling joins vectors of the query"):
        ranker_of(folder)


def test_items_longer_than_the_positions_are_refused(punctuated: Path) -> None:
    with pytest.raises(
        CheckpointError, match=re.escape(f"max_length 200, but the checkpoint has positions for {POSITIONS}")
    ):
        ranker_of(punctuated, max_length=200)


def test_skipped_special_tokens_are_refused(tmp_path: Path) -> None:
    folder = write_multi_vector(tmp_path, mask={"skiplist_words": ["[CLS]", "[SEP]"]})
    with pytest.raises(CheckpointError, match="nothing of an empty text is scored"):
        ranker_of(folder)


def test_tokenizer_settings_that_no_graph_has_are_refused(tmp_path: Path) -> None:
    folder = write_multi_vector(tmp_path, processing_kwargs={"text": {"max_length": 20, "stride": 2}})
    with pytest.raises(CheckpointError, match="sets stride for its tokenizer"):
        ranker_of(folder)
