"""Wide & Deep: the exported graph computes the same, every parameter of both parts learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from builders.data.beir import Product, Request
from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.wide_mlp import WideMLP
from tests.support import fields

SMALL = {"embedding": 4, "hidden": [8, 6]}


@pytest.fixture
def network() -> WideMLP:
    return WideMLP(fields.FEATURES, **SMALL)


def test_the_exported_graph_gives_the_same_scores(network: WideMLP, tmp_path: Path) -> None:
    differences = fields.differences_of(network, tmp_path)
    assert len(differences) == len(fields.CANDIDATES) and max(differences) < 1e-4


def test_a_request_of_one_row_scores_as_one_repeated_for_each_candidate(network: WideMLP) -> None:
    once, repeated = fields.one_row_and_repeated(network)
    assert once.shape == (7, 1) and once.dtype == torch.float32
    torch.testing.assert_close(once, repeated)


def test_every_parameter_learns(network: WideMLP) -> None:
    assert fields.parameters_without_gradient(network) == []


def test_unseen_ids_are_scored_and_absent_fields_too(network: WideMLP) -> None:
    strange = [Product("nobody's", "", brand="none's"), Product("item 1", ""), Product("item 2", "", brand="acme")]
    scores = fields.scores_of(network, Request(history=("?",), user_id="?", context={"hour": "?"}), strange)
    assert np.isfinite(scores).all() and len(set(scores.tolist())) == 3


def test_a_checkpoint_gives_the_same_scores_to_fp16_weights(network: WideMLP, tmp_path: Path) -> None:
    wanted = fields.scores_of(network, fields.REQUEST, fields.products(5))
    reloaded = FeatureRanker("fields", fields.reloaded(network, tmp_path))
    found = reloaded.score(fields.REQUEST, fields.products(5))
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.02)


def test_the_wide_part_is_a_weight_an_id(network: WideMLP) -> None:
    ranker = fields.ranker_of(network)
    before = ranker.score(fields.REQUEST, fields.products(3))
    item_feature = next(feature for feature in fields.FEATURES if feature.name == "item")
    with torch.no_grad():
        network.one_hot.tables["item"].embedding.weight[item_feature.id_of("item 1")] += 5
    np.testing.assert_allclose(ranker.score(fields.REQUEST, fields.products(3)) - before, [0, 5, 0], atol=1e-5)
