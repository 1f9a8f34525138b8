"""A shop's fields: nothing from after the cut, ids of users and items known by name; each network learns from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from builders.build import import_from
from builders.feature_ranker import FeatureRanker
from builders.generated_data import write_generated
from builders.interactions import PurchaseLog, purchase_log, purchase_vectors, request_of
from builders.recipe import REPOSITORY_ROOT, load_recipe
from builders.shop_fields import HISTORY, ITEM, ITEM_FIGURES, OF_THE_CUT, START_RMS, shop_fields
from builders.training_interactions import trained_network

NETWORKS = ("wide_mlp", "dcn_v2", "dlrm", "mmoe")
FEW = {"passes": 6, "examples": 40, "batch": 8, "negatives": 30, "threads": 1, "rate": 5e-3}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> PurchaseLog:
    folder = tmp_path_factory.mktemp("data")
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
def test_training_lifts_what_was_bought_above_the_rest(log: PurchaseLog, name: str, tmp_path: Path) -> None:
    recipe = load_recipe(REPOSITORY_ROOT / "recipes" / f"{name}.toml")
    recipe = recipe.model_copy(update={"training": {**recipe.training, **FEW}})
    trained = trained_network(recipe, log)
    untrained = import_from(recipe, recipe.module).for_log(log, recipe.training["network"])
    assert _mean_rank(trained, log) < 0.9 * _mean_rank(untrained.eval(), log)


def _mean_rank(network: object, log: PurchaseLog) -> float:
    """Place of the items that customers had bought among all known ones, 0 to 1, mean over some customers."""
    ranker = FeatureRanker("network", network)  # type: ignore[arg-type]
    products = [log.items[item_id] for item_id in log.known_items]
    row_of = {item_id: row for row, item_id in enumerate(log.known_items)}
    ranks = []
    for user_id in [user_id for user_id in log.positives if log.is_warm(user_id)][:20]:
        scores = ranker.score(request_of(log, user_id), products)
        order = (-scores.reshape(len(products), -1)[:, 0]).argsort().argsort()
        ranks += [order[row_of[item_id]] / len(products) for item_id in log.histories[user_id]]
    return float(np.mean(ranks))
