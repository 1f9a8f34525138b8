"""Items' texts that come with the request: scored as the stored ones, refused where they cannot be, without a store."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException
from tritonrank_client import InvalidRequest, RankClient

from builders.build import build_ranker
from builders.core.contract import (
    ITEM_FIELDS,
    ITEM_IDS,
    ITEM_TEXTS,
    MAX_CONTEXT_BYTES,
    MAX_TEXT_BYTES,
    QUERY,
    UNSCORED,
)
from builders.core.recipe import Recipe, Text, Variant
from builders.core.workspace import Workspace
from builders.data.beir import JudgedQueries, Product
from builders.evaluate.judge import BuiltRanker
from builders.publish.catalogue import add_items, fill_item_store
from builders.publish.endpoints import publish_rankers
from builders.publish.item_store import ItemStore
from server import TritonServer, canary
from tests.support.endpoint import Array, metric, send, texts
from tests.support.tiny_xlm_roberta import chinese_queries, recipe_for, write_backbone

pytestmark = pytest.mark.server
STORED, TEXTS_ONLY = "stored", "texts_only"
QUERY_TEXT = "红色咖啡杯"
TEMPLATE = "{title}. {brand} ({price:.2f})"
LIMIT_S = 30.0
NO_PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}


@dataclasses.dataclass(frozen=True)
class Built:
    """One checkpoint under two recipes in one workspace."""

    stored: BuiltRanker
    texts_only: BuiltRanker
    workspace: Workspace

    @property
    def products(self) -> list[Product]:
        """Those of the store, as served."""
        return list(self.stored.data.products.values())[:20]

    def text(self, product: Product) -> str:
        """As the ranker reads it."""
        [text] = self.stored.ranker._pairs.form.items([product])  # type: ignore[attr-defined]
        return str(text)


def _recipe(name: str, backbone: Path, text: Text) -> Recipe:
    only = (Variant(name="fp32_onnx"),)
    return recipe_for(backbone).model_copy(update={"ranker": name, "text": text, "variants": only})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("texts")
    judged = chinese_queries()
    priced = {
        item_id: dataclasses.replace(product, price=float(place)) if place % 3 else product
        for place, (item_id, product) in enumerate(judged.products.items())
    }
    data = JudgedQueries(judged.queries, priced, judged.judgements)
    backbone = write_backbone(folder / "backbone", [*(one.title for one in priced.values()), *data.queries.values()])
    workspace = Workspace(folder / "build", folder / "models", folder / "store")
    rankers = [
        build_ranker(_recipe(name, backbone, text), data, lambda _: None, workspace)
        for name, text in {
            STORED: Text(item=TEMPLATE, max_length=48),
            TEXTS_ONLY: Text(item=TEMPLATE, max_length=48, store=False),
        }.items()
    ]
    fill_item_store(rankers, lambda _: None, workspace)
    publish_rankers(rankers, {}, "made up", lambda _: None, workspace)
    return Built(*rankers, workspace)


def endpoint(ranker: str) -> str:
    return f"rank_{ranker}_fp32_onnx"


@pytest.fixture(scope="module")
def server(built: Built) -> Iterator[TritonServer]:
    store = built.workspace.item_store
    with TritonServer(built.workspace.repository, [endpoint(STORED)], store=store, **NO_PORTS) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as connected:
        yield connected


@pytest.fixture(scope="module")
def storeless(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server for which there is no item store at all."""
    nowhere = tmp_path_factory.mktemp("nowhere") / "store"
    with TritonServer(built.workspace.repository, [endpoint(TEXTS_ONLY)], store=nowhere, **NO_PORTS) as server:
        yield server


def served(
    client: grpc.InferenceServerClient, item_ids: list[str], ranker: str = STORED, **further: Array
) -> dict[str, float]:
    """Item id => score."""
    asked = {QUERY.name: texts(QUERY_TEXT), ITEM_IDS.name: texts(*item_ids), **further}
    return dict(zip(*send(client, endpoint(ranker), **asked), strict=True))


def ids_of(products: list[Product]) -> list[str]:
    return [product.item_id for product in products]


# ---------------------------------------------------------------- scores
def test_texts_score_bit_for_bit_as_the_stored_tokens_of_the_same_texts(
    built: Built, client: grpc.InferenceServerClient
) -> None:
    ids = ids_of(built.products)
    from_store = served(client, ids)
    sent = texts(*(built.text(product) for product in built.products))
    assert served(client, ids, **{ITEM_TEXTS.name: sent}) == from_store
    assert len(set(from_store.values())) > len(ids) / 2


def test_some_texts_beside_stored_items_and_an_empty_one_is_the_stored_one(
    built: Built, client: grpc.InferenceServerClient
) -> None:
    ids = ids_of(built.products)
    sent = [built.text(product) if place % 2 else "" for place, product in enumerate(built.products)]
    assert served(client, ids, **{ITEM_TEXTS.name: texts(*sent)}) == served(client, ids)


