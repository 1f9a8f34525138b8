"""An imported bi-encoder's vectors and scores are sentence-transformers' own, in ONNX as in torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import LayerNorm
from torch import nn

from builders.core.recipe import Recipe, RecipeError, Text
from builders.data.beir import Product, Request
from builders.export.onnx import onnx_from_ranker, run_onnx
from builders.features.vectors import VectorError, as_stored, stored_vectors
from builders.rankers.backbone import CheckpointError
from builders.rankers.imported.bi_encoder import ImportedBiEncoder
from builders.rankers.imported.folder import look_at
from builders.rankers.load import load_ranker
from tests.support.bi_encoders import ITEM, LONG_QUERY, QUERY, WIDTH, text_of, write_bi_encoder
from tests.support.library_checkpoints import shop, wordpiece, write_encoder

PRODUCTS = list(shop().products.values())[:1024]
PROMPTS = {"query": "query: ", "document": "passage: item, "}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return lambda *given, **settings: write_bi_encoder(tmp_path, *given, **settings)


def loaded(folder: Path, **text: Any) -> ImportedBiEncoder:
    return ImportedBiEncoder("theirs", folder, Text(item=ITEM, **text))


def theirs(folder: Path, **settings: Any) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, **settings)


def by_library(model: SentenceTransformer, query: str, products: Sequence[Product]) -> np.ndarray:
    texts = list(map(text_of, products))
    found = model.similarity(model.encode_query(query), model.encode_document(texts))
    return np.asarray(found[0])


def by_onnx(ranker: ImportedBiEncoder, folder: Path) -> Callable[[str, Sequence[Product]], np.ndarray]:
    """What the exported graphs give, one fed to the other."""
    example = ranker.sample(Request(QUERY), PRODUCTS[:5])
    sessions = {}
    for graph in ranker.graphs:
        path = folder / f"{graph.name}.onnx"
        onnx_from_ranker(graph, example[graph.name], path)
        sessions[graph.name] = onnxruntime.InferenceSession(path)

    def scores(query: str, products: Sequence[Product]) -> np.ndarray:
        samples = ranker.sample(Request(query), products)
        outputs: dict[str, np.ndarray] = {}
        for graph in ranker.graphs:
            outputs = run_onnx(sessions[graph.name], {**samples[graph.name], **outputs})
        return outputs["score"][:, 0]

    return scores


def check(folder: Path, exported_to: Path | None = None, counts: Sequence[int] = (1, 40)) -> None:
    """Vectors and scores within 1e-5 of the library's, by torch and by ONNX, for short and long texts."""
    ranker, model = loaded(folder), theirs(folder)
    exported = by_onnx(ranker, exported_to) if exported_to else None
    texts = list(map(text_of, PRODUCTS[:40]))
    vectors = [np.frombuffer(value, "<f4") for _, value in ranker.item_features(PRODUCTS[:40])]
    wanted = model.encode_document(texts)
    np.testing.assert_allclose(vectors, wanted, atol=1e-5 * max(1.0, np.abs(wanted).max()))
    for query, count in itertools.product((QUERY, LONG_QUERY, "tent"), counts):
        scores = by_library(model, query, PRODUCTS[:count])
        assert count == 1 or scores.std() > 1e-3  # else any scores would do
        tolerance = 1e-5 * max(1.0, np.abs(scores).max())
        np.testing.assert_allclose(ranker.score(Request(query), PRODUCTS[:count]), scores, atol=tolerance)
        if exported:
            np.testing.assert_allclose(exported(query, PRODUCTS[:count]), scores, atol=tolerance)
        own = ranker.library_scores(Request(query), PRODUCTS[:count])
        np.testing.assert_allclose(own, scores, atol=tolerance)


# ---------------------------------------------------------------- as the library computes it
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_every_pooling_with_prompts(write: Write, pooling: str, include_prompt: bool) -> None:
    check(write("bert", pooling, include_prompt=include_prompt, prompts=PROMPTS))


@pytest.mark.parametrize(
    ("kind", "include_prompt"),
    [
        ("bert", True),
        pytest.param("mpnet", False, marks=pytest.mark.slow),
        pytest.param("qwen3", True, marks=pytest.mark.slow),
    ],
)
def test_all_poolings_side_by_side_in_onnx(write: Write, tmp_path: Path, kind: str, include_prompt: bool) -> None:
    check(write(kind, POOLINGS, include_prompt=include_prompt, prompts=PROMPTS), tmp_path)


@pytest.mark.slow
def test_modernberts_sliding_window(write: Write, tmp_path: Path) -> None:
    check(write("modernbert", "cls"), tmp_path)


