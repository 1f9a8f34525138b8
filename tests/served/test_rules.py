"""Post-processing on the real server: heads, fallback, each business rule alone, their order, every bad input.

The models are asked directly, with scores of the test's own.
"""

from __future__ import annotations

import collections
import importlib.util
import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from builders.core.contract import ITEM_IDS, KNOWN, SCORE, TOP_K, UNSCORED, Contract
from builders.core.recipe import RuleDefaults
from builders.core.workspace import SERVED_CODE
from builders.data.beir import Product
from builders.publish import model_config
from builders.publish.endpoints import served_files
from builders.publish.item_store import ItemStore
from builders.publish.postprocessing import (
    ATTRIBUTES_TABLE,
    ATTRIBUTES_VERSION,
    attribute_records,
    postprocess_contract,
)
from builders.publish.repository import ServedModel, publish_models
from server import ModelsNotReady, TritonServer
from tests.support.endpoint import Array, integers, metric, send, texts

pytestmark = pytest.mark.server

ANY_PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
IDS = ["a", "b", "c", "d", "e", "f"]
SCORES = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
"""Of IDS: without a rule their order is the alphabet's."""
PRODUCTS = [
    Product("a", "", brand="Acme", color="red", fields={"in_stock": True}),
    Product("b", "", brand="Acme", color="blue", fields={"in_stock": False, "new": True}),
    Product("c", "", brand="Acme", color="red", category=("Home", "Mugs")),
    Product("d", "", brand="Ümlaut=1", color="red", fields={"in_stock": False}),
    Product("e", "", color="green", fields={"season": 7}),
]
"""The store does not know f."""
DEFAULTS = RuleDefaults(in_stock_only=True, boosts={"color=green": 10}, pins={"f": 1, "absent": 2}, max_per_brand=1)
CONTRACTS = (
    postprocess_contract(),
    postprocess_contract("postprocess_defaults", rules=DEFAULTS),
    postprocess_contract("postprocess_pins", rules=RuleDefaults(pins={"e": 2, "f": 6})),
    postprocess_contract("postprocess_heads", heads=2, head_weights=(1.0, -0.5)),
    postprocess_contract("postprocess_fallback", falls_back=True),
)


def write_repository(folder: Path, code: str, *contracts: Contract) -> None:
    """The hand-written model of ``served/<code>`` once for each contract."""
    files = served_files(code)
    models = [ServedModel(model_config.python_config(contract), contract, files) for contract in contracts]
    publish_models(folder, models, [], {})


def fill(store: Path, products: Sequence[Product] = PRODUCTS) -> None:
    with ItemStore(store) as writer:
        writer.put(ATTRIBUTES_TABLE, ATTRIBUTES_VERSION, attribute_records(products))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("rules")
    write_repository(folder / "models", "postprocess", *CONTRACTS)
    fill(folder / "store")
    with TritonServer(folder / "models", load=None, store=folder / "store", **ANY_PORTS) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


def floats(values: Any) -> Array:
    return np.array(values, dtype=np.float32), "FP32"


def flags(*values: bool) -> Array:
    return np.array(values, dtype=np.bool_), "BOOL"


def boosts(**amounts: float) -> dict[str, Array]:
    """color="red" => ... is spelled color__red=amount."""
    keys = [name.replace("__", "=") for name in amounts]
    return {"boosted": texts(*keys), "boost_amounts": floats(list(amounts.values()))}


def pins(**positions: int) -> dict[str, Array]:
    return {"pinned_ids": texts(*positions), "pinned_positions": integers(list(positions.values()))}


def arrange(
    client: grpc.InferenceServerClient,
    model: str = "postprocess",
    ids: Sequence[str] = IDS,
    scores: Sequence[Any] = SCORES,
    known: Sequence[bool] | None = None,
    **further: Array,
) -> tuple[list[str], list[float]]:
    score = floats(scores)[0]
    tensors = {
        ITEM_IDS.name: texts(*ids),
        SCORE.name: (score.reshape(len(ids), -1), "FP32"),
        KNOWN.name: flags(*(known or [True] * len(ids))),
    }
    return send(client, model, **{**tensors, **further})


def order(client: grpc.InferenceServerClient, model: str = "postprocess", **further: Any) -> str:
    return "".join(arrange(client, model, **further)[0])


