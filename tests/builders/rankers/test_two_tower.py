"""The two-tower's vectors are what sentence-transformers makes of the same checkpoint."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from builders.data.beir import Product
from builders.features.text import encode_texts, load_tokenizer
from builders.rankers import two_tower
from builders.rankers.backbone import packaged_backbone
from builders.rankers.quick_encoder import QuickEncoder
from builders.rankers.two_tower import CosineHead, TwoTower, TwoTowerRanker

TEXTS = ["red trail shoe", "", "Kindle Paperwhite – now waterproof with 2x the storage", "tent"]


@pytest.fixture(scope="module")
def tower() -> TwoTower:
    return TwoTower.from_checkpoint()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(packaged_backbone())


def test_vectors_equal_sentence_transformers(tower: TwoTower, tokenizer: Tokenizer) -> None:
    reference = SentenceTransformer(str(packaged_backbone()), device="cpu")
    wanted = reference.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(tower.encode_texts(tokenizer, TEXTS), wanted, atol=1e-5)


def test_vectors_are_normalised_and_in_the_order_of_the_texts(tower: TwoTower, tokenizer: Tokenizer) -> None:
    together = tower.encode_texts(tokenizer, TEXTS, batch=3)
    assert together.dtype == np.float32 and together.shape == (len(TEXTS), tower.width)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([tower.encode_texts(tokenizer, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_padding_changes_nothing(tower: TwoTower, tokenizer: Tokenizer) -> None:
    tokens = encode_texts(tokenizer, ["red trail shoe"])
    longer = {name: np.pad(array, ((0, 0), (0, 16))) for name, array in tokens.items()}
    with torch.inference_mode():
        short, long = (
            tower(torch.from_numpy(arrays["input_ids"]), torch.from_numpy(arrays["attention_mask"])).numpy()
            for arrays in (tokens, longer)
        )
    np.testing.assert_allclose(short, long, atol=1e-6)


def test_no_texts_give_no_vectors(tower: TwoTower, tokenizer: Tokenizer) -> None:
    assert tower.encode_texts(tokenizer, []).shape == (0, tower.width)


def test_cosine_head_scores_each_candidate(tower: TwoTower, tokenizer: Tokenizer) -> None:
    vectors = torch.from_numpy(tower.encode_texts(tokenizer, TEXTS))
    scores = CosineHead()(vectors[:1], vectors)
    assert scores.shape == (len(TEXTS), 1)
    assert scores[0].item() == pytest.approx(1, abs=1e-5)
    assert scores.argmax().item() == 0


# ---------------------------------------------------------------- many texts
WORDS = ["tent", "red", "trail", "shoe", "waterproof", "mug", "for", "storage"]
MANY = [Product(str(row), " ".join(random.Random(row).choices(WORDS, k=3 * row + 1))) for row in (5, 1, 7, 0, 3, 9, 2)]


@pytest.fixture
def ranker(monkeypatch: pytest.MonkeyPatch) -> TwoTowerRanker:
    monkeypatch.setattr(two_tower, "QUICK_FROM", len(MANY))
    monkeypatch.setattr(two_tower, "BATCH", 3)
    return TwoTowerRanker()


def vectors_of(ranker: TwoTowerRanker, products: Sequence[Product]) -> np.ndarray:
    return np.stack([np.frombuffer(value, "<f4") for _, value in ranker.item_features(products)])


def by_torch(ranker: TwoTowerRanker) -> np.ndarray:
    return ranker._encoder.encode_texts(ranker._tokenizer, [product.title for product in MANY])


def test_vectors_of_a_catalogue_are_torchs_but_for_rounding(ranker: TwoTowerRanker) -> None:
    found = vectors_of(ranker, MANY)
    assert isinstance(ranker._quick, QuickEncoder)
    np.testing.assert_allclose(found, by_torch(ranker), atol=1e-5)
    np.testing.assert_allclose(vectors_of(ranker, MANY[:1]), found[:1], atol=1e-5)


@pytest.mark.parametrize("fault", ["cannot be converted", "gives other vectors"])
def test_a_network_that_openvino_does_not_compute_alike_is_computed_by_torch_with_a_warning(
    fault: str, ranker: TwoTowerRanker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise ValueError("no such operation")

    monkeypatch.setattr(QuickEncoder, "__init__", refuses if fault == "cannot be converted" else lambda *_: None)
    monkeypatch.setattr(QuickEncoder, "encode", lambda self, batches, vectors: vectors.fill(1))
    told = {
        "cannot be converted": "OpenVINO cannot convert the network (ValueError: no such operation)",
        "gives other vectors": "OpenVINO's vectors differ by 1",
    }[fault]
    with pytest.warns(RuntimeWarning, match=re.escape(told)):
        found = vectors_of(ranker, MANY)
    np.testing.assert_allclose(found, by_torch(ranker), atol=1e-5)
