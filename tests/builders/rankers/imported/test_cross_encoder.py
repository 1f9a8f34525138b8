"""Every cross-encoder of the libraries: the exported graph's scores against ``CrossEncoder.predict`` of the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sentence_transformers import CrossEncoder

from builders.core.recipe import Text
from builders.data.beir import JudgedQueries, Product, Request
from builders.export.onnx import onnx_from_ranker, run_onnx
from builders.rankers.backbone import CheckpointError
from builders.rankers.imported.cross_encoder import ImportedCrossEncoder
from tests.support.library_checkpoints import (
    ARCHITECTURES,
    LENGTH,
    plain_byte_level,
    shop,
    write_classifier,
    write_cross_encoder,
    write_modular_cross_encoder,
)
from tests.support.loaded_graphs import check_costs_no_more

TEMPLATE = "{title}. {brand}. {text}"
LONG_QUERY = "waterproof camping tent for kids, " * 30
Write = Callable[[Path], Path]

FOLDERS: dict[str, Write] = {
    **{kind: lambda folder, kind=kind: write_classifier(folder, kind) for kind in ARCHITECTURES},  # type: ignore[misc]
    "two labels": lambda folder: write_classifier(folder, "bert", num_labels=2),
    "cut on the left": lambda folder: write_classifier(folder, "bert", {"truncation_side": "left"}),
    "an odd length": lambda folder: write_classifier(folder, "roberta", {"model_max_length": 37}),
    "no length in the tokenizer": lambda folder: write_classifier(folder, "mpnet", {"model_max_length": int(1e30)}),
    "Identity": lambda folder: write_cross_encoder(folder, activation_fn=torch.nn.Identity()),
    "a prompt": lambda folder: write_cross_encoder(
        folder, prompts={"query": "Find goods for: "}, default_prompt_name="query"
    ),
    "max_length": lambda folder: write_cross_encoder(folder, max_length=24),
    "modules, cls": write_modular_cross_encoder,
    "modules, mean": lambda folder: write_modular_cross_encoder(folder, "mean"),
}


@pytest.fixture(scope="module")
def judged() -> JudgedQueries:
    return shop()


def onnx_scores(ranker: ImportedCrossEncoder, file: Path, request: Request, products: list[Product]) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return run_onnx(session, ranker.sample(request, products)[ranker.name])["score"]


USUAL = ("bert", "deberta_v2", "modernbert", "two labels", "an odd length", "a prompt", "modules, cls")
"""Those of every run; the rest of the matrix takes minutes."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in USUAL else pytest.mark.slow) for name in FOLDERS]
)
def test_scores_are_the_librarys_own(name: str, tmp_path: Path, judged: JudgedQueries) -> None:
    folder = FOLDERS[name](tmp_path)
    ranker = ImportedCrossEncoder("mine", folder, Text(item=TEMPLATE))
    library = CrossEncoder(str(folder), device="cpu")
    products = list(judged.products.values())
    [graph] = ranker.graphs
    example = ranker.sample(Request("mug"), products[:3])[graph.name]
    onnx_from_ranker(graph, example, tmp_path / "model.onnx")
    check_costs_no_more(tmp_path / "model.onnx", graph, example)
    for query, count in (("red running shoe", 1), ("!", 40), (LONG_QUERY, 40), ("mug", 1024)):
        pairs = [(query, one) for one in map(written_out, products[:count])]
        wanted = library.predict(pairs)  # the folder alone says how
        found = onnx_scores(ranker, tmp_path / "model.onnx", Request(query), products[:count])
        assert np.abs(found.reshape(wanted.shape) - wanted).max() <= 1e-4
        assert count == 1 or wanted.std() > 1e-3  # else any order would do


def written_out(product: Product) -> str:
    """The template's text, written by hand."""
    return ". ".join(filter(None, (product.title, product.brand, product.text)))


def test_a_text_beyond_the_length_is_counted(tmp_path: Path, judged: JudgedQueries) -> None:
    ranker = ImportedCrossEncoder("mine", write_classifier(tmp_path, "bert"), Text(item="{text}"))
    products = list(judged.products.values())[:10]
    assert ranker.truncated(Request("mug"), products) == 2  # every fifth has a description
    assert ranker.truncated(Request(LONG_QUERY), products) == 10


