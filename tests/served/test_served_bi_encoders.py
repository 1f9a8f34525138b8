"""What Triton serves of an imported bi-encoder is what sentence-transformers computes of the same folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from torch import nn
from tritonclient.utils import InferenceServerException

from builders.build import build_ranker
from builders.core.contract import UNSCORED
from builders.core.recipe import Recipe
from builders.core.workspace import Workspace
from builders.publish.catalogue import fill_item_store
from builders.publish.endpoints import publish_rankers
from server import TritonServer
from tests.support.bi_encoders import ITEM, LONG_QUERY, QUERY, WIDTH, text_of, write_bi_encoder
from tests.support.endpoint import Array, metric, send, texts
from tests.support.library_checkpoints import shop

pytestmark = pytest.mark.server
SHOP = shop()
DOCUMENTS = {item_id: text_of(product) for item_id, product in SHOP.products.items()}
PROMPTS = {"query": "query: ", "document": "passage: item, "}
TEXT: dict[str, dict[str, Any]] = {"plain": {}, "projected": {"vectors": "int8"}, "unstored": {"store": False}}
"""Ranker => its [text]."""


@dataclasses.dataclass(frozen=True)
class Served:
    """Library models by ranker, the running server, and what the builds said."""

    theirs: dict[str, SentenceTransformer]
    server: TritonServer
    client: grpc.InferenceServerClient
    said: list[str]

    def by_library(self, name: str, query: str, documents: Sequence[str]) -> np.ndarray:
        model = self.theirs[name]
        return np.asarray(model.similarity(model.encode_query(query), model.encode_document(list(documents)))[0])

    def scores(self, name: str, query: str, item_ids: Sequence[str], **further: Array) -> list[float]:
        """In the order of ``item_ids``."""
        asked = {"query": texts(query), "item_ids": texts(*item_ids), **further}
        found = dict(zip(*send(self.client, f"rank_{name}_fp32_onnx", **asked), strict=True))
        return [found[item_id] for item_id in item_ids]


def _folders(folder: Path) -> dict[str, Path]:
    projection = [Dense(WIDTH, 16, activation_function=nn.GELU()), Normalize()]
    return {
        "plain": write_bi_encoder(
            folder / "plain", "bert", "weightedmean", include_prompt=False, prompts=PROMPTS,
            similarity_fn_name="euclidean",
        ),
        "projected": write_bi_encoder(folder / "projected", "mpnet", "cls", projection, prompts=PROMPTS),
        "unstored": write_bi_encoder(folder / "unstored", "bert", "mean", similarity_fn_name="dot", truncate_dim=24),
    }  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("bi_encoders")
    workspace = Workspace(folder / "build", folder / "models", folder / "store")
    folders, said = _folders(folder), list[str]()
    recipes = [
        Recipe.model_validate(
            {"ranker": name, "format": "bi_encoder", "checkpoint": path, "text": {"item": ITEM, **TEXT[name]},
             "variants": [{"name": "fp32_onnx"}]}
        )
        for name, path in folders.items()
    ]  # fmt: skip
    built = [build_ranker(recipe, SHOP, said.append, workspace) for recipe in recipes]
    fill_item_store(built, said.append, workspace)
    publish_rankers(built, {}, "made up", said.append, workspace)
    endpoints = [f"rank_{name}_fp32_onnx" for name in folders]
    theirs = {name: SentenceTransformer(str(path), device="cpu") for name, path in folders.items()}
    with (
        TritonServer(
            workspace.repository, endpoints, store=workspace.item_store, grpc_port=0, http_port=0, metrics_port=0
        ) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        yield Served(theirs, server, client, said)


def scale_of(served: Served, name: str, query: str) -> float:
    """Of a usual list's scores: rounding goes with the vectors' lengths, which one small dot product does not show."""
    return max(1.0, float(np.abs(served.by_library(name, query, list(DOCUMENTS.values())[:40])).max()))


@pytest.mark.parametrize("query", [QUERY, LONG_QUERY])
@pytest.mark.parametrize("candidates", [1, 40, 1024])
@pytest.mark.parametrize(("name", "tolerance"), [("plain", 1e-5), ("projected", 1e-2)])
def test_served_scores_are_the_librarys(
    served: Served, name: str, tolerance: float, query: str, candidates: int
) -> None:
    ids = list(DOCUMENTS)[:candidates]
    wanted = served.by_library(name, query, [DOCUMENTS[item_id] for item_id in ids])
    assert served.scores(name, query, ids) == pytest.approx(
        wanted.tolist(), abs=tolerance * scale_of(served, name, query)
    )
    assert candidates == 1 or wanted.std() > 5 * tolerance


@pytest.mark.parametrize("query", [QUERY, LONG_QUERY])
@pytest.mark.parametrize("candidates", [1, 40, 1024])
def test_texts_alone_need_no_store(served: Served, query: str, candidates: int) -> None:
    ids = list(DOCUMENTS)[:candidates]
    documents = [DOCUMENTS[item_id] for item_id in ids]
    wanted = served.by_library("unstored", query, documents)
    found = served.scores("unstored", query, ids, item_texts=texts(*documents))
    assert found == pytest.approx(wanted.tolist(), abs=1e-5 * scale_of(served, "unstored", query))


def test_an_item_without_a_text_and_without_a_store_is_refused(served: Served) -> None:
    with pytest.raises(
        InferenceServerException, match=r"item_texts\[1\]: no text, and this ranker reads no item store"
    ):
        served.scores("unstored", QUERY, ["a", "b"], item_texts=texts("red mug", ""))


@pytest.mark.parametrize(("name", "tolerance"), [("plain", 1e-5), ("projected", 1e-2)])
def test_given_texts_stand_beside_stored_items(served: Served, name: str, tolerance: float) -> None:
    ids = [*list(DOCUMENTS)[:5], "new", "p7", "newer"]
    documents = [*list(DOCUMENTS.values())[:5], "blue tent for two", "red lamp in place of the stored text", "acme mug"]
    given = texts("", "", "", "", "", documents[5], documents[6], "")
    fields = texts("", "", "", "", "", "", "", json.dumps({"title": documents[7]}))
    wanted = served.by_library(name, QUERY, documents)
    found = served.scores(name, QUERY, ids, item_texts=given, item_fields=fields)
    assert found == pytest.approx(wanted.tolist(), abs=tolerance * max(1.0, float(np.abs(wanted).max())))
    assert found[5:] == pytest.approx(wanted[5:].tolist(), abs=1e-5)  # a given text's vector is not rounded


def test_an_unknown_item_comes_last(served: Served) -> None:
    assert served.scores("plain", QUERY, ["nowhere", "p1"])[0] == pytest.approx(UNSCORED)


def test_texts_that_are_not_read_to_their_end_are_counted(served: Served) -> None:
    name = "tritonrank_truncated_texts_total"
    before = metric(served.server, name, "unstored_preprocess")
    served.scores("unstored", QUERY, ["a", "b"], item_texts=texts("mug " * 100, "mug"))
    assert metric(served.server, name, "unstored_preprocess") == before + 1
    served.scores("unstored", LONG_QUERY, ["a", "b"], item_texts=texts("mug " * 100, "mug"))
    assert metric(served.server, name, "unstored_preprocess") == before + 3


def test_the_build_says_what_rounded_vectors_cost(served: Served) -> None:
    told = [line for line in served.said if "with items' vectors as stored" in line]
    assert len(told) == 1 and told[0].startswith("projected: NDCG@10 ")
