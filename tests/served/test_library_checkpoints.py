"""Checkpoints of the libraries, from their folder to the real server: scores are the library's own.

Two rankers of one class live side by side; each was published apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from sentence_transformers import CrossEncoder

from builders.core.workspace import Workspace
from builders.data.beir import JudgedQueries
from server import TritonServer
from tests.support.endpoint import rank
from tests.support.library_checkpoints import shop, write_classifier, write_cross_encoder, write_modular_cross_encoder
from tests.support.served_checkpoints import Write, published

TEMPLATE = "{title}. {brand}. {text}"
LONG_QUERY = "waterproof camping tent for kids, " * 30
CHECKPOINTS: dict[str, Write] = {
    "modernbert": lambda folder: write_classifier(folder, "modernbert"),
    "roberta": lambda folder: write_classifier(folder, "roberta", {"model_max_length": 37}, num_hidden_layers=1),
    "two_labels": lambda folder: write_classifier(folder, "bert", num_labels=2, num_hidden_layers=1),
    "modular": write_modular_cross_encoder,
    "prompted": lambda folder: write_cross_encoder(
        folder, prompts={"query": "Find goods: "}, default_prompt_name="query", max_length=40
    ),
}


@pytest.fixture(scope="module")
def judged() -> JudgedQueries:
    return shop()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def workspace(place: Path, judged: JudgedQueries) -> Workspace:
    return published(CHECKPOINTS, judged, TEMPLATE, place)


@pytest.fixture(scope="module")
def client(workspace: Workspace) -> Iterator[grpc.InferenceServerClient]:
    endpoints = [f"rank_{name}_fp32_onnx" for name in CHECKPOINTS]
    ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    with (
        TritonServer(workspace.repository, endpoints, store=workspace.item_store, **ports) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        yield client


@pytest.mark.server
@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize(("query", "count"), [("red running shoe", 1), ("!", 40), (LONG_QUERY, 40), ("mug", 1024)])
def test_served_scores_are_the_librarys_own(
    client: grpc.InferenceServerClient, place: Path, judged: JudgedQueries, name: str, query: str, count: int
) -> None:
    [folder] = (path.parent for path in (place / "checkpoints" / name).rglob("model.safetensors") if saved(path, name))
    products = list(judged.products.values())[:count]
    pairs = [(query, ". ".join(filter(None, (one.title, one.brand, one.text)))) for one in products]
    wanted = as_one_score(CrossEncoder(str(folder), device="cpu").predict(pairs))
    ids, scores = rank(client, f"rank_{name}_fp32_onnx", query, [one.item_id for one in products])
    served = dict(zip(ids, scores, strict=True))
    assert np.abs(np.array([served[one.item_id] for one in products]) - wanted).max() <= 1e-4
    assert scores == sorted(scores, reverse=True)


def saved(path: Path, name: str) -> bool:
    """The library's last word, where its folder was made of others."""
    return path.parent.name == "saved" if name in ("modular", "prompted") else True


def as_one_score(scores: Any) -> np.ndarray:
    """Of two labels the second less the first, as the recipe that ``init`` writes says."""
    return np.asarray(scores[:, 1] - scores[:, 0] if scores.ndim == 2 else scores)