def test_the_recipes_text_is_what_the_library_is_asked(tmp_path: Path, judged: JudgedQueries) -> None:
    text = Text(item=TEMPLATE, query_prompt="Goods: ", item_prompt="Offer: ", max_length=30)
    folder = write_classifier(tmp_path, "roberta")
    ranker = ImportedCrossEncoder("mine", folder, text)
    products = list(judged.products.values())[:40]
    pairs = [("Goods: mug", f"Offer: {written_out(one)}") for one in products]
    wanted = CrossEncoder(str(folder), device="cpu", max_length=30).predict(pairs)
    assert ranker.score(Request("mug"), products) == pytest.approx(wanted, abs=1e-5)
    assert ranker.library_scores(Request("mug"), products) == pytest.approx(wanted, abs=1e-6)


def test_queries_cut_by_the_recipe_have_no_library_to_compare_with(tmp_path: Path, judged: JudgedQueries) -> None:
    ranker = ImportedCrossEncoder("mine", write_classifier(tmp_path, "bert"), Text(max_query_tokens=3))
    products = list(judged.products.values())[:4]
    cut = ranker.score(Request("red running shoe for kids"), products)
    assert ranker.library_scores(Request("red running shoe"), products) is None
    assert cut == pytest.approx(ranker.score(Request("red running shoe"), products))


# ---------------------------------------------------------------- weights as they come
def test_shards_and_pickled_tensors_load_as_one_file_does(tmp_path: Path, judged: JudgedQueries) -> None:
    products = list(judged.products.values())[:8]
    whole = ImportedCrossEncoder("mine", write_classifier(tmp_path / "whole", "bert"))
    wanted = whole.score(Request("mug"), products)
    model, tokenizer = whole._library[0].model, whole._library[0].tokenizer
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    pickled = write_classifier(tmp_path / "pickled", "bert")
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for folder in (tmp_path / "shards", pickled):
        ranker = ImportedCrossEncoder("mine", folder)
        assert ranker.score(Request("mug"), products) == pytest.approx(wanted, abs=1e-6)
        assert any(path.suffix in (".safetensors", ".bin") for path in ranker.checkpoint_files)


# ---------------------------------------------------------------- refused
def without_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    kept = {name: one for name, one in load_file(folder / "model.safetensors").items() if "classifier" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


REFUSED: dict[str, tuple[dict[str, Any], Callable[[Path], object], dict[str, Any], str]] = {
    "three labels": ({"num_labels": 3}, lambda _: None, {}, "a head of 3 labels, wanted 1"),
    "no trained head": ({}, without_head, {}, r"not in its weights \(classifier.bias, classifier.weight\)"),
    "another tokenizer": (
        {"vocab_size": 100}, lambda _: None, {}, "its tokenizer gives ids up to [0-9]+, but the embedding has 100 rows",
    ),
    "beyond the positions": ({}, lambda _: None, {"max_length": LENGTH + 1}, "has positions for 64 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_served_wrong_is_refused(name: str, tmp_path: Path) -> None:
    settings, spoil, text, message = REFUSED[name]
    folder = write_classifier(tmp_path, "bert", **settings)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        ImportedCrossEncoder("mine", folder, Text(**text))


def test_left_padding_with_absolute_positions_is_refused(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, "bert", {"padding_side": "left"})
    with pytest.raises(CheckpointError, match="pads on the left of a network with absolute positions"):
        ImportedCrossEncoder("mine", folder)


def test_token_0_of_a_byte_level_vocabulary_is_a_token(tmp_path: Path) -> None:
    assert plain_byte_level().convert_ids_to_tokens(0) == "!"
    ranker = ImportedCrossEncoder("mine", write_classifier(tmp_path, "qwen3"), Text(item="{title}"))
    products = [Product("a", "!"), Product("b", "")]
    assert ranker.preprocess.parameters["pad_token_id"] != 0
    assert np.ptp(ranker.score(Request("mug"), products)) > 1e-4
