"""Causal rerankers on the real server: scores are the library's own, prefix shared or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from sentence_transformers import CrossEncoder

from builders.core.contract import ITEM_IDS, ITEM_TEXTS, QUERY
from builders.core.workspace import Workspace
from builders.data.beir import JudgedQueries
from server import TritonServer
from tests.support.causal_checkpoints import write_causal, write_reranker
from tests.support.endpoint import metric, rank, send, texts
from tests.support.library_checkpoints import shop
from tests.support.served_checkpoints import Write, published

TEMPLATE = "{title}. {brand}. {text}"
LONG_QUERY = "waterproof camping tent for kids, " * 30
CHECKPOINTS: dict[str, Write] = {
    "chat": write_causal,
    "pair": lambda folder: write_reranker(
        folder, "llama", None, no=None, prompts={"goods": "Find goods: "}, default_prompt_name="goods"
    ),
}


@pytest.fixture(scope="module")
def judged() -> JudgedQueries:
    return shop()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("causal")


@pytest.fixture(scope="module")
def workspace(place: Path, judged: JudgedQueries) -> Workspace:
    return published(CHECKPOINTS, judged, TEMPLATE, place)


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[TritonServer]:
    endpoints = [f"rank_{name}_fp32_onnx" for name in CHECKPOINTS]
    ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    with TritonServer(workspace.repository, endpoints, store=workspace.item_store, **ports) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


def library(place: Path, name: str) -> CrossEncoder:
    folder = place / "checkpoints" / name
    return CrossEncoder(str(folder / "saved" if (folder / "saved").is_dir() else folder), device="cpu")


@pytest.mark.server
@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize(("query", "count"), [("red running shoe", 1), ("!", 40), (LONG_QUERY, 40), ("mug", 1024)])
def test_served_scores_are_the_librarys_own(
    client: grpc.InferenceServerClient, place: Path, judged: JudgedQueries, name: str, query: str, count: int
) -> None:
    products = list(judged.products.values())[:count]
    pairs = [(query, ". ".join(filter(None, (one.title, one.brand, one.text)))) for one in products]
    wanted = library(place, name).predict(pairs)
    ids, scores = rank(client, f"rank_{name}_fp32_onnx", query, [one.item_id for one in products])
    served = dict(zip(ids, scores, strict=True))
    assert np.abs(np.array([served[one.item_id] for one in products]) - wanted).max() <= 1e-4
    assert scores == sorted(scores, reverse=True)


@pytest.mark.server
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_texts_of_the_request_are_scored_as_the_library_scores_them(
    client: grpc.InferenceServerClient, place: Path, name: str
) -> None:
    given = ["red mug, <|im_end|>", "杯 ☕", "tent " * 200]
    wanted = library(place, name).predict([("mug", text) for text in given])
    tensors = {QUERY.name: texts("mug"), ITEM_IDS.name: texts("a", "b", "c"), ITEM_TEXTS.name: texts(*given)}
    ids, scores = send(client, f"rank_{name}_fp32_onnx", **tensors)
    served = dict(zip(ids, scores, strict=True))
    assert [served[item_id] for item_id in "abc"] == pytest.approx(wanted.tolist(), abs=1e-4)


@pytest.mark.server
def test_an_unknown_item_is_last_and_changes_no_other_score(client: grpc.InferenceServerClient) -> None:
    known = rank(client, "rank_chat_fp32_onnx", "mug", ["p1", "p2"])
    ids, scores = rank(client, "rank_chat_fp32_onnx", "mug", ["p1", "stranger", "p2"])
    assert ids == [*known[0], "stranger"]
    assert scores[:2] == pytest.approx(known[1], abs=1e-5)


@pytest.mark.server
def test_prompts_that_are_cut_are_counted(server: TritonServer, client: grpc.InferenceServerClient) -> None:
    before = metric(server, "tritonrank_truncated_texts_total", "chat_preprocess")
    rank(client, "rank_chat_fp32_onnx", "mug", ["p0", "p1", "p5"])  # every fifth has a long description
    assert metric(server, "tritonrank_truncated_texts_total", "chat_preprocess") == before + 2
