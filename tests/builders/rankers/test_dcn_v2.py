"""DCN-V2: the exported graph computes the same, crosses are those of the paper, every parameter learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from builders.core.contract import ContractError
from builders.data.beir import Product, Request
from builders.features.encoder import history, sparse, tokens
from builders.rankers.dcn_v2 import DCNv2
from builders.rankers.feature_ranker import FeatureRanker
from tests.support import fields

SMALL = {"embedding": 4, "cross_layers": 3, "rank": 5, "hidden": [8, 6]}


@pytest.fixture
def network() -> DCNv2:
    return DCNv2(fields.FEATURES, **SMALL)


def test_the_exported_graph_gives_the_same_scores(network: DCNv2, tmp_path: Path) -> None:
    differences = fields.differences_of(network, tmp_path)
    assert len(differences) == len(fields.CANDIDATES) and max(differences) < 1e-4


def test_a_request_of_one_row_scores_as_one_repeated_for_each_candidate(network: DCNv2) -> None:
    once, repeated = fields.one_row_and_repeated(network)
    assert once.shape == (7, 1) and once.dtype == torch.float32
    torch.testing.assert_close(once, repeated)


def test_every_parameter_learns(network: DCNv2) -> None:
    assert fields.parameters_without_gradient(network) == []


def test_unseen_ids_are_scored_and_absent_fields_too(network: DCNv2) -> None:
    strange = [Product("nobody's", "", brand="none's"), Product("item 1", ""), Product("item 2", "", brand="acme")]
    scores = fields.scores_of(network, Request(history=("?",), user_id="?", context={"hour": "?"}), strange)
    assert np.isfinite(scores).all() and len(set(scores.tolist())) == 3


def test_a_checkpoint_gives_the_same_scores_to_fp16_weights(network: DCNv2, tmp_path: Path) -> None:
    wanted = fields.scores_of(network, fields.REQUEST, fields.products(5))
    reloaded = FeatureRanker("fields", fields.reloaded(network, tmp_path))
    found = reloaded.score(fields.REQUEST, fields.products(5))
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.02)


def test_crosses_are_those_of_the_paper(network: DCNv2) -> None:
    fields.ranker_of(network)
    request, item = torch.randn(1, network.embeddings.flat_widths[0]), torch.randn(3, network.embeddings.flat_widths[1])
    x0 = x = torch.cat([request.expand(3, -1), item], dim=1)
    first = torch.cat([network.first_projection.of_request.weight, network.first_projection.of_item.weight], dim=1)
    projections = [first, *(layer.weight for layer in network.projections)]
    for v, u in zip(projections, network.expansions, strict=True):
        x = x0 * (x @ v.T @ u.weight.T + u.bias) + x
    torch.testing.assert_close(network._crosses(request, item), x, rtol=1e-4, atol=1e-4)


def test_a_network_without_fields_of_the_request_is_refused() -> None:
    with pytest.raises(ContractError, match="no sparse field or bag of the request"):
        DCNv2([sparse("item", ["item_id"])])


def test_tokens_are_refused_by_name() -> None:
    with pytest.raises(ContractError, match="title of tokens"):
        DCNv2([history("bought", 3, ()), sparse("item", ["item_id"]), tokens("title", "item", 8, "title")])