def test_a_text_replaces_what_is_stored(built: Built, client: grpc.InferenceServerClient) -> None:
    first, second = built.products[1], built.products[5]
    swapped = served(client, ids_of([first, second]), **{ITEM_TEXTS.name: texts(built.text(second), built.text(first))})
    from_store = served(client, ids_of([first, second]))
    assert swapped == {first.item_id: from_store[second.item_id], second.item_id: from_store[first.item_id]}
    assert swapped != from_store


def test_item_fields_pass_through_the_template(built: Built, client: grpc.InferenceServerClient) -> None:
    products = built.products
    fields = [{"title": one.title, "brand": one.brand, "price": one.price} for one in products]
    sent = texts(*(json.dumps(each, ensure_ascii=False) for each in fields))
    assert served(client, ids_of(products), **{ITEM_FIELDS.name: sent}) == served(client, ids_of(products))


def test_an_item_that_the_store_does_not_know_is_scored_by_its_text(
    built: Built, client: grpc.InferenceServerClient, server: TritonServer
) -> None:
    known = built.products[3]
    counted = ("tritonrank_unknown_items_total", f"{STORED}_preprocess")
    before = metric(server, *counted)
    found = served(client, ["fresh", known.item_id, "nowhere"], **{ITEM_TEXTS.name: texts(built.text(known), "", "")})
    assert found["fresh"] == found[known.item_id] != UNSCORED
    assert found["nowhere"] == UNSCORED
    assert metric(server, *counted) == before + 1


def test_texts_that_are_not_read_to_their_end_are_counted(
    built: Built, client: grpc.InferenceServerClient, server: TritonServer
) -> None:
    counted = ("tritonrank_truncated_texts_total", f"{STORED}_preprocess")
    before = metric(server, *counted)
    long = "户外 防水 帐篷 " * 40
    found = served(client, ["a", "b", "c"], **{ITEM_TEXTS.name: texts(long, long + "茶壶", "茶壶")})
    assert found["a"] == found["b"]  # what differs is past the limit
    assert metric(server, *counted) == before + 2


