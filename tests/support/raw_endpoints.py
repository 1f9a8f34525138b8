"""Two small endpoints of the kit's own steps over random networks: ``recommend`` reads every kind of raw field,
``rank`` texts and a template's fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from builders.core.recipe import Serving
from builders.data.beir import Product, Request
from builders.export.onnx import onnx_from_ranker
from builders.features.encoder import dense, history, multi_hot, sparse, tokens, vector
from builders.publish import model_config
from builders.publish.endpoints import served_files
from builders.publish.item_store import ItemStore
from builders.publish.postprocessing import (
    ATTRIBUTES_TABLE,
    ATTRIBUTES_VERSION,
    attribute_records,
    postprocess_contract,
)
from builders.publish.repository import Ensemble, ServedModel, publish_models
from builders.rankers.base import Ranker
from builders.rankers.feature_ranker import FeatureRanker
from tests.support.small_rankers import cross_encoder, some_products
from tests.support.tiny_bert import write_tiny_bert

ANY_PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
IDS = 12
"""Of items that the store knows: i0 to i11."""


class Raw(nn.Module):
    """A feature of every kind that a request can bring."""

    features = (
        history("taken", 4, vocabulary=[], oov_buckets=20),
        dense("hour", ["hour"], "context"),
        dense("numbers", ["price", "rating"], log1p=True),
        sparse("made_by", ["brand"], oov_buckets=7),
        multi_hot("path", "category", "item", 3, oov_buckets=9),
        tokens("title", "item", 8, field="title"),
        vector("picture", "image", 2),
    )
    fallback_field = "popularity"

    def __init__(self, tokenizer_file: Path) -> None:
        super().__init__()
        self.tokenizer_file = str(tokenizer_file)
        self.ids = nn.Embedding(1000, 4)
        self.mix = nn.Linear(4 * 4 + 5, 1)

    def forward(
        self,
        taken: Tensor,
        hour: Tensor,
        numbers: Tensor,
        made_by: Tensor,
        path: Tensor,
        title: Tensor,
        picture: Tensor,
    ) -> Tensor:
        """=> float32 [candidates, 1]."""
        parts = [self.ids(ids).mean(dim=1) for ids in (taken, made_by, path, title)]
        scores: Tensor = self.mix(torch.cat([*parts, hour, numbers, picture], dim=1))
        return scores


def write_raw_endpoints(folder: Path) -> None:
    """``folder/models`` and ``folder/store``."""
    torch.manual_seed(3)
    products = some_products(IDS)
    raw = FeatureRanker("raw", Raw(write_tiny_bert(folder / "bert") / "tokenizer.json"))
    served = {
        "recommend": (raw, Request(history=("i1",))),
        "rank": (cross_encoder(folder / "text"), Request("red shoe")),
    }
    with ItemStore(folder / "store") as store:
        for ranker, _ in served.values():
            parameters = ranker.preprocess.parameters
            table = parameters["item_features"], parameters["item_features_version"]
            store.put(*table, ranker.item_features(products))
        store.put(ATTRIBUTES_TABLE, ATTRIBUTES_VERSION, attribute_records(products))
    models: dict[str, ServedModel] = {}
    ensembles = []
    for name, (ranker, request) in served.items():
        steps = _steps(ranker, request, products, folder)
        models.update({step.name: step for step in steps})
        agreed = model_config.endpoint_contract(name, ranker.endpoint, [step.contract for step in steps])
        ensembles.append(Ensemble(name, [step.name for step in steps], agreed))
    publish_models(folder / "models", list(models.values()), ensembles, {})


def _steps(ranker: Ranker, request: Request, products: Sequence[Product], folder: Path) -> list[ServedModel]:
    samples = ranker.sample(request, products)
    falls_back = isinstance(ranker, FeatureRanker)
    postprocess = postprocess_contract(f"{ranker.name}_postprocess", falls_back=falls_back)
    return [
        _python_model(ranker.preprocess_code or f"{ranker.name}_preprocess", ranker),
        *(_scorer(ranker, graph.name, samples[graph.name], folder) for graph in ranker.graphs),
        ServedModel(model_config.python_config(postprocess), postprocess, served_files("postprocess")),
    ]


def _python_model(code: str, ranker: Ranker) -> ServedModel:
    files = {**served_files(code), **ranker.preprocess_files}
    return ServedModel(model_config.python_config(ranker.preprocess), ranker.preprocess, files)


def _scorer(ranker: Ranker, name: str, sample: dict, folder: Path) -> ServedModel:  # type: ignore[type-arg]
    [graph] = [graph for graph in ranker.graphs if graph.name == name]
    onnx_from_ranker(graph, sample, folder / f"{name}.onnx")
    model = f"{name}_fp32_onnx"
    config = model_config.runtime_config(graph, model, Serving(instances=1, threads=1))
    contract = dataclasses.replace(graph.contract, name=model)
    return ServedModel(config, contract, {"model.onnx": folder / f"{name}.onnx"})