@pytest.mark.parametrize(
    "similarity",
    [
        "cosine",
        pytest.param("euclidean", marks=pytest.mark.slow),
        pytest.param("dot", marks=pytest.mark.slow),
        pytest.param("manhattan", marks=pytest.mark.slow),
    ],
)
def test_every_similarity_up_to_the_largest_request(write: Write, tmp_path: Path, similarity: str) -> None:
    check(write("bert", "mean", similarity_fn_name=similarity), tmp_path, counts=(1, 40, 1024))


def test_modules_behind_pooling(write: Write, tmp_path: Path) -> None:
    after = [
        Dense(WIDTH, 24, activation_function=nn.GELU()),
        LayerNorm(24),
        Dense(24, 16, bias=False, activation_function=nn.Identity(), use_residual=True),
        Normalize(),
    ]
    folder = write("bert", "cls", after, similarity_fn_name="dot")
    check(folder, tmp_path)
    assert loaded(folder).width == 16


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_truncated_dimensions_of_the_checkpoint(write: Write, similarity: str) -> None:
    folder = write("bert", "mean", [Normalize()], similarity_fn_name=similarity, truncate_dim=12)
    check(folder)
    assert loaded(folder).width == 12


def test_truncated_dimensions_of_the_recipe(write: Write) -> None:
    folder = write("bert", "mean", [Normalize()])
    found = loaded(folder, dimensions=8).score(Request(QUERY), PRODUCTS[:40])
    np.testing.assert_allclose(found, by_library(theirs(folder, truncate_dim=8), QUERY, PRODUCTS[:40]), atol=1e-5)


def test_a_folder_of_transformers_alone_is_the_mean_as_the_library_takes_it(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "plain", "bert")
    check(folder)
    assert look_at(folder).format == "bi_encoder"
    facts = "\n".join(loaded(folder).facts)
    assert "Pooling (mean)" in facts and "similarity: cosine, as the folder names none" in facts


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, ("", "")),
        ({"prompts": {"query": "q ", "document": "d "}}, ("q ", "d ")),
        ({"prompts": {"query": "q ", "corpus": "c "}}, ("q ", "")),
        ({"prompts": {"all": "a "}, "default_prompt_name": "all"}, ("", "")),
        ({"prompts": {"query": "q ", "document": "d "}, "default_prompt_name": "document"}, ("q ", "d ")),
    ],
)
def test_prompts_are_those_that_the_library_finds(
    write: Write, settings: dict[str, Any], wanted: tuple[str, str]
) -> None:
    folder = write("bert", "mean", **settings)
    form = loaded(folder).settings["text"]
    assert (form.query_prompt, form.item_prompt) == wanted  # type: ignore[attr-defined]
    check(folder)


def test_a_prompt_that_the_library_does_not_use_is_told(write: Write) -> None:
    ranker = loaded(write("bert", "mean", prompts={"query": "q ", "passage": "p "}))
    assert ranker.facts[-1].startswith("prompt 'passage', 'p ', is used neither by encode_query nor by")


def test_the_recipes_prompts_replace_the_checkpoints(write: Write) -> None:
    folder = write("bert", "mean", include_prompt=False, prompts=PROMPTS)
    model = theirs(folder)
    texts = list(map(text_of, PRODUCTS[:40]))
    wanted = model.similarity(model.encode_query(QUERY, prompt=""), model.encode_document(texts, prompt="mug, tent: "))
    found = loaded(folder, query_prompt="", item_prompt="mug, tent: ").score(Request(QUERY), PRODUCTS[:40])
    np.testing.assert_allclose(found, wanted[0], atol=1e-5)


def test_recipe_lengths_are_kept(write: Write) -> None:
    folder = write("bert", "mean")
    model = theirs(folder)
    cut = [{"processing_kwargs": {"text": {"max_length": length}}} for length in (5, 13)]
    texts = list(map(text_of, PRODUCTS[:40]))
    wanted = model.similarity(model.encode_query(LONG_QUERY, **cut[0]), model.encode_document(texts, **cut[1]))
    ranker = loaded(folder, max_length=13, max_query_tokens=3)
    np.testing.assert_allclose(ranker.score(Request(LONG_QUERY), PRODUCTS[:40]), wanted[0], atol=1e-5)
    np.testing.assert_allclose(ranker.library_scores(Request(LONG_QUERY), PRODUCTS[:40]), wanted[0], atol=1e-5)
    assert ranker.truncated(Request(LONG_QUERY), PRODUCTS[:40]) == 40
    assert 0 < ranker.truncated(Request("tent"), PRODUCTS[:40]) < 40


def test_without_a_store_every_text_is_a_row_of_the_encoder(write: Write, tmp_path: Path) -> None:
    folder = write("bert", "mean", include_prompt=False, prompts=PROMPTS)
    ranker = loaded(folder, store=False)
    exported = by_onnx(ranker, tmp_path)
    for count in (1, 40, 1024):
        wanted = by_library(theirs(folder), QUERY, PRODUCTS[:count])
        np.testing.assert_allclose(ranker.score(Request(QUERY), PRODUCTS[:count]), wanted, atol=1e-5)
        np.testing.assert_allclose(exported(QUERY, PRODUCTS[:count]), wanted, atol=1e-5)
    assert list(ranker.item_features(PRODUCTS)) == []
    assert ranker.preprocess.parameters["item_features_version"] is None


