"""DLRM: the exported graph computes the same, pairs are distinct, every parameter learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from builders.core.contract import ContractError
from builders.data.beir import Product, Request
from builders.features.encoder import history, sparse
from builders.rankers.dlrm import DLRM
from builders.rankers.feature_ranker import FeatureRanker
from tests.support import fields

SMALL = {"embedding": 4, "bottom": [8], "top": [8, 6]}


@pytest.fixture
def network() -> DLRM:
    return DLRM(fields.FEATURES, **SMALL)


def test_the_exported_graph_gives_the_same_scores(network: DLRM, tmp_path: Path) -> None:
    differences = fields.differences_of(network, tmp_path)
    assert len(differences) == len(fields.CANDIDATES) and max(differences) < 1e-4


def test_a_request_of_one_row_scores_as_one_repeated_for_each_candidate(network: DLRM) -> None:
    once, repeated = fields.one_row_and_repeated(network)
    assert once.shape == (7, 1) and once.dtype == torch.float32
    torch.testing.assert_close(once, repeated)


def test_every_parameter_learns(network: DLRM) -> None:
    assert fields.parameters_without_gradient(network) == []


def test_unseen_ids_are_scored_and_absent_fields_too(network: DLRM) -> None:
    strange = [Product("nobody's", "", brand="none's"), Product("item 1", ""), Product("item 2", "", brand="acme")]
    scores = fields.scores_of(network, Request(history=("?",), user_id="?", context={"hour": "?"}), strange)
    assert np.isfinite(scores).all() and len(set(scores.tolist())) == 3


def test_a_checkpoint_gives_the_same_scores_to_fp16_weights(network: DLRM, tmp_path: Path) -> None:
    wanted = fields.scores_of(network, fields.REQUEST, fields.products(5))
    reloaded = FeatureRanker("fields", fields.reloaded(network, tmp_path))
    found = reloaded.score(fields.REQUEST, fields.products(5))
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.02)


def test_every_pair_of_different_fields_is_multiplied_once(network: DLRM) -> None:
    vectors = 1 + network.embeddings.fields()
    products = {tuple(sorted(divmod(pair, vectors))) for pair in network.pairs.tolist()}
    assert products == {(left, right) for right in range(vectors) for left in range(right)}
    assert len(network.pairs) == len(products)


def test_a_network_without_dense_features_is_refused() -> None:
    with pytest.raises(ContractError, match="no dense feature"):
        DLRM([history("bought", 3, ()), sparse("item", ["item_id"])])
