"""Query => category: labels, and a ranker over categories that is the same in torch and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from builders.core.contract import RANK
from builders.core.workspace import REPOSITORY_ROOT
from builders.data.beir import DatasetError, JudgedQueries, Product, Request, is_test_query
from builders.data.categories import category_lists, labels_of, titled_categories
from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.intent import Intent, intent_features
from tests.support.text_networks import check_parity_at_all_sizes, padded
from tests.support.tiny_bert import write_tiny_bert

CHECKPOINT = REPOSITORY_ROOT / "checkpoints" / "intent"
QUERY = torch.tensor([[5, 7]], dtype=torch.int32)


def product(item_id: str, *category: str) -> Product:
    return Product(item_id, f"title of {item_id}", category=category)


@pytest.fixture
def shop() -> JudgedQueries:
    """Three shoes, two tents, a mug and something without a category."""
    products = [
        product("s1", "Shoes", "Running"),
        product("s2", "Shoes"),
        product("s3", "Shoes"),
        product("t1", "Tents"),
        product("t2", "Tents"),
        product("m1", "Mugs"),
        product("x"),
    ]
    judgements = {
        "clear": {"t1": 3, "t2": 3, "s1": 3, "m1": 0},
        "tie": {"m1": 3, "s1": 3},
        "substitutes only": {"s1": 2, "s2": 2},
        "no category": {"x": 3, "s1": 0},
    }
    return JudgedQueries({name: name for name in judgements}, {one.item_id: one for one in products}, judgements)


@pytest.fixture
def network(tmp_path: Path) -> Intent:
    torch.manual_seed(0)
    features = intent_features(["Shoes", "Tents", "Mugs"])
    return Intent.untrained({"width": 16, "hidden": 8}, features, write_tiny_bert(tmp_path)).eval()


def test_the_label_is_the_commonest_top_category_among_exact_products(shop: JudgedQueries) -> None:
    assert labels_of(category_lists(shop))["clear"] == "Tents"


def test_of_equally_common_categories_the_larger_one_is_the_label(shop: JudgedQueries) -> None:
    assert labels_of(category_lists(shop))["tie"] == "Shoes"


def test_queries_without_an_exact_product_with_a_category_are_left_out(shop: JudgedQueries) -> None:
    assert set(category_lists(shop).queries) == {"clear", "tie"}


def test_every_category_is_a_candidate_and_one_is_right(shop: JudgedQueries) -> None:
    lists = category_lists(shop)
    assert list(lists.products) == ["Shoes", "Tents", "Mugs"]
    for grades in lists.judgements.values():
        assert sorted(grades) == sorted(lists.products) and sorted(grades.values()) == [0, 0, 3]


def test_data_without_categories_is_refused(shop: JudgedQueries) -> None:
    with pytest.raises(DatasetError, match="no label; wanted queries with an Exact product"):
        category_lists(shop.only(["no category"]))


def test_titles_without_a_category_teach_nothing(shop: JudgedQueries) -> None:
    assert len(titled_categories(shop)) == 6 and ("title of s1", "Shoes") in titled_categories(shop)


def test_the_split_of_a_query_stays(judged: JudgedQueries) -> None:
    lists = category_lists(judged)
    assert lists.queries.items() <= judged.queries.items()
    assert all(is_test_query(text) for text in lists.subset("test").queries.values())


def test_onnx_scores_equal_torch_at_1_40_and_1024_candidates(judged: JudgedQueries, tmp_path: Path) -> None:
    ranker = FeatureRanker.load("intent", Intent, CHECKPOINT, None)
    categories = list(category_lists(judged).products.values())
    pool = (categories * 1024)[:1024]
    check_parity_at_all_sizes(ranker, Request("coffee mug"), pool, tmp_path)


def test_it_needs_no_endpoint_of_its_own(network: Intent) -> None:
    ranker = FeatureRanker("intent", network)
    assert ranker.endpoint is RANK and [graph.name for graph in ranker.graphs] == ["intent_request", "intent"]


def test_scores_are_log_probabilities_of_the_named_categories(network: Intent) -> None:
    ranker = FeatureRanker("intent", network)
    named = [Product(name, name) for name in ("Mugs", "Shoes", "Tents")]
    scores = torch.from_numpy(ranker.score(Request("red shoe"), named))
    assert scores.exp().sum().item() == pytest.approx(1, abs=1e-5)
    with torch.inference_mode():
        logits = network.encode_request(torch.tensor([[4, 7]], dtype=torch.int32))  # "red shoe" of the tiny tokenizer
    torch.testing.assert_close(scores, logits.log_softmax(dim=1)[0, [2, 0, 1]])


def test_an_unknown_category_is_never_above_a_known_one(network: Intent) -> None:
    ranker = FeatureRanker("intent", network)
    known = ranker.score(Request("blue tent"), [Product(name, name) for name in network.categories])
    [unknown] = ranker.score(Request("blue tent"), [Product("Spaceships", "Spaceships")])
    assert unknown == known.min()


@torch.inference_mode()
def test_padding_does_not_change_the_logits(network: Intent) -> None:
    torch.testing.assert_close(network.encode_request(padded(QUERY, 6)), network.encode_request(QUERY))


@torch.inference_mode()
def test_multiplied_out_embeddings_give_the_same_logits(network: Intent) -> None:
    before = network.encode_request(QUERY)
    network.words.bake()
    torch.testing.assert_close(network.encode_request(QUERY), before)


def test_the_committed_checkpoint_is_at_most_one_mebibyte() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 2**20
