"""MMoE: two heads, each with a gate of its own; the exported graph computes the same, every parameter learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from builders.data.beir import Product, Request
from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.mmoe import MMoE
from tests.support import fields

SMALL = {"embedding": 4, "experts": 3, "expert": 6, "tower": 5}


@pytest.fixture
def network() -> MMoE:
    return MMoE(fields.FEATURES, **SMALL)


def test_the_exported_graph_gives_the_same_scores(network: MMoE, tmp_path: Path) -> None:
    differences = fields.differences_of(network, tmp_path)
    assert len(differences) == len(fields.CANDIDATES) and max(differences) < 1e-4


def test_a_request_of_one_row_scores_as_one_repeated_for_each_candidate(network: MMoE) -> None:
    once, repeated = fields.one_row_and_repeated(network)
    assert once.shape == (7, 2) and once.dtype == torch.float32
    torch.testing.assert_close(once, repeated)


def test_every_parameter_learns(network: MMoE) -> None:
    assert fields.parameters_without_gradient(network) == []


def test_unseen_ids_are_scored_and_absent_fields_too(network: MMoE) -> None:
    strange = [Product("nobody's", "", brand="none's"), Product("item 1", ""), Product("item 2", "", brand="acme")]
    scores = fields.scores_of(network, Request(history=("?",), user_id="?", context={"hour": "?"}), strange)
    assert np.isfinite(scores).all() and len(set(map(tuple, scores.tolist()))) == 3


def test_a_checkpoint_gives_the_same_scores_to_fp16_weights(network: MMoE, tmp_path: Path) -> None:
    wanted = fields.scores_of(network, fields.REQUEST, fields.products(5))
    reloaded = FeatureRanker("fields", fields.reloaded(network, tmp_path))
    found = reloaded.score(fields.REQUEST, fields.products(5))
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.02)


def test_a_head_does_not_depend_on_the_other_ones_gate_and_tower(network: MMoE) -> None:
    ranker = fields.ranker_of(network)
    before = ranker.score(fields.REQUEST, fields.products(5))
    with torch.no_grad():
        for parameter in (*network.gates[1].parameters(), *network.towers[1].parameters()):
            parameter.add_(0.5)
    after = ranker.score(fields.REQUEST, fields.products(5))
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert not np.isclose(after[:, 1], before[:, 1]).any()