# ---------------------------------------------------------------- stored vectors
@pytest.mark.parametrize(("form", "size", "error"), [("fp16", 2 * WIDTH, 1e-3), ("int8", 4 + WIDTH, 1e-2)])
def test_stored_vectors_are_smaller_and_near(write: Write, form: str, size: int, error: float) -> None:
    folder = write("bert", "mean")
    ranker, exact = loaded(folder, vectors=form), loaded(folder)
    found, wanted = (each.score(Request(QUERY), PRODUCTS[:200]) for each in (ranker, exact))
    assert 0 < np.abs(found - wanted).max() < error
    assert {len(value) for _, value in ranker.item_features(PRODUCTS[:9])} == {size}
    np.testing.assert_allclose(ranker.library_scores(Request(QUERY), PRODUCTS[:200]), found, atol=1e-5)
    assert ranker.unrounded is not None and exact.unrounded is None
    np.testing.assert_array_equal(ranker.unrounded.score(Request(QUERY), PRODUCTS[:200]), wanted)
    versions = {each.preprocess.parameters["item_features_version"] for each in (ranker, exact)}
    assert len(versions) == 2


def test_a_vector_of_zeros_stays_one() -> None:
    assert as_stored(np.zeros((2, 3), np.float32), "int8").tolist() == [[0.0] * 3] * 2


def test_what_fp16_cannot_hold_is_refused() -> None:
    with pytest.raises(
        VectorError, match="1 of 2 items' vectors hold NaN or infinities stored as fp16, wanted numbers"
    ):
        list(stored_vectors(np.array([[1.0], [1e6]], np.float32), "fp16"))


# ---------------------------------------------------------------- what is refused
def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, "says CrossEncoder"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "maxsim"}, "similarity maxsim, for which"),
        ("2_Dense/config.json", {"activation_function": "mine.Swish"}, "activation mine.Swish, for which its library"),
        ("2_Dense/config.json", {"scale": 3}, "its config.json sets scale, which its library does not read"),
        ("sentence_bert_config.json", {"query_length": 9}, "sets query_length, which is not served"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"padding": "max_length"}}}, "sets padding"),
        ("config_sentence_transformers.json", {"truncate_dim": 99}, "99 dimensions of vectors that have 8"),
    ],
)
def test_what_the_library_would_pass_over_is_refused(
    write: Write, file: str, changes: dict[str, Any], message: str
) -> None:
    folder = write("bert", "mean", [Dense(WIDTH, 8)])
    edited(folder / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        loaded(folder)


def test_modules_that_are_not_served_are_named(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    static = StaticEmbedding(wordpiece(), embedding_dim=8)
    SentenceTransformer(modules=[static], device="cpu").save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match="StaticEmbedding among its modules, which no format serves"):
        loaded(tmp_path)


def test_a_prompt_that_leaves_no_room_is_refused(write: Write) -> None:
    folder = write("bert", "mean", include_prompt=False, prompts={"query": "mug " * 70})
    with pytest.raises(CheckpointError, match="a prompt as long as a sequence, 64 tokens"):
        loaded(folder)


def test_a_prompt_beyond_which_nothing_may_be_left_is_refused(write: Write) -> None:
    folder = write("qwen3", "mean", include_prompt=False, prompts=PROMPTS)
    with pytest.raises(CheckpointError, match="leave the prompt out, and no special token ends a text"):
        loaded(folder)


def test_a_chat_template_is_refused(write: Write) -> None:
    folder = write("qwen3", "lasttoken")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    reads = {"method": "forward", "method_output_name": "last_hidden_state"}
    message = {**reads, "format": "flat"}
    edited(folder / "sentence_bert_config.json", modality_config={"text": reads, "message": message})
    with pytest.raises(CheckpointError, match="its tokenizer has a chat template"):
        loaded(folder)


def test_a_dense_without_its_weights_is_refused(write: Write) -> None:
    folder = write("bert", "mean", [Dense(WIDTH, 8)])
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="its library cannot load it"):
        loaded(folder)


def test_a_recipe_finds_it_by_its_format(write: Write) -> None:
    content = {
        "ranker": "theirs",
        "format": "bi_encoder",
        "checkpoint": write("bert", "mean"),
        "text": {"vectors": "int8"},
        "variants": [{"name": "fp32_onnx"}],
    }
    assert isinstance(load_ranker(Recipe.model_validate(content)), ImportedBiEncoder)
    with pytest.raises(RecipeError, match='vectors = "int8" with store = false'):
        load_ranker(Recipe.model_validate({**content, "text": {"vectors": "int8", "store": False}}))