# ---------------------------------------------------------------- refusals
REFUSED: dict[str, tuple[dict[str, Array], str]] = {
    "a text too few": ({ITEM_TEXTS.name: texts("a")}, "item_texts: 1 values, wanted one for each of 2 items"),
    "a text too many": (
        {ITEM_TEXTS.name: texts("a", "b", "c")},
        "item_texts: 3 values, wanted one for each of 2 items",
    ),
    "fields of one item": ({ITEM_FIELDS.name: texts("{}")}, "item_fields: 1 values, wanted one for each of 2 items"),
    "a text that is not UTF-8": (
        {ITEM_TEXTS.name: texts("a", b"mug\xff")},
        "item_texts[1]: not UTF-8 (byte 0xff at 3)",
    ),
    "a text of too many bytes": (
        {ITEM_TEXTS.name: texts("x" * (MAX_TEXT_BYTES + 1), "")},
        f"item_texts[0]: {MAX_TEXT_BYTES + 1} bytes, wanted at most {MAX_TEXT_BYTES}",
    ),
    "fields of too many bytes": (
        {ITEM_FIELDS.name: texts("", "x" * (MAX_CONTEXT_BYTES + 1))},
        f"item_fields[1]: {MAX_CONTEXT_BYTES + 1} bytes, wanted at most {MAX_CONTEXT_BYTES}",
    ),
    "fields that are not JSON": (
        {ITEM_FIELDS.name: texts("", "{'title'")},
        "item_fields[1]: not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)), "
        "wanted an object of raw fields",
    ),
    "fields that are no object": (
        {ITEM_FIELDS.name: texts("[1]", "")},
        "item_fields[0]: a JSON list, wanted an object of raw fields",
    ),
    "a field that does not go with the template": (
        {ITEM_FIELDS.name: texts('{"title": "a", "price": "cheap"}', "")},
        "item_fields[0]: field {price:.2f}: 'cheap' does not go with this format (Unknown format code 'f' for object "
        "of type 'str')",
    ),
    "text and fields of one item": (
        {ITEM_TEXTS.name: texts("", "a"), ITEM_FIELDS.name: texts("", "{}")},
        "item_fields[1]: item_texts has this item's text, wanted one of the two",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_texts_that_cannot_be_are_refused(client: grpc.InferenceServerClient, fault: str) -> None:
    tensors, message = REFUSED[fault]
    with pytest.raises(InferenceServerException) as error:
        served(client, ["a", "b"], **tensors)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert error.value.message() == f"in ensemble '{endpoint(STORED)}', {message}"


def test_the_longest_text_is_scored(client: grpc.InferenceServerClient) -> None:
    assert served(client, ["a"], **{ITEM_TEXTS.name: texts("x" * MAX_TEXT_BYTES)})["a"] != UNSCORED


# ---------------------------------------------------------------- without a store
def test_nothing_is_stored_of_a_ranker_without_a_store_but_attributes_are(built: Built) -> None:
    new = Product("new", "红色咖啡杯", brand="山野")
    add_items([built.texts_only.ranker], [new], built.workspace)
    with ItemStore(built.workspace.item_store) as store:
        tables = store.tables()
        assert "new" in store.ids("attributes", "1")
    assert {name.split("@")[0] for name in tables} == {STORED, "attributes"}


def test_a_request_of_texts_needs_no_store(
    built: Built, client: grpc.InferenceServerClient, storeless: TritonServer
) -> None:
    ids = ids_of(built.products)
    sent = texts(*(built.text(product) for product in built.products))
    with grpc.InferenceServerClient(storeless.grpc_url) as other:
        assert served(other, ids, TEXTS_ONLY, **{ITEM_TEXTS.name: sent}) == served(client, ids)


def test_fields_need_no_store_either(built: Built, client: grpc.InferenceServerClient, storeless: TritonServer) -> None:
    product = built.products[4]
    fields = json.dumps({"title": product.title, "brand": product.brand, "price": product.price})
    with grpc.InferenceServerClient(storeless.grpc_url) as other:
        found = served(other, ["x"], TEXTS_ONLY, **{ITEM_FIELDS.name: texts(fields)})
    assert found["x"] == served(client, [product.item_id])[product.item_id]


@pytest.mark.parametrize("sent", [{}, {ITEM_TEXTS.name: texts("a", "")}], ids=["no texts", "one text of two"])
def test_without_a_store_an_item_without_a_text_is_refused(storeless: TritonServer, sent: dict[str, Array]) -> None:
    first = 1 if sent else 0
    with grpc.InferenceServerClient(storeless.grpc_url) as other, pytest.raises(InferenceServerException) as error:
        served(other, ["a", "b"], TEXTS_ONLY, **sent)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert error.value.message() == (
        f"in ensemble '{endpoint(TEXTS_ONLY)}', item_texts[{first}]: no text, and this ranker reads no item store; "
        "wanted item_texts (or item_fields) with a text for each item"
    )


# ---------------------------------------------------------------- through the client
def test_the_client_reranks_documents(built: Built, storeless: TritonServer, server: TritonServer) -> None:
    documents = [built.text(product) for product in built.products]
    documents += documents[:2]
    with (
        RankClient(storeless.grpc_url, model=endpoint(TEXTS_ONLY), timeout_s=LIMIT_S) as without,
        RankClient(server.grpc_url, model=endpoint(STORED), timeout_s=LIMIT_S) as with_store,
    ):
        reranked = without.rerank(QUERY_TEXT, documents)
        scores = dict(reranked)
        assert sorted(reranked.indices) == list(range(len(documents)))
        assert (scores[0], scores[1]) == (scores[20], scores[21])
        ids = ids_of(built.products)
        by_id = dict(with_store.rank(QUERY_TEXT, ids))
        assert {item_id: scores[place] for place, item_id in enumerate(ids)} == by_id
        assert without.rerank(QUERY_TEXT, documents, top_k=3).indices == reranked.indices[:3]


def test_the_client_sends_some_texts(built: Built, server: TritonServer) -> None:
    known, other = built.products[3], built.products[8]
    with RankClient(server.grpc_url, model=endpoint(STORED), timeout_s=LIMIT_S) as client:
        scores = dict(client.rank(QUERY_TEXT, [known.item_id, "fresh"], item_texts={"fresh": built.text(other)}))
        stored = dict(client.rank(QUERY_TEXT, ids_of([known, other])))
    assert scores == {known.item_id: stored[known.item_id], "fresh": stored[other.item_id]}


def test_the_client_is_told_that_an_item_has_no_text(storeless: TritonServer) -> None:
    with (
        RankClient(storeless.grpc_url, model=endpoint(TEXTS_ONLY), timeout_s=LIMIT_S) as client,
        pytest.raises(InvalidRequest, match=r"item_texts\[1\]: no text, and this ranker reads no item store"),
    ):
        client.rank(QUERY_TEXT, ["a", "b"], item_texts={"a": "红色"})


def test_the_builds_own_request_is_answered_with_and_without_a_store(
    built: Built, server: TritonServer, storeless: TritonServer
) -> None:
    asked = canary.canaries(built.workspace.repository)
    scored = {name: len(generations[-1]["canary"]["scores"]) for name, generations in asked.items()}
    assert scored == {endpoint(STORED): 3, endpoint(TEXTS_ONLY): 0}
    for running, store in ((server, built.workspace.item_store), (storeless, None)):
        assert list(canary.faults(running.host, running.http_port, running.repository, store, 30)) == []
