"""Late-interaction checkpoints through the real Triton: the library's scores, however vectors are stored."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from sentence_transformers import MultiVectorEncoder

from builders.build import build_ranker
from builders.core.contract import MAX_CANDIDATES, UNSCORED
from builders.core.recipe import load_recipe
from builders.core.workspace import Workspace
from builders.data.beir import JudgedQueries
from builders.data.synthetic import generated_catalogue
from builders.publish.catalogue import fill_item_store
from builders.publish.endpoints import publish_rankers
from server import TritonServer
from tests.support.endpoint import metric, rank
from tests.support.tiny_colbert import write_multi_vector, write_pylate

pytestmark = pytest.mark.server
CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "fp32": write_pylate,
    "fp16": lambda folder: write_pylate(folder, do_query_expansion=False),
    "int8": lambda folder: write_multi_vector(
        folder, query_expansion={"strategy": "min", "length": 10}, query_length=30, similarity="meanmaxsim"
    ),
}
LARGEST_DIFFERENCE = {"fp32": 1e-4, "fp16": 0.01, "int8": 0.02}
QUERIES = ("mug", "Red stoneware coffee mug for the office and the garden, dishwasher safe, two (2) pieces")
RECIPE = """
ranker = "late_{vectors}"
format = "late_interaction"
checkpoint = "{checkpoint}"
text = {{ item = "{{title}}", vectors = "{vectors}" }}

[[variants]]
name = "fp32_onnx"
"""
Served = dict[str, Path]
"""How vectors are stored => the checkpoint."""


@pytest.fixture(scope="module")
def data() -> JudgedQueries:
    """The generated one, and as many more items as make a largest request."""
    made = generated_catalogue()
    further = {
        f"X{row}": dataclasses.replace(product, item_id=f"X{row}", title=f"{product.title}, {product.text} No. {row}")
        for row, product in enumerate(itertools.islice(made.products.values(), MAX_CANDIDATES - len(made.products)))
    }
    return dataclasses.replace(made, products={**made.products, **further})


@pytest.fixture(scope="module")
def published(data: JudgedQueries, tmp_path_factory: pytest.TempPathFactory) -> tuple[Served, Workspace]:
    folder = tmp_path_factory.mktemp("late")
    workspace = Workspace(folder / "build", folder / "models", folder / "store")
    checkpoints = {vectors: write(folder / vectors) for vectors, write in CHECKPOINTS.items()}
    rankers = []
    for vectors, checkpoint in checkpoints.items():
        recipe = folder / f"late_{vectors}.toml"
        recipe.write_text(RECIPE.format(vectors=vectors, checkpoint=checkpoint), encoding="utf-8")
        rankers.append(build_ranker(load_recipe(recipe), data, lambda _: None, workspace, fidelity_lists=2))
    fill_item_store(rankers, lambda _: None, workspace)
    publish_rankers(rankers, {}, "made up", lambda _: None, workspace)
    return checkpoints, workspace


@pytest.fixture(scope="module")
def server(published: tuple[Served, Workspace]) -> Iterator[TritonServer]:
    served, workspace = published
    with TritonServer(
        workspace.repository, load=[endpoint(vectors) for vectors in served], store=workspace.item_store,
        grpc_port=0, http_port=0, metrics_port=0,
    ) as running:  # fmt: skip
        yield running


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as connected:
        yield connected


def endpoint(vectors: str) -> str:
    return f"rank_late_{vectors}_fp32_onnx"


@pytest.mark.parametrize("vectors", CHECKPOINTS)
def test_served_scores_are_the_librarys(
    data: JudgedQueries, published: tuple[Served, Workspace], client: grpc.InferenceServerClient, vectors: str
) -> None:
    served, _ = published
    titles = {item_id: product.title for item_id, product in data.products.items()}
    model = MultiVectorEncoder(str(served[vectors]), device="cpu", local_files_only=True)
    items = model.encode_document(list(titles.values()))
    for query in QUERIES:
        scores = model.similarity(model.encode_query([query]), items)[0].tolist()
        wanted = dict(zip(titles, scores, strict=True))
        for count in (1, 40, MAX_CANDIDATES):
            asked = list(titles)[:count]
            found = dict(zip(*rank(client, endpoint(vectors), query, asked), strict=True))
            assert found == pytest.approx({item: wanted[item] for item in asked}, abs=LARGEST_DIFFERENCE[vectors])


@pytest.mark.parametrize("vectors", CHECKPOINTS)
def test_items_that_the_store_does_not_know_come_last_and_are_counted(
    data: JudgedQueries, client: grpc.InferenceServerClient, server: TritonServer, vectors: str
) -> None:
    known, preprocess = list(data.products)[:3], f"late_{vectors}_preprocess"
    before = metric(server, "tritonrank_unknown_items_total", preprocess)
    ids, scores = rank(client, endpoint(vectors), "mug", ["nowhere", *known, "no one's"])
    alone = dict(zip(*rank(client, endpoint(vectors), "mug", known), strict=True))
    assert ids[-2:] == ["nowhere", "no one's"] and scores[-2:] == pytest.approx([UNSCORED] * 2)
    assert dict(zip(ids[:3], scores[:3], strict=True)) == pytest.approx(alone, abs=1e-5)
    assert rank(client, endpoint(vectors), "mug", ["nowhere"]) == (["nowhere"], [pytest.approx(UNSCORED)])
    assert metric(server, "tritonrank_unknown_items_total", preprocess) == before + 3


def test_a_query_that_is_cut_is_counted(
    data: JudgedQueries, client: grpc.InferenceServerClient, server: TritonServer
) -> None:
    before = metric(server, "tritonrank_truncated_texts_total", "late_fp32_preprocess")
    rank(client, endpoint("fp32"), QUERIES[1], list(data.products)[:7])
    assert metric(server, "tritonrank_truncated_texts_total", "late_fp32_preprocess") == before + 7
