"""Embeddings of fields: a table a field, a bag's mean over what is there, what history and candidate share."""

from __future__ import annotations

import pytest
import torch

from builders.features.encoder import history, sparse
from builders.rankers.layers.field_embeddings import FieldEmbeddings, JoinedLinear
from builders.rankers.mmoe import MMoE
from builders.rankers.wide_mlp import WideMLP
from tests.support import fields

IDS = ("a", "b", "c")
HISTORY, ITEM = history("history", 4, IDS), sparse("item", ["brand", "item_id"], vocabularies=(("acme",), IDS))


def embed(bought: list[int], items: list[list[int]]) -> tuple[FieldEmbeddings, torch.Tensor, torch.Tensor]:
    embeddings = FieldEmbeddings((HISTORY, ITEM), 3)
    request, item = embeddings(torch.tensor([bought], dtype=torch.int32), torch.tensor(items, dtype=torch.int32))
    return embeddings, request.embedded, item.embedded


def test_fields_of_one_feature_have_a_table_each() -> None:
    embeddings, _, item = embed([0, 0, 0, 2], [[2, 2]])
    weights = embeddings.tables["item"].embedding.weight
    torch.testing.assert_close(item[0], torch.stack([weights[2], weights[ITEM.rows("brand") + 2]]))


def test_a_bag_is_the_mean_of_its_ids_whatever_the_padding() -> None:
    embeddings, request, _ = embed([0, 0, 2, 4], [[1, 1]])
    weights = embeddings.tables["history"].embedding.weight
    torch.testing.assert_close(request[0, 0], (weights[2] + weights[4]) / 2)


def test_an_empty_bag_is_zero() -> None:
    _, request, _ = embed([0, 0, 0, 0], [[1, 1]])
    assert not request.any()


def test_history_and_candidate_match_by_their_vocabulary() -> None:
    embeddings, _, _ = embed([0, 0, 0, 2], [[1, 2]])
    assert embeddings.matching == ((0, 1),)
    request, item = embeddings(torch.tensor([[0, 0, 2, 3]]), torch.tensor([[1, 2], [1, 4]]))
    torch.testing.assert_close(embeddings.matches(request, item), request.embedded[:, 0] * item.embedded[:, 1])


@pytest.mark.parametrize("network", [WideMLP, MMoE])
def test_a_history_of_other_ids_than_the_candidates_matches_nothing(network: type[WideMLP | MMoE]) -> None:
    ranker = fields.ranker_of(network((history("viewed", 4, ("page 1",)), ITEM)))
    assert ranker.module.embeddings.matching == ()
    assert ranker.score(fields.REQUEST, fields.products(5)).shape[0] == 5


def test_a_joined_layer_is_a_linear_layer_of_both_sides() -> None:
    layer = JoinedLinear((2, 3), 4)
    request, item = torch.randn(1, 2), torch.randn(5, 3)
    weights = torch.cat([layer.of_request.weight, layer.of_item.weight], dim=1)
    wanted = torch.cat([request.expand(5, -1), item], dim=1) @ weights.T + layer.of_request.bias
    torch.testing.assert_close(layer(request, item), wanted)