def top(count: int) -> dict[str, Array]:
    return {TOP_K.name: integers([count])}


# ---------------------------------------------------------------- scores
def test_without_a_rule_the_order_is_that_of_the_scores(client: grpc.InferenceServerClient) -> None:
    assert arrange(client, scores=[1, 3, 2, 3, np.nan, 9], known=[True] * 5 + [False]) == (
        ["b", "d", "c", "a", "e", "f"],
        [3, 3, 2, 1, UNSCORED, UNSCORED],
    )


def test_heads_are_summed_by_weight(client: grpc.InferenceServerClient) -> None:
    found = arrange(client, "postprocess_heads", ["a", "b", "c"], [[1, 2], [1, -2], [4, 2]])

    assert found == (["c", "b", "a"], [3, 2, 0])


def test_a_fallback_takes_the_scores_place_where_it_is_a_number(client: grpc.InferenceServerClient) -> None:
    fallback = floats([0.5, np.nan, 9, 9])
    found = arrange(
        client,
        "postprocess_fallback",
        ["a", "b", "c", "d"],
        [np.nan, 7, 1, 1],
        [True, True, True, False],
        fallback=fallback,
    )

    assert found == (["c", "b", "a", "d"], [9, 7, 0.5, UNSCORED])


# ---------------------------------------------------------------- each rule alone
def test_out_of_stock_items_are_left_out_and_items_that_do_not_say_stay(client: grpc.InferenceServerClient) -> None:
    assert order(client, in_stock_only=flags(True)) == "acef"
    assert order(client, in_stock_only=flags(False)) == "abcdef"


def test_a_list_may_be_empty_after_the_filter(client: grpc.InferenceServerClient) -> None:
    assert arrange(client, ids=["b", "d"], scores=[1, 2], in_stock_only=flags(True)) == ([], [])


def test_a_boost_is_added_to_the_score_and_a_negative_one_buries(client: grpc.InferenceServerClient) -> None:
    assert arrange(client, **boosts(color__red=2.5)) == (
        ["a", "c", "d", "b", "e", "f"],
        [8.5, 6.5, 5.5, 5.0, 2.0, 1.0],
    )
    assert order(client, **boosts(color__red=-100)) == "befacd"


def test_boosts_of_one_item_add_up(client: grpc.InferenceServerClient) -> None:
    ids, scores = arrange(client, **boosts(color__red=1, brand__Acme=2))

    assert dict(zip(ids, scores, strict=True)) == {"a": 9, "b": 7, "c": 7, "d": 4, "e": 2, "f": 1}


@pytest.mark.parametrize(
    ("key", "item"), [("brand=Ümlaut=1", "d"), ("new=true", "b"), ("season=7", "e"), ("category=Home", "c")]
)
def test_any_attribute_boosts_by_its_text(client: grpc.InferenceServerClient, key: str, item: str) -> None:
    assert order(client, boosted=texts(key), boost_amounts=floats([100]))[0] == item


def test_a_large_boost_keeps_the_order_of_those_that_it_lifts(client: grpc.InferenceServerClient) -> None:
    scores = [0.01, 0.02, 0.03, 0.04, 1, 1]

    assert order(client, scores=scores, **boosts(color__red=1e6))[:3] == "dca"


def test_a_boost_does_not_lift_an_item_without_a_score(client: grpc.InferenceServerClient) -> None:
    ids, scores = arrange(client, known=[False] + [True] * 5, **boosts(color__red=1e6))

    assert (ids[-1], scores[-1]) == ("a", UNSCORED)


def test_pins_stand_at_their_positions_and_keep_their_scores(client: grpc.InferenceServerClient) -> None:
    assert arrange(client, **pins(f=1, a=3)) == (["f", "b", "a", "c", "d", "e"], [1, 5, 6, 4, 3, 2])
    assert order(client, **pins(a=6)) == "bcdefa"
    assert order(client, **pins(a=2, b=1), **top(1)) == "b"


def test_every_arrangement_can_be_pinned(client: grpc.InferenceServerClient) -> None:
    for wanted in itertools.permutations("abcd"):
        positions = {item: position for position, item in enumerate(wanted, start=1)}
        assert order(client, ids=list("abcd"), scores=[1, 2, 3, 4], **pins(**positions)) == "".join(wanted)


