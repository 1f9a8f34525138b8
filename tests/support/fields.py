"""Fields of every kind and side, and what each network of fields must do with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from builders.data.beir import Product, Request
from builders.export.onnx import check_onnx, onnx_from_ranker
from builders.features.encoder import dense, history, multi_hot, sparse, vector
from builders.rankers.checkpoint import save_checkpoint
from builders.rankers.feature_ranker import FeatureRanker

ITEMS = tuple(f"item {number}" for number in range(50))
FEATURES = (
    history("bought", 10, ITEMS, oov_buckets=3),
    sparse("user", ["user_id", "country"], "user", vocabularies=(("ann", "bob"), ("France",))),
    dense("user_numbers", ["orders"], "user", log1p=True),
    sparse("moment", ["weekday", "hour"], "context", vocabularies=(("0", "1"), ("9", "17"))),
    sparse("item", ["item_id", "brand"], vocabularies=(ITEMS, ("acme", "umbrella")), oov_buckets=4),
    multi_hot("words", "words", "item", 4, vocabularies=(("red", "lamp"),)),
    dense("item_numbers", ["price", "popularity"], log1p=True, mean=(3.0, 4.0), std=(1.0, 2.0)),
    vector("image", "image", 3),
)
REQUEST = Request(history=("item 3", "item 7", "never seen"), user_id="ann", context={"weekday": 1, "hour": 9})
CANDIDATES = (1, 40, 1024)


def products(count: int) -> list[Product]:
    """Distinct ones; those from the fiftieth on are not in the vocabulary."""
    generator = np.random.default_rng(count)
    return [
        Product(
            f"item {number}",
            "",
            brand=("acme", "umbrella", "unheard of", "")[number % 4],
            price=float(generator.uniform(1, 50)),
            fields={
                "popularity": number,
                "words": ["red", "lamp", "new"][: number % 4],
                "image": [0.1, number % 9 / 9, 1],
            },
        )
        for number in range(count)
    ]


def ranker_of(network: torch.nn.Module) -> FeatureRanker:
    """With weights large enough that every part shows in the scores."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return FeatureRanker("fields", network)


def differences_of(network: torch.nn.Module, folder: Path, counts: Sequence[int] = CANDIDATES) -> list[float]:
    """Largest difference between torch and the exported graph at each number of candidates."""
    ranker = ranker_of(network)
    [graph] = ranker.graphs
    samples = [ranker.sample(REQUEST, products(count))[graph.name] for count in counts]
    onnx_from_ranker(graph, samples[1], folder / "model.onnx")
    return [max(report.max_abs_difference.values()) for report in check_onnx(graph, folder / "model.onnx", samples)]


def one_row_and_repeated(network: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of 7 candidates with the request's single row, and with that row repeated for each of them."""
    rows = _inputs(ranker_of(network), REQUEST, products(7))
    with torch.inference_mode():
        return network(*rows), network(*(row.expand(7, -1) for row in rows))


def parameters_without_gradient(network: torch.nn.Module) -> list[str]:
    """Names of the parameters that no score of three requests depends on."""
    ranker = ranker_of(network)
    for request in (REQUEST, Request(), Request(history=ITEMS[:10], user_id="bob", context={"hour": "17"})):
        network(*_inputs(ranker, request, products(60))).square().sum().backward()
    return [name for name, parameter in network.named_parameters() if not parameter.grad.any()]


def _inputs(ranker: FeatureRanker, request: Request, items: Sequence[Product]) -> list[torch.Tensor]:
    tensors = ranker.tensors(request, items)
    return [torch.from_numpy(np.array(tensors[feature.name])) for feature in ranker.features]


def scores_of(network: torch.nn.Module, request: Request, items: Sequence[Product]) -> np.ndarray:
    """FP32 [candidates] or [candidates, heads]."""
    return ranker_of(network).score(request, items)


def reloaded(network: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """Saved and read again."""
    save_checkpoint(folder, network, network.config, ranker_of(network).encoder)  # type: ignore[arg-type]
    return type(network).from_checkpoint(folder)  # type: ignore[attr-defined, no-any-return]
