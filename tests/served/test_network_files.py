"""Networks that come as files, from a recipe's features to what the real server answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import tritonclient.grpc as grpc

from builders.build import build_ranker
from builders.core.contract import HISTORY, ITEM_IDS, QUERY
from builders.core.recipe import load_recipe
from builders.core.workspace import Workspace
from builders.publish.catalogue import fill_item_store
from builders.publish.endpoints import publish_rankers
from server import TritonServer
from tests.support import network_files as files
from tests.support.endpoint import send, texts
from tests.support.network_files import NUMBERS, SPARSE, TAKEN
from tests.support.small_rankers import catalogue

pytestmark = pytest.mark.server
TAKEN_BEFORE = ("i3", "i7", "i1", "i2", "i38")
INT8 = '[[variants]]\nname = "int8_onnx"\nsteps = [{ step = "int8", calibration_queries = 4 }]\n'
EASY = "[gate]\nmax_judged_loss = 0.99\nmin_fidelity_ndcg = 0.01\nfidelity_lists = 4\n"
HEADS = "[postprocess]\nhead_weights = [0.0, 1.0]\n"


def _recipes(folder: Path) -> list[Path]:
    by_hand = NUMBERS + 'input = "Float_Input"\n'
    dynamo = files.write_by_dynamo(folder / "dynamo.onnx")
    older = files.write_by_older_exporter(folder / "older.onnx")
    hand = files.write_by_hand(folder / "by_hand.onnx")
    program = files.write_program(folder / "program.pt2")
    return [
        files.write_recipe(folder, "dynamo", dynamo, (SPARSE, NUMBERS, TAKEN), more=INT8 + EASY),
        files.write_recipe(folder, "older", older, (SPARSE, NUMBERS)),
        files.write_recipe(folder, "by_hand", hand, (by_hand,), top='score = "probabilities"', more=HEADS),
        files.write_recipe(folder, "program", program, (SPARSE, NUMBERS, TAKEN)),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[grpc.InferenceServerClient]:
    workspace = Workspace(folder / "build", folder / "models", folder / "store")
    recipes = [load_recipe(path) for path in _recipes(folder)]
    rankers = [build_ranker(recipe, catalogue(), lambda _: None, workspace) for recipe in recipes]
    fill_item_store(rankers, lambda _: None, workspace)
    publish_rankers(rankers, {}, "made up", lambda _: None, workspace)
    endpoints = [
        f"{built.ranker.endpoint.name}_{built.recipe.model_name(one)}"
        for built in rankers
        for one in built.recipe.variants
    ]
    ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    with (
        TritonServer(workspace.repository, endpoints, store=workspace.item_store, **ports) as server,
        grpc.InferenceServerClient(server.grpc_url) as connected,
    ):
        yield connected


def served(client: grpc.InferenceServerClient, endpoint: str, rows: int, asks: str) -> dict[str, float]:
    asked = texts("red shoe") if asks == QUERY.name else texts(*TAKEN_BEFORE)
    ids = texts(*(product.item_id for product in files.products(rows)))
    return dict(zip(*send(client, endpoint, **{asks: asked, ITEM_IDS.name: ids}), strict=True))


def in_process(path: Path, output: str, rows: int, **inputs: np.ndarray) -> dict[str, float]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [scores] = session.run([output], inputs)
    scores = np.asarray(scores, np.float32).reshape(rows, -1)[:, -1]
    return {product.item_id: float(score) for product, score in zip(files.products(rows), scores, strict=True)}


@pytest.mark.parametrize("rows", [1, 40])
def test_an_onnx_file_with_a_history_serves_onnxruntimes_own_scores(
    client: grpc.InferenceServerClient, folder: Path, rows: int
) -> None:
    some = files.products(rows)
    inputs = {"category": files.category_ids(some), "numbers": files.numbers(some)}
    wanted = in_process(folder / "dynamo.onnx", "score", rows, **inputs, taken=files.taken(TAKEN_BEFORE, rows))
    assert served(client, "recommend_dynamo_fp32_onnx", rows, HISTORY.name) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 40])
def test_flat_int64_ids_serve_onnxruntimes_own_scores(
    client: grpc.InferenceServerClient, folder: Path, rows: int
) -> None:
    some = files.products(rows)
    inputs = {"category": files.category_ids(some)[:, 0], "numbers": files.numbers(some)}
    wanted = in_process(folder / "older.onnx", "logits", rows, **inputs)
    assert served(client, "rank_older_fp32_onnx", rows, QUERY.name) == pytest.approx(wanted, abs=1e-5)


def test_probabilities_of_doubles_serve_onnxruntimes_own_scores(
    client: grpc.InferenceServerClient, folder: Path
) -> None:
    numbers = files.numbers(files.products()).astype(np.float64)
    wanted = in_process(folder / "by_hand.onnx", "probabilities", 40, Float_Input=numbers)
    assert len(set(wanted.values())) > 20
    assert served(client, "rank_by_hand_fp32_onnx", 40, QUERY.name) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 40])
def test_a_program_serves_torchs_own_scores(client: grpc.InferenceServerClient, folder: Path, rows: int) -> None:
    some = files.products(rows)
    arrays = (files.category_ids(some), files.numbers(some), files.taken(TAKEN_BEFORE, rows))
    program = torch.export.load(folder / "program.pt2").module()
    with torch.inference_mode():
        scores = program(*map(torch.from_numpy, arrays)).numpy()[:, 0]
    wanted = {product.item_id: float(score) for product, score in zip(some, scores, strict=True)}
    assert served(client, "recommend_program_fp32_onnx", rows, HISTORY.name) == pytest.approx(wanted, abs=1e-5)


def test_the_graph_of_an_onnx_file_is_quantized_and_gated_as_any(client: grpc.InferenceServerClient) -> None:
    int8 = served(client, "recommend_dynamo_int8_onnx", 40, HISTORY.name)
    fp32 = served(client, "recommend_dynamo_fp32_onnx", 40, HISTORY.name)
    assert int8 != fp32
    assert int8 == pytest.approx(fp32, abs=0.2)
