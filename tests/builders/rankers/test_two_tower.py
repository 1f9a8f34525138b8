"""The two-tower's vectors are what sentence-transformers makes of the same checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from builders.features.text import encode_texts, load_tokenizer
from builders.rankers.backbone import packaged_backbone
from builders.rankers.two_tower import CosineHead, TwoTower

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
