"""A shop's fields: nothing from after the cut, ids of users and items known by name; each network learns from them."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from builders.core.recipe import load_recipe
from builders.core.workspace import REPOSITORY_ROOT
from builders.data.beir import Request
from builders.data.purchase_log import PurchaseLog, purchase_log, training_examples
from builders.data.synthetic import write_generated
from builders.features.vocabularies import purchase_vectors
from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.layers.shop_fields import HISTORY, ITEM, ITEM_FIGURES, OF_THE_CUT, START_RMS, shop_fields
from builders.rankers.load import import_from
from builders.training.recommenders import trained_network

NETWORKS = ("wide_mlp", "dcn_v2", "dlrm", "mmoe")
FEW = {
    "epochs": 10,
    "examples": 40,
    "batch": 8,
    "negatives": 30,
    "threads": 1,
    "learning_rate": 1e-2,
    "half_life_days": 1e4,
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> PurchaseLog:
    folder = tmp_path_factory.mktemp("purchases") / "data"
    write_generated(folder)
    return purchase_log(folder)


def test_items_and_customers_of_before_the_cut_are_known_by_id(log: PurchaseLog) -> None:
    fields = {feature.name: feature for feature in shop_fields(log)}
    assert fields[HISTORY].vocabularies[0] == log.known_items == fields[ITEM].vocabularies[0]
    users = fields["user"].vocabularies[fields["user"].fields.index("user_id")]
    assert set(users) == set(log.users)


def test_what_only_the_cut_tells_is_left_out(log: PurchaseLog) -> None:
    fields = {field for feature in shop_fields(log) for field in feature.fields}
    assert not fields & {*OF_THE_CUT, "month"}
    assert {"popularity", "recent_popularity", "price"} <= set(ITEM_FIGURES) <= fields


@pytest.mark.parametrize("name", NETWORKS)
def test_item_embeddings_start_from_who_bought_what(log: PurchaseLog, name: str) -> None:
    recipe = load_recipe(REPOSITORY_ROOT / "recipes" / f"{name}.toml")
    network = import_from(recipe, recipe.module).for_log(log, {})
    vectors = START_RMS * purchase_vectors(log, network.embeddings.width)
    for feature in (HISTORY, ITEM):
        rows = network.embeddings.tables[feature].embedding.weight[2 : 2 + len(vectors)]
        np.testing.assert_allclose(rows.detach().numpy(), vectors, rtol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_lifts_what_was_bought_above_the_rest(log: PurchaseLog, name: str) -> None:
    recipe = load_recipe(REPOSITORY_ROOT / "recipes" / f"{name}.toml")
    few = recipe.model_copy(update={"training": FEW})
    untrained = import_from(recipe, recipe.module).for_log(log, {}).eval()
    assert _mean_place(trained_network(few, log), log) < 0.85 * _mean_place(untrained, log)


def _mean_place(network: nn.Module, log: PurchaseLog) -> float:
    """Of what was bought in some baskets before the cut, among all items known by then: 0 = first, 1 = last."""
    ranker = FeatureRanker("network", network)
    products = [log.items[item_id] for item_id in log.known_items]
    places = []
    for example in training_examples(log)[:40]:
        request = Request(history=example.history, user=example.user, context=example.context)
        scores = ranker.score(request, products).reshape(len(products), -1)[:, 0]
        order = (-scores).argsort().argsort() / len(products)
        places += [order[log.known_items.index(item_id)] for item_id in example.positives]
    return float(np.mean(places))
