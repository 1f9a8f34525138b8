"""What each field, token and history item adds to the score of a module that declares its features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from builders.data.beir import Product, Request
from builders.evaluate.explain.explanation import (
    ExplainError,
    Explanation,
    ItemExplanation,
    check_products,
    explanation_of,
)
from builders.evaluate.explain.gradients import Attributions, Column, IntegrationPath
from builders.features.encoder import ABSENT, Feature, Fields, Source
from builders.features.text import token_text
from builders.rankers.feature_ranker import FeatureRanker

MIXED = "(several together)"
"""What embeddings contribute that no single field changes."""


def explain_features(
    ranker: FeatureRanker,
    request: Request,
    products: Sequence[Product],
    *,
    titles: Mapping[str, str] | None = None,
    head_weights: Sequence[float] = (),
) -> Explanation:
    """Fields, tokens and history items of a module that declares its features.

    Numbers are integrated over directly; ids through every ``nn.Embedding`` and ``nn.EmbeddingBag`` that they pass,
    each look-up in a table apart. What several fields share (an id made of two) is split equally among them. Ids that
    pass no embedding layer stay as they are and have no contribution; :attr:`Explanation.kept` names them.

    Args:
        titles: item id => title, to name the history's items; an item without one goes by its id.
        head_weights: of a network with several heads: the sum to explain; empty = the first head.

    Raises:
        ExplainError: no product; a module that reads nothing but ids, none through an embedding layer; the history
            holds no known item, so that items are ranked by popularity and not by the network.
    """
    check_products(products)
    if ranker.falls_back and not np.isnan(ranker.encoder.fallback_scores([None], request.history)).all():
        raise ExplainError(
            f"{ranker.name}: a history of {len(request.history)} items, none of them known to it, so that "
            f"'{ranker.encoder.fallback_field}' ranks; wanted at least one item that it was trained on"
        )
    labels = _Labels(ranker, request, titles or {})
    items, kept = zip(
        *(_explained_features(ranker, labels, product, head_weights) for product in products), strict=True
    )
    return dataclasses.replace(explanation_of(ranker, request, items), kept=tuple(sorted(set().union(*kept))))


def _explained_features(
    ranker: FeatureRanker, labels: _Labels, product: Product, head_weights: Sequence[float]
) -> tuple[ItemExplanation, set[str]]:
    """Its explanation, and the features that were kept."""
    arrays = ranker.tensors(labels.request, [product])
    inputs = tuple(torch.from_numpy(np.array(arrays[feature.name])) for feature in ranker.features)
    baselines = tuple(_absent(ranker, feature, tensor) for feature, tensor in zip(ranker.features, inputs, strict=True))
    layers = _embedding_layers(ranker.module)
    path = IntegrationPath(_feature_scorer(ranker, head_weights), layers, inputs, baselines)
    if not path.moves:
        raise ExplainError(
            f"{ranker.name}: {type(ranker.module).__name__} reads ids only and looks none up in an nn.Embedding or "
            "nn.EmbeddingBag; wanted one, as nothing can be integrated over ids themselves"
        )
    owners = _owners(ranker, path)
    parts = path.integrated()
    contributions, mixed = _by_column(parts, owners)
    named = labels.named(product, contributions) + ([(MIXED, mixed)] if mixed else [])
    item = ItemExplanation(product.item_id, product.title, parts.score, parts.baseline_score, tuple(named))
    return item, _kept(ranker, inputs, owners)


def _kept(ranker: FeatureRanker, inputs: Sequence[Tensor], owners: Sequence[Sequence[Sequence[Column]]]) -> set[str]:
    """Features with ids of which no look-up is made."""
    looked_up = {place for owned_by in owners for owning in owned_by for place, _ in owning}
    return {
        feature.name
        for place, feature in enumerate(ranker.features)
        if feature.dtype == "INT32" and inputs[place].any() and place not in looked_up
    }


def _absent(ranker: FeatureRanker, feature: Feature, tensor: Tensor) -> Tensor:
    """The input where nothing is told: no id, the mean, no vector, or padding alone."""
    return torch.full_like(tensor, ranker.encoder.padding_id if feature.kind == "tokens" else ABSENT)


def _by_column(parts: Attributions, owners: Sequence[Sequence[Sequence[Column]]]) -> tuple[dict[Column, float], float]:
    """Contribution of each column, and of the embeddings that none owns."""
    contributions = {
        (place, column): value
        for place, values in parts.of_inputs.items()
        for column, value in enumerate(values[0].tolist())
    }
    mixed = 0.0
    for values, owned_by in zip(parts.of_lookups, owners, strict=True):
        for value, owning in zip(values.flatten().tolist(), owned_by, strict=True):
            mixed += 0.0 if owning else value
            for column in owning:
                contributions[column] = contributions.get(column, 0.0) + value / len(owning)
    return contributions, mixed


def _feature_scorer(ranker: FeatureRanker, head_weights: Sequence[float]) -> Callable[..., Tensor]:
    """Inputs of one candidate, [1, ...] each => float32 [1]."""
    module: Any = ranker.module
    request = [place for place, feature in enumerate(ranker.features) if not feature.per_candidate]
    candidate = [place for place, feature in enumerate(ranker.features) if feature.per_candidate]

    def heads(*tensors: Tensor) -> Tensor:
        if not ranker.encodes_request:
            return module(*tensors)
        vector = module.encode_request(*(tensors[place] for place in request))
        return module.score_candidates(vector, *(tensors[place] for place in candidate))

    def score(*tensors: Tensor) -> Tensor:
        found = heads(*tensors)
        return found @ torch.tensor(list(head_weights)) if head_weights else found[:, 0]

    return score


def _embedding_layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, (nn.Embedding, nn.EmbeddingBag))]


def _owners(ranker: FeatureRanker, path: IntegrationPath) -> list[list[list[Column]]]:
    """For each look-up and each id in it, the columns (input, column) that it is made of.

    Found by making one id at a time absent and seeing which looked-up ids change, so that slices, offsets, joined
    tables and hashes in the module need not be understood.
    """
    wanted = path.lookups()
    owners: list[list[list[Column]]] = [[[] for _ in range(ids.numel())] for ids in wanted]
    for place, feature in enumerate(ranker.features):
        given = path.inputs[place][0] != path.baselines[place][0]
        told = np.flatnonzero(given.numpy()) if feature.dtype == "INT32" else ()
        for column in map(int, told):
            for of_lookup, ids, found in zip(owners, wanted, path.lookups(without=(place, column)), strict=True):
                for position in np.flatnonzero((ids != found).flatten().numpy()):
                    of_lookup[position].append((place, column))
    return owners


class _Labels:
    """What a column of a feature is called: its raw value."""

    def __init__(self, ranker: FeatureRanker, request: Request, titles: Mapping[str, str]) -> None:
        self.features = ranker.features
        self.encoder = ranker.encoder
        self.request = request
        self._titles = titles

    def named(self, product: Product, contributions: Mapping[Column, float]) -> list[tuple[str, float]]:
        """(label, contribution) in the order of the inputs; a vector's numbers together, absent values left out."""
        named: list[tuple[str, float]] = []
        for place, feature in enumerate(self.features):
            columns = {column: value for (of, column), value in sorted(contributions.items()) if of == place}
            if feature.kind == "vector":
                named.append((f"{feature.fields[0]} ({feature.size} numbers)", sum(columns.values())))
                continue
            fields = self._fields(feature.source, product)
            labels = self._of_columns(feature, fields)
            named += [(labels[column], value) for column, value in columns.items() if column in labels]
        return named

    def _fields(self, source: Source, product: Product) -> Fields:
        request = self.request
        return {
            "item": product.raw_fields,
            "user": request.user or {},
            "context": request.context,
            "history": {"item_id": list(request.history)},
            "query": {"query": request.query},
        }[source]

    def _of_columns(self, feature: Feature, fields: Fields) -> dict[int, str]:
        """Column => label, of values that are there."""
        if feature.kind in ("dense", "sparse"):
            values = [(field, _first(fields.get(field))) for field in feature.fields]
            return {
                column: f"{field}={value}" for column, (field, value) in enumerate(values) if value not in (None, "")
            }
        ids = self.encoder.encoded(feature, fields)
        if feature.kind == "tokens":
            tokenizer, told = self.encoder.tokenizer, np.flatnonzero(ids != self.encoder.padding_id).tolist()
            return {column: f"{feature.fields[0]}: {token_text(tokenizer, int(ids[column]))}" for column in told}
        bagged = feature.kept(fields.get(feature.fields[0]))
        first = feature.size - len(bagged) if feature.padding == "front" else 0
        return {
            column: self._of_bag(feature, bagged[column - first]) for column in np.flatnonzero(ids != ABSENT).tolist()
        }

    def _of_bag(self, feature: Feature, value: Any) -> str:
        if feature.source == "history":
            return f"history: {self._titles.get(str(value)) or value}"
        return f"{feature.fields[0]}={value}"


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, (list, tuple)) else value
