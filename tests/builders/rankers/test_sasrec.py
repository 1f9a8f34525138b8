"""SASRec: the exported graphs compute the same, an empty history is scored, and training finds what customers like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.sasrec import SASRec
from tests.support import item_rankers


@pytest.fixture(scope="module")
def ranker() -> FeatureRanker:
    return item_rankers.untrained(SASRec, dropout=0.2)


def test_the_exported_graphs_give_the_same_scores_at_1_40_and_1024_candidates(
    ranker: FeatureRanker, tmp_path: Path
) -> None:
    differences = item_rankers.differences_of(ranker, tmp_path)
    assert max(max(each) for each in differences.values()) < 1e-4
    assert [len(each) for each in differences.values()] == [3] * len(ranker.graphs)


def test_without_a_history_every_score_is_finite(ranker: FeatureRanker) -> None:
    scores = item_rankers.without_history(ranker)
    assert np.isfinite(scores).all() and len(set(scores.tolist())) > 1


def test_scores_depend_on_the_history(ranker: FeatureRanker) -> None:
    scores = ranker.score(item_rankers.request(), item_rankers.products(40))
    assert np.abs(scores - item_rankers.without_history(ranker)).max() > 0.01


def test_a_checkpoint_gives_the_same_scores_to_fp16_weights(ranker: FeatureRanker, tmp_path: Path) -> None:
    before, after = item_rankers.reloaded_scores(ranker, tmp_path)
    np.testing.assert_allclose(after, before, rtol=0.01, atol=0.05)


def test_training_ranks_what_a_customer_likes_above_what_is_popular() -> None:
    small = {"width": 8, "layers": 1, "heads": 1, "feedforward": 16, "dropout": 0.3}
    trained, popularity = item_rankers.trained_and_popularity("sasrec", epochs=5, examples=320, network=small)
    assert trained > 2 * popularity


def test_requests_encoded_together_give_the_same_vectors_as_alone(ranker: FeatureRanker) -> None:
    network, history = ranker.module, torch.tensor(ranker.tensors(item_rankers.request(), [])["history"])
    empty = torch.zeros_like(history)
    with torch.inference_mode():
        together = network.encode_request(torch.cat([history, empty]))
        alone = torch.cat([network.encode_request(history), network.encode_request(empty)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_padding_in_front_changes_nothing(ranker: FeatureRanker) -> None:
    network, history = ranker.module, torch.tensor(ranker.tensors(item_rankers.request(), [])["history"])
    events = int((history != 0).sum())
    with torch.inference_mode():
        padded, cut = network.encode_request(history), network.encode_request(history[:, -events:])
    torch.testing.assert_close(padded, cut, rtol=1e-4, atol=1e-4)


def test_the_latest_item_counts_more_than_its_place_in_a_set(ranker: FeatureRanker) -> None:
    network, history = ranker.module, torch.tensor(ranker.tensors(item_rankers.request(), [])["history"])
    events = int((history != 0).sum())
    turned = torch.cat([history[:, :-events], history[:, -events:].flip(1)], dim=1)
    with torch.inference_mode():
        difference = network.encode_request(history) - network.encode_request(turned)
    assert difference.abs().max() > 0.01
