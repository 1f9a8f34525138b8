"""DIN: the exported graphs compute the same, an empty history is scored, and training finds what customers like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from builders.rankers.din import DIN, AttentionUnit
from builders.rankers.feature_ranker import FeatureRanker
from tests.support import item_rankers


@pytest.fixture(scope="module")
def ranker() -> FeatureRanker:
    return item_rankers.untrained(DIN, dropout=0.2)


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
    trained, popularity = item_rankers.trained_and_popularity("din", epochs=5, examples=320)
    assert trained > 2 * popularity


def test_attention_multiplied_out_is_the_papers_unit() -> None:
    unit, events, candidates = AttentionUnit(4, 6), torch.randn(5, 4), torch.randn(3, 4)
    weights = torch.cat([unit.of_event.weight, unit.of_candidate.weight, unit.of_product.weight], dim=1)
    for row, candidate in enumerate(candidates):
        joined = torch.cat([events, candidate.expand(5, -1), events * candidate], dim=1)
        wanted = unit.output(unit.activation(joined @ weights.T + unit.of_event.bias))[:, 0]
        torch.testing.assert_close(unit(events, candidates)[row], wanted, rtol=1e-4, atol=1e-4)
