"""A split cross-encoder through the real Triton: the scores of the form that was trained, and what a request costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as grpc

from builders.build import build_ranker
from builders.core.contract import UNSCORED
from builders.core.recipe import load_recipe
from builders.core.workspace import Workspace
from builders.data.beir import JudgedQueries, Request
from builders.data.synthetic import generated_catalogue
from builders.publish.catalogue import fill_item_store
from builders.publish.endpoints import publish_rankers
from builders.rankers import split_cross_encoder
from builders.rankers.split_cross_encoder import SplitCrossEncoderRanker
from server import TritonServer
from tests.support.endpoint import metric, rank
from tests.support.split_checkpoint import write_split_checkpoint

pytestmark = pytest.mark.server
LARGEST_DIFFERENCE = {"fp32": 1e-4, "int8": 0.2}
RECIPE = """
ranker = "split_{vectors}"
module = "{module}:SplitCrossEncoderRanker"
checkpoint = "{checkpoint}"
backbone = "{backbone}"
text = {{ vectors = "{vectors}" }}

[[variants]]
name = "fp32_onnx"
"""


@pytest.fixture(scope="module")
def data() -> JudgedQueries:
    return generated_catalogue()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_split_checkpoint(tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="module")
def server(
    data: JudgedQueries, checkpoint: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("served")
    workspace = Workspace(folder / "build", folder / "models", folder / "store")
    rankers = []
    for vectors in LARGEST_DIFFERENCE:
        recipe = folder / f"split_{vectors}.toml"
        text = RECIPE.format(
            vectors=vectors, module=split_cross_encoder.__file__, checkpoint=checkpoint[0], backbone=checkpoint[1]
        )
        recipe.write_text(text, encoding="utf-8")
        rankers.append(build_ranker(load_recipe(recipe), data, lambda _: None, workspace, fidelity_lists=2))
    fill_item_store(rankers, lambda _: None, workspace)
    publish_rankers(rankers, {}, "made up", lambda _: None, workspace)
    with TritonServer(
        workspace.repository, load=[endpoint(vectors) for vectors in LARGEST_DIFFERENCE], store=workspace.item_store,
        grpc_port=0, http_port=0, metrics_port=0,
    ) as running:  # fmt: skip
        yield running


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as connected:
        yield connected


def endpoint(vectors: str) -> str:
    return f"rank_split_{vectors}_fp32_onnx"


@pytest.mark.parametrize("vectors", LARGEST_DIFFERENCE)
def test_served_scores_are_those_of_the_trained_form(
    data: JudgedQueries, checkpoint: tuple[Path, Path], client: grpc.InferenceServerClient, vectors: str
) -> None:
    trained = SplitCrossEncoderRanker(*checkpoint, vectors="fp32")
    for query in ("red mug", "blue shoe for the garden, two (2) pieces " * 4):
        for count in (1, 40, len(data.products)):
            asked = list(data.products)[:count]
            scores = trained.score_joined(Request(query), [data.products[item] for item in asked])
            found = dict(zip(*rank(client, endpoint(vectors), query, asked), strict=True))
            assert found == pytest.approx(
                dict(zip(asked, scores.tolist(), strict=True)), abs=LARGEST_DIFFERENCE[vectors]
            )


def test_a_query_is_encoded_once_whatever_the_number_of_candidates(
    data: JudgedQueries, client: grpc.InferenceServerClient, server: TritonServer
) -> None:
    before = metric(server, "nv_inference_count", "split_int8_query_fp32_onnx")
    rank(client, endpoint("int8"), "mug", list(data.products)[:100])
    assert metric(server, "nv_inference_count", "split_int8_query_fp32_onnx") == before + 1


def test_items_that_the_store_does_not_know_come_last(data: JudgedQueries, client: grpc.InferenceServerClient) -> None:
    known = list(data.products)[:3]
    ids, scores = rank(client, endpoint("int8"), "mug", ["nowhere", *known, "no one's"])
    alone = dict(zip(*rank(client, endpoint("int8"), "mug", known), strict=True))
    assert ids[-2:] == ["nowhere", "no one's"] and scores[-2:] == pytest.approx([UNSCORED] * 2)
    assert dict(zip(ids[:3], scores[:3], strict=True)) == pytest.approx(alone, abs=1e-4)
    assert rank(client, endpoint("int8"), "mug", ["nowhere"]) == (["nowhere"], [pytest.approx(UNSCORED)])