def test_surplus_items_of_a_brand_go_behind_the_first_k_and_are_not_lost(client: grpc.InferenceServerClient) -> None:
    limit = {"max_per_brand": integers([1])}

    assert order(client, **limit) == "adefbc"
    assert order(client, **limit, **top(3)) == "ade"
    assert order(client, max_per_brand=integers([2]), **top(4)) == "abde"


def test_where_no_other_brand_is_left_surplus_items_fill_the_list(client: grpc.InferenceServerClient) -> None:
    found = order(client, ids=["a", "b", "c", "d"], scores=[4, 3, 2, 1], max_per_brand=integers([1]), **top(3))

    assert found == "adb"


def test_a_limit_of_zero_is_none(client: grpc.InferenceServerClient) -> None:
    assert order(client, max_per_brand=integers([0])) == "abcdef"


def test_items_without_a_brand_are_not_limited(client: grpc.InferenceServerClient) -> None:
    assert order(client, ids=["e", "f", "g"], scores=[3, 2, 1], max_per_brand=integers([1])) == "efg"


# ---------------------------------------------------------------- order of application
def test_the_filter_comes_before_a_pin(client: grpc.InferenceServerClient) -> None:
    assert order(client, in_stock_only=flags(True), **pins(b=1)) == "acef"


def test_a_pin_behind_what_the_filter_left_stands_last(client: grpc.InferenceServerClient) -> None:
    assert order(client, in_stock_only=flags(True), **pins(c=5, a=6)) == "efca"


def test_the_filter_comes_before_the_brand_limit(client: grpc.InferenceServerClient) -> None:
    found = order(
        client,
        ids=["b", "c", "e"],
        scores=[3, 2, 1],
        in_stock_only=flags(True),
        max_per_brand=integers([1]),
        **top(1),
    )

    assert found == "c"


def test_a_boost_decides_which_item_of_a_brand_is_kept(client: grpc.InferenceServerClient) -> None:
    assert order(client, **boosts(category__Home=10), max_per_brand=integers([1]), **top(4)) == "cdef"


def test_a_pinned_item_counts_for_its_brand_and_is_not_moved(client: grpc.InferenceServerClient) -> None:
    assert order(client, max_per_brand=integers([1]), **pins(c=2), **top(3)) == "dce"
    assert order(client, max_per_brand=integers([1]), **pins(b=1, c=2), **top(3)) == "bcd"


def test_an_item_pinned_behind_the_first_k_does_not_count(client: grpc.InferenceServerClient) -> None:
    assert order(client, max_per_brand=integers([1]), **pins(b=6), **top(3)) == "ade"


def test_all_rules_together(client: grpc.InferenceServerClient) -> None:
    found = arrange(
        client,
        in_stock_only=flags(True),  # a c e f
        **boosts(color__green=10, color__red=-1),  # e 12, a 5, c 3, f 1
        **pins(f=1),
        max_per_brand=integers([1]),  # c behind
        **top(3),
    )

    assert found == (["f", "e", "a"], [1, 12, 5])


