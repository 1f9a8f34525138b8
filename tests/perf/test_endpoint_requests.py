"""Each endpoint is asked what its ranker is judged on, whatever else is measured beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from builders.core.contract import CONTEXT, HISTORY, ITEM_IDS, RANKED_IDS, RECOMMEND, SCORES, USER_ID, Contract
from builders.core.workspace import Workspace
from builders.data.beir import JudgedQueries, Product, Request
from builders.publish import model_config, pbtxt
from perf import endpoint_requests
from perf.endpoint_requests import (
    CUSTOMERS,
    data_digest,
    named_endpoints,
    plain_names,
    recipe_of,
    write_endpoint_requests,
)
from perf.endpoints import Endpoint
from perf.errors import PerfError
from perf.inputs import RequestMix
from tests.support.figures import small_endpoints, small_recipe
from tests.support.repositories import write_model
from tests.support.small_repository import CODE, seal, write_endpoint

PRODUCTS = {name: Product(name, f"title {name}") for name in "abc"}
SEARCHES = JudgedQueries({"q1": "red", "q2": "blue"}, PRODUCTS, {"q1": {"a": 3}, "q2": {"b": 3, "a": 0, "c": 0}})
VISITORS = [f"u{number}" for number in range(CUSTOMERS + 5)]
PURCHASES = JudgedQueries(
    dict.fromkeys(VISITORS, ""),
    PRODUCTS,
    {name: {"a": 3, "b": 0} for name in VISITORS},
    {name: Request(history=("c",), user_id=name, context={"hour": 3}) for name in VISITORS},
)
OF_KIND = {"judged": SEARCHES, "purchases": PURCHASES}
SHOP = Endpoint(small_recipe().model_copy(update={"ranker": "shop", "data": "purchases"}), small_recipe().variants[0],
                kind="recommend")  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """`rank` serves a ranker of searches, `recommend` one of purchases; and a ranker that nobody knows."""
    folder = tmp_path_factory.mktemp("endpoints")
    models = folder / "models"
    for endpoint in ("rank", "rank_small_int8_onnx"):
        write_endpoint(models, endpoint, model="small_int8_onnx")
    write_endpoint(models, "rank_other_fp32_onnx", model="other_fp32_onnx")
    reads = Contract("shop_fp32_onnx", (HISTORY, USER_ID, CONTEXT, ITEM_IDS), (RANKED_IDS, SCORES))
    step = model_config.python_config(reads)
    write_model(models, step.name, pbtxt.render(step), CODE)
    for endpoint in (RECOMMEND.name, SHOP.name):
        ensemble = model_config.ensemble_config(dataclasses.replace(reads, name=endpoint), [(step, 1)])
        write_model(models, endpoint, pbtxt.render(ensemble))
    seal(models)
    return Workspace(folder / "build", models, folder / "store")


ENDPOINTS = [small_endpoints()[1], SHOP]


def test_endpoints_are_named_as_users_know_them(workspace: Workspace) -> None:
    assert plain_names(workspace) == ["rank", "recommend"]
    every = ["rank", "recommend", "rank_small_int8_onnx", "recommend_shop_fp32_onnx"]
    assert named_endpoints([], ENDPOINTS, workspace) == every
    assert named_endpoints(["shop_fp32_onnx", SHOP.name, "rank"], ENDPOINTS, workspace) == [SHOP.name, "rank"]
    with pytest.raises(PerfError, match=r"^gone is not published, wanted of rank, recommend, small_int8.*--recipe"):
        named_endpoints(["gone"], ENDPOINTS, workspace)


def test_a_plain_name_is_asked_what_the_ranker_behind_it_is_judged_on(workspace: Workspace) -> None:
    assert recipe_of("recommend", ENDPOINTS, workspace).data == "purchases"
    assert recipe_of("rank", ENDPOINTS, workspace).data == "judged"
    with pytest.raises(PerfError, match=r"rank: no recipe is known of rank_small_int8_onnx.*--recipe PATH"):
        recipe_of("rank", [SHOP], workspace)


def test_endpoints_of_both_kinds_get_their_own_requests(workspace: Workspace, tmp_path: Path) -> None:
    names = ["rank", "recommend"]
    found = write_endpoint_requests(names, ENDPOINTS, OF_KIND.__getitem__, workspace, tmp_path)
    searches, purchases = (json.loads(found[name].file.read_text())["data"] for name in names)
    assert [each["query"]["content"] for each in searches] == [["red"], ["blue"]]
    assert USER_ID.name not in searches[0]
    assert len(purchases) == CUSTOMERS
    assert purchases[1][USER_ID.name]["content"] == ["u1"]
    assert purchases[1][HISTORY.name]["content"] == ["c"]
    assert json.loads(purchases[1][CONTEXT.name]["content"][0]) == {"hour": 3}
    assert (found["rank"].candidates, found["recommend"].candidates) == (2.0, 2.0)


def test_the_catalogue_is_searched_once_for_all_endpoints_of_one_data(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[JudgedQueries] = []
    own = endpoint_requests.first_stage
    monkeypatch.setattr(endpoint_requests, "first_stage", lambda judged: searched.append(judged) or own(judged))
    names = named_endpoints([], ENDPOINTS, workspace)
    write_endpoint_requests(names, ENDPOINTS, OF_KIND.__getitem__, workspace, tmp_path)
    assert len(names) == 4 and len(searched) == 2


def test_a_mix_is_of_every_endpoints_requests(workspace: Workspace, tmp_path: Path) -> None:
    mix = RequestMix(candidates=(3,))
    found = write_endpoint_requests(["recommend"], ENDPOINTS, OF_KIND.__getitem__, workspace, tmp_path, mix)
    assert found["recommend"].candidates == 3.0


def test_figures_of_two_kinds_of_data_are_no_figures_of_one(workspace: Workspace, tmp_path: Path) -> None:
    found = write_endpoint_requests(["rank", "recommend"], ENDPOINTS, OF_KIND.__getitem__, workspace, tmp_path)
    alone = {"rank": found["rank"]}
    assert data_digest(alone) == SEARCHES.digest
    assert data_digest(found) not in {each.data for each in found.values()}
