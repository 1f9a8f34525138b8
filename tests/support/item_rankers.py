"""What each ranker that learns an embedding an item must do, checked on the generated shop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from builders.data.beir import Product, Request
from builders.data.purchase_log import request_of
from builders.evaluate.full_catalogue import catalogue_ndcg, popularity_scores, scorer_of
from builders.export.onnx import check_onnx, onnx_from_ranker
from builders.rankers.checkpoint import save_checkpoint
from builders.rankers.feature_ranker import FeatureRanker
from builders.training.recommenders import trained_network
from tests.support.purchase_lines import generated_log, small_recipe

CANDIDATES = (1, 40, 1024)


def untrained(network: type[torch.nn.Module], **settings: object) -> FeatureRanker:
    """Over the generated shop, with weights large enough that every part shows in the scores."""
    torch.manual_seed(0)
    made = network.for_log(generated_log(), settings)  # type: ignore[operator]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return FeatureRanker(network.__name__.lower(), made)


def request() -> Request:
    """Of a customer of the generated shop with a history."""
    log = generated_log()
    return request_of(log, next(user_id for user_id in log.positives if log.is_warm(user_id)))


def products(count: int) -> list[Product]:
    """Of the generated shop, and as many never seen before as are wanted besides."""
    known = list(generated_log().items.values())[:count]
    return known + [Product(f"new {number}", "", fields={"popularity": 0}) for number in range(count - len(known))]


def differences_of(ranker: FeatureRanker, folder: Path) -> dict[str, list[float]]:
    """Graph => largest difference between torch and the exported graph at each number of candidates."""
    samples = [ranker.sample(request(), products(count)) for count in CANDIDATES]
    found = {}
    for graph in ranker.graphs:
        given = [sample[graph.name] for sample in samples]
        if graph.batches:  # rows of several requests may be joined
            given = [{name: np.repeat(rows, count, axis=0) for name, rows in given[0].items()} for count in (2, 1, 8)]
        onnx_from_ranker(graph, given[1] if not graph.batches else given[0], folder / f"{graph.name}.onnx")
        reports = check_onnx(graph, folder / f"{graph.name}.onnx", given)
        found[graph.name] = [max(report.max_abs_difference.values()) for report in reports]
    return found


def without_history(ranker: FeatureRanker) -> np.ndarray:
    """Scores of an unknown user's request."""
    return ranker.score(Request(), products(40))


def reloaded_scores(ranker: FeatureRanker, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Before and after a checkpoint."""
    save_checkpoint(folder, ranker.module, ranker.module.config, ranker.encoder)  # type: ignore[arg-type]
    loaded = FeatureRanker.load(ranker.name, type(ranker.module), folder, None)
    return ranker.score(request(), products(40)), loaded.score(request(), products(40))


def trained_and_popularity(name: str, **training: object) -> tuple[float, float]:
    """Mean NDCG@10 over the warm customers of the generated shop, who keep to three categories of twelve."""
    log, recipe = generated_log(), small_recipe(name, **training)
    ranker = FeatureRanker(name, trained_network(recipe, log))
    warm = [user_id for user_id in log.positives if log.is_warm(user_id)]
    found, popular = (catalogue_ndcg(log, scorer, warm) for scorer in (scorer_of(ranker, recipe), popularity_scores))
    return float(np.mean(list(found.values()))), float(np.mean(list(popular.values())))