# ---------------------------------------------------------------- without a server: what holds for every list
@pytest.fixture(scope="module")
def rules_py() -> Any:
    spec = importlib.util.spec_from_file_location("served_rules", SERVED_CODE / "postprocess" / "rules.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(200))
def test_pins_stand_and_a_brand_exceeds_its_limit_only_where_nothing_else_is_left(rules_py: Any, seed: int) -> None:
    generator = random.Random(seed)
    count = generator.randint(1, 12)
    brands = [generator.choice(["x", "y", "z", None]) for _ in range(count)]
    scores = np.array([generator.randint(0, 5) for _ in range(count)], np.float32)
    pinned = generator.sample(range(count), generator.randint(0, min(3, count)))
    places = dict(zip(pinned, generator.sample(range(1, count + 1), len(pinned)), strict=True))
    limit, k = generator.randint(1, 3), generator.randint(1, count)
    attributes = [{"brand": brand} if brand else {} for brand in brands]
    rules = rules_py.Rules(pins=places, max_per_brand=limit)

    whole = rules_py.arranged(scores, UNSCORED, rules, attributes, count)[0].tolist()
    first = rules_py.arranged(scores, UNSCORED, rules, attributes, k)[0].tolist()

    assert sorted(whole) == list(range(count))
    assert [whole[place - 1] for place in places.values()] == pinned
    assert all(first[place - 1] == row for row, place in places.items() if place <= k)
    assert len(first) == k
    shown = collections.Counter(brands[row] for row in first)
    movable = [row for row in range(count) if row not in first and row not in places]
    for brand in {"x", "y", "z"}:
        pins_of_brand = sum(brands[row] == brand for row in first if row in places)
        if shown[brand] > max(
            limit, pins_of_brand
        ):  # then every item that was left out would have been too many as well
            assert all(brands[row] is not None and shown[brands[row]] >= limit for row in movable)
    free = [row for row in first if row not in places and brands[row] is None]
    assert free == sorted(free, key=lambda row: (-scores[row], row))


# ---------------------------------------------------------------- the recipe's rules
def test_the_recipes_rules_apply_where_the_request_brings_none(client: grpc.InferenceServerClient) -> None:
    assert order(client, "postprocess_defaults") == "feac"


def test_the_recipes_pins_do_nothing_without_their_item_or_position(client: grpc.InferenceServerClient) -> None:
    assert order(client, "postprocess_pins") == "aebcdf"
    assert order(client, "postprocess_pins", ids=["a", "f", "b"], scores=[1, 2, 3]) == "bfa"


@pytest.mark.parametrize(
    ("replaced", "wanted"),
    [
        ({"in_stock_only": flags(False)}, "feadbc"),
        (boosts(color__red=10), "faec"),
        ({"boosted": texts(), "boost_amounts": floats([])}, "faec"),
        (pins(c=1), "cefa"),
        ({"pinned_ids": texts(), "pinned_positions": integers([])}, "eafc"),
        ({"max_per_brand": integers([0]), "boosted": texts(), "boost_amounts": floats([])}, "face"),
    ],
    ids=["stock", "boosts", "no boost", "pins", "no pin", "no limit and no boost"],
)
def test_a_requests_rule_takes_the_place_of_the_recipes_own(
    client: grpc.InferenceServerClient, replaced: dict[str, Array], wanted: str
) -> None:
    assert order(client, "postprocess_defaults", **replaced) == wanted


# ---------------------------------------------------------------- bad inputs
BAD: dict[str, tuple[dict[str, Array], str]] = {
    "boosts without amounts": (
        {"boosted": texts("color=red")},
        "boosted: 1, boost_amounts: absent, wanted as many of one as of the other",
    ),
    "amounts without boosts": (
        {"boost_amounts": floats([1])},
        "boosted: absent, boost_amounts: 1, wanted as many of one as of the other",
    ),
    "fewer amounts than boosts": (
        {"boosted": texts("color=red", "color=blue"), "boost_amounts": floats([1])},
        "boosted: 2, boost_amounts: 1, wanted as many of one as of the other",
    ),
    "a boost without =": (boosts(color=1), "boosted[0]: 'color', wanted attribute=value"),
    "a boost without an attribute": (
        {"boosted": texts("color=red", "=red"), "boost_amounts": floats([1, 1])},
        "boosted[1]: '=red', wanted attribute=value",
    ),
    "a boost without a value": (boosts(color__=1), "boosted[0]: 'color=', wanted attribute=value"),
    "an empty boost": (
        {"boosted": texts(""), "boost_amounts": floats([1])},
        "boosted[0]: 0 bytes, wanted 1 to 511",
    ),
    "a boost that is not UTF-8": (
        {"boosted": texts(b"color=\xff"), "boost_amounts": floats([1])},
        "boosted[0]: not UTF-8 (byte 0xff at 6)",
    ),
    "an amount that is not a number": (
        boosts(color__red=np.nan),
        "boost_amounts[0]: nan, wanted a number from -1000000 to 1000000",
    ),
    "an infinite amount": (
        boosts(color__red=1, color__blue=-np.inf),
        "boost_amounts[1]: -inf, wanted a number from -1000000 to 1000000",
    ),
    "too many boosts": (
        {"boosted": texts(*["color=red"] * 65), "boost_amounts": floats([0] * 65)},
        "boosted: 65 boosts, wanted at most 64",
    ),
    "pins without positions": (
        {"pinned_ids": texts("a")},
        "pinned_ids: 1, pinned_positions: absent, wanted as many of one as of the other",
    ),
    "more positions than pins": (
        {"pinned_ids": texts("a"), "pinned_positions": integers([1, 2])},
        "pinned_ids: 1, pinned_positions: 2, wanted as many of one as of the other",
    ),
    "a pinned item that was not asked": (pins(a=2, z=1), "pinned_ids[1]: 'z', wanted one of item_ids"),
    "position 0": (pins(a=0), "pinned_positions[0]: 0, wanted 1 to 6 (items asked)"),
    "a position behind the last": (pins(b=1, a=7), "pinned_positions[1]: 7, wanted 1 to 6 (items asked)"),
    "an item pinned twice": (
        {"pinned_ids": texts("a", "a"), "pinned_positions": integers([1, 2])},
        "pinned_ids[1]: 'a' a second time, wanted distinct ids",
    ),
    "a position given twice": (
        pins(a=2, b=2),
        "pinned_positions[1]: 2 a second time, wanted distinct positions",
    ),
    "a negative limit": ({"max_per_brand": integers([-1])}, "max_per_brand: -1, wanted 0 (no limit) or more"),
    "a negative top_k": ({TOP_K.name: integers([-1])}, "top_k: [-1], wanted one number >= 0 (0 = all)"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_rule_is_refused_with_what_was_found_and_wanted(client: grpc.InferenceServerClient, fault: str) -> None:
    tensors, message = BAD[fault]
    with pytest.raises(InferenceServerException) as refusal:
        arrange(client, **tensors)

    assert (refusal.value.status(), refusal.value.message()) == ("StatusCode.INVALID_ARGUMENT", message)


@pytest.mark.parametrize(
    "tensors", [{"in_stock_only": flags(True, True)}, {"max_per_brand": integers([])}, {"max_per_brand": floats([1])}]
)
def test_triton_refuses_another_shape_or_dtype(client: grpc.InferenceServerClient, tensors: dict[str, Array]) -> None:
    with pytest.raises(InferenceServerException, match=r"unexpected shape|data-type") as refusal:
        arrange(client, **tensors)

    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_scores_that_are_no_numbers_are_counted(server: TritonServer, client: grpc.InferenceServerClient) -> None:
    name = "tritonrank_unscored_items_total"
    before = metric(server, name, "postprocess")
    arrange(client, scores=[np.nan, np.inf, 1, 1, 1, np.nan], known=[True] * 5 + [False])

    assert metric(server, name, "postprocess") == before + 2


# ---------------------------------------------------------------- the store
def test_without_attributes_only_requests_that_need_them_are_refused_until_they_are_there(tmp_path: Path) -> None:
    write_repository(tmp_path / "models", "postprocess", postprocess_contract())
    with ItemStore(tmp_path / "store") as store:
        store.put("two_tower", "1", [("a", b"x")])
    with (
        TritonServer(tmp_path / "models", load=None, store=tmp_path / "store", **ANY_PORTS) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        assert order(client) == "abcdef"
        assert order(client, **pins(f=1)) == "fabcde"
        for _ in range(2):
            with pytest.raises(InferenceServerException, match="StoreError, a fault of the server"):
                arrange(client, in_stock_only=flags(True))
        assert "has no features of attributes" in server.log() and "run 'make repository'" in server.log()
        fill(tmp_path / "store")
        assert order(client, in_stock_only=flags(True)) == "acef"
        fill(tmp_path / "store", [Product("a", "", fields={"in_stock": False})])
        assert order(client, in_stock_only=flags(True)) == "cef"


def test_a_recipe_whose_rules_need_attributes_is_not_loaded_without_them(tmp_path: Path) -> None:
    contract = postprocess_contract(rules=RuleDefaults(max_per_brand=2))
    write_repository(tmp_path / "models", "postprocess", contract)
    with ItemStore(tmp_path / "store") as store:
        store.put("two_tower", "1", [("a", b"x")])
    with (
        pytest.raises(ModelsNotReady) as refusal,
        TritonServer(tmp_path / "models", ["postprocess"], store=tmp_path / "store", **ANY_PORTS),
    ):
        pytest.fail("served without what it needs")

    assert "has no features of attributes" in str(refusal.value)
