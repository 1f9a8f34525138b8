"""Lists that nobody judged: seeded, of the wanted sizes, made of the corpus and never of the judgements."""

from __future__ import annotations

import dataclasses
import random

import pytest

from builders.data.beir import JudgedQueries, Product, Request
from builders.data.unlabeled import made_queries, query_text, unlabeled_lists
from tests.support.small_rankers import ITEMS, catalogue


@pytest.fixture(scope="module")
def data() -> JudgedQueries:
    return catalogue()


def ids(products: tuple[Product, ...]) -> list[str]:
    return [product.item_id for product in products]


def test_the_same_seed_gives_the_same_lists_and_another_seed_gives_others(data: JudgedQueries) -> None:
    assert unlabeled_lists(data, 10, 8, seed=1) == unlabeled_lists(data, 10, 8, seed=1)
    assert unlabeled_lists(data, 10, 8, seed=1) != unlabeled_lists(data, 10, 8, seed=2)


def test_every_list_has_as_many_different_candidates_as_asked(data: JudgedQueries) -> None:
    lists = unlabeled_lists(data, 15, 8, seed=1)
    assert len(lists) == 15
    assert [len(set(ids(one.products))) for one in lists] == [8] * 15
    assert all(one.request.query.strip() for one in lists)


def test_a_small_corpus_gives_a_list_a_product_with_all_of_them(data: JudgedQueries) -> None:
    lists = unlabeled_lists(data, 1000, 1000, seed=1)
    assert len(lists) == ITEMS
    assert [sorted(ids(one.products)) for one in lists] == [sorted(data.products)] * ITEMS


def test_the_product_that_a_query_was_made_of_is_among_its_candidates() -> None:
    products = {f"p{number}": Product(f"p{number}", f"word{number} thing{number} kind{number}") for number in range(50)}
    for one in unlabeled_lists(JudgedQueries({}, products, {}), 50, 4, seed=0):
        [number] = {word.strip("abcdefghijklmnopqrstuvwxyz") for word in one.request.query.split()}
        assert f"p{number}" in ids(one.products)


def test_candidates_are_in_no_order_that_tells_the_product(data: JudgedQueries) -> None:
    products = {f"p{number}": Product(f"p{number}", f"word{number} thing{number} kind{number}") for number in range(50)}
    places = {
        next(place for place, product in enumerate(one.products) if product.title.split()[0][4:] in one.request.query)
        for one in unlabeled_lists(JudgedQueries({}, products, {}), 50, 4, seed=0)
    }
    assert places == {0, 1, 2, 3}


def test_candidates_share_more_words_with_the_query_than_the_corpus_does(data: JudgedQueries) -> None:
    def shared(request: Request, products: tuple[Product, ...]) -> float:
        words = set(request.query.split())
        return sum(bool(words & set(product.title.split())) for product in products) / len(products)

    everything = tuple(data.products.values())
    lists = unlabeled_lists(data, ITEMS, 8, seed=1)
    near = sum(shared(one.request, one.products) for one in lists)
    assert near > 1.2 * sum(shared(one.request, everything) for one in lists)


def test_judgements_and_judged_queries_are_not_read(data: JudgedQueries) -> None:
    others = dataclasses.replace(
        data, queries={"x": "something else"}, judgements={"x": dict.fromkeys(list(data.products)[:3], 3)}
    )
    assert unlabeled_lists(others, 10, 8, seed=1) == unlabeled_lists(data, 10, 8, seed=1)


def test_data_with_requests_of_its_own_gives_those(data: JudgedQueries) -> None:
    asked: list[tuple[int, int]] = []

    def moments(count: int, seed: int) -> list[Request]:
        asked.append((count, seed))
        return [Request(history=(f"i{number}",)) for number in range(count)]

    shop = dataclasses.replace(data, unlabeled=moments)
    lists = unlabeled_lists(shop, 5, 7, seed=9)
    assert asked == [(5, 9)]
    assert [one.request.history for one in lists] == [(f"i{number}",) for number in range(5)]
    assert [len(set(ids(one.products))) for one in lists] == [7] * 5
    assert lists == unlabeled_lists(shop, 5, 7, seed=9)
    assert ids(lists[0].products) != ids(unlabeled_lists(shop, 5, 7, seed=10)[0].products)


def test_queries_are_words_of_title_text_category_brand_or_color() -> None:
    product = Product("p", "Acme Red Mug", "Holds tea. Dishwasher safe", "Acme", "Scarlet", ("Kitchen", "Cups", "Mugs"))
    known = {"acme", "red", "mug", "holds", "tea", "dishwasher", "safe", "scarlet", "cups", "mugs"}
    rng = random.Random(0)
    found = {word for _ in range(200) for word in query_text(product, rng).split()}
    assert found == known


def test_a_product_without_any_word_still_gives_a_query() -> None:
    rng = random.Random(0)
    assert {query_text(Product("p", "?", "!", "", "", ()), rng) for _ in range(20)} == {"product"}


def test_queries_are_made_at_most_one_a_product(data: JudgedQueries) -> None:
    products = list(data.products.values())
    assert len(made_queries(products, 7, seed=0)) == 7
    assert len(made_queries(products, 1000, seed=0)) == ITEMS
    assert made_queries(products, 7, seed=0) == made_queries(products, 7, seed=0)
