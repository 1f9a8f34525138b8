"""Why an item got its score: what each token, field or item of the history adds to it, offline.

Integrated gradients (Sundararajan et al., 2017, arXiv:1703.01365) by Captum, over the outputs of the embedding layers
together with the numbers that a network takes directly. The contributions of an item add up to its score minus that
of a baseline in which nothing is told: absent ids, numbers at their mean, filler tokens. The path keeps what a network
derives from the ids besides embeddings, such as masks: a history of three absent items, not an empty one.

Knows nothing of serving, and of no ranker by name: a :class:`builders.feature_ranker.FeatureRanker`, or a ranker whose
first graph reads token ids with a Hugging Face backbone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from captum.attr import IntegratedGradients
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from builders.beir import JudgedQueries, Product, Request
from builders.build import load_ranker
from builders.contract import ATTENTION_MASK, INPUT_IDS
from builders.datasets import DatasetError, find_data
from builders.evaluation import evaluation_data
from builders.feature_ranker import FeatureRanker
from builders.features import ABSENT, Feature, Fields, Source
from builders.files import write_atomically
from builders.ranker import Ranker
from builders.recipe import Recipe, RecipeError, load_recipe, load_recipes
from builders.text import load_tokenizer_file, padding_id, separator_id, special_ids

STEPS = (32, 64, 128, 256, 512)
"""Of the integral (Gauss-Legendre): the first number that adds up, else the one that comes nearest."""
TOLERANCE = 0.01
"""Of the contributions' absolute sum, that they may miss the score difference by."""
ROWS_AT_ONCE = 32
"""Points of the path that a text network scores in one batch."""
SHOWN_ITEMS = 5
SHOWN_CONTRIBUTIONS = 12
MIXED = "(several together)"
"""What embeddings contribute that no single field changes."""
QUERY_TOKEN, ITEM_TOKEN = "query", "item"
COLORS = ("#2f9e6e", "#d1495b")
"""Raises and lowers a score; readable on white."""
ROW_PIXELS, ITEM_PIXELS = 26, 90
TITLE_LENGTH = 80
Column = tuple[int, int]
"""(Place of an input, column of it.)"""
_MASK_TOKENS = ("[MASK]", "<mask>")
_WORD_STARTS = "▁Ġ"


class ExplainError(DatasetError):
    """A score cannot be explained; the message says what was found and what was wanted."""


@dataclasses.dataclass(frozen=True)
class ItemExplanation:
    """One candidate's score in parts.

    Attributes:
        score, baseline_score: the network's, of the request and of the baseline.
        contributions: (label, what it adds to the score), in the order of the network's inputs.
    """

    item_id: str
    title: str
    score: float
    baseline_score: float
    contributions: tuple[tuple[str, float], ...]

    @property
    def completeness_error(self) -> float:
        """The contributions' sum minus the score difference: what the integral missed (Captum's convergence delta)."""
        return sum(value for _, value in self.contributions) - (self.score - self.baseline_score)

    def strongest(self, count: int = SHOWN_CONTRIBUTIONS) -> list[tuple[str, float]]:
        """At most ``count``, the largest absolute value first; the rest of them as one more, so that all add up."""
        ordered = sorted(self.contributions, key=lambda part: -abs(part[1]))
        rest = ordered[count:]
        return ordered[:count] + ([(f"{len(rest)} others", sum(value for _, value in rest))] if rest else [])


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Candidates of one request, the best first.

    Attributes:
        asked: the request for a reader, such as "query 'coffee mug'".
        kept: features whose ids pass no embedding layer (they choose one of several scores, say), so that they stay as
            they are in the baseline too.
    """

    ranker: str
    asked: str
    items: tuple[ItemExplanation, ...]
    kept: tuple[str, ...] = ()

    @property
    def completeness_error(self) -> float:
        """The largest of any item, absolute."""
        return max(abs(item.completeness_error) for item in self.items)


# ---------------------------------------------------------------- rankers
def explain(
    ranker: Ranker,
    request: Request,
    products: Sequence[Product],
    *,
    titles: Mapping[str, str] | None = None,
    head_weights: Sequence[float] = (),
) -> Explanation:
    """:func:`explain_features` or :func:`explain_text`, by what the ranker is. Raises: ExplainError."""
    if isinstance(ranker, FeatureRanker):
        return explain_features(ranker, request, products, titles=titles, head_weights=head_weights)
    return explain_text(ranker, request, products)


def explain_text(ranker: Ranker, request: Request, products: Sequence[Product]) -> Explanation:
    """Tokens of query and item (a cross-encoder), or of the query against the items' vectors (two towers).

    The baseline keeps special tokens and fills the query with mask tokens, the item with padding tokens. Two fillers,
    as the same one on both sides would be a perfect match, and real tokens would seem to lower the score. Of the pairs
    tried on the cross-encoder, this one agrees best with leaving tokens out one at a time (mean rank correlation 0.42
    over 12 training queries; padding and mask 0.12, mask twice 0.25, padding twice 0.17).

    Args:
        ranker: its first graph takes ``input_ids``, and its network has a Hugging Face ``backbone``.

    Raises:
        ExplainError: it has another form, or there is no product.
    """
    _check_products(products)
    graphs = ranker.graphs
    backbone = getattr(graphs[0].module, "backbone", None)
    if graphs[0].contract.inputs[0].name != INPUT_IDS.name or backbone is None:
        raise ExplainError(
            f"{ranker.name}: neither a module that declares features nor one that reads {INPUT_IDS.name} with a "
            "'backbone'; wanted one of the two, so that its embeddings can be found"
        )
    tokenizer = load_tokenizer_file(Path(ranker.preprocess_files["tokenizer.json"]))
    items = [_explained_text(ranker, backbone, tokenizer, request, product) for product in products]
    return _explanation(ranker, request, items)


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
    _check_products(products)
    if ranker.falls_back and not np.isnan(ranker.encoder.fallback_scores([None], request.history)).all():
        raise ExplainError(
            f"{ranker.name}: a history of {len(request.history)} items, none of them known to it, so that "
            f"'{ranker.encoder.fallback_field}' ranks; wanted at least one item that it was trained on"
        )
    labels = _Labels(ranker, request, titles or {})
    items, kept = zip(
        *(_explained_features(ranker, labels, product, head_weights) for product in products), strict=True
    )
    return dataclasses.replace(_explanation(ranker, request, items), kept=tuple(sorted(set().union(*kept))))


def _check_products(products: Sequence[Product]) -> None:
    if not products:
        raise ExplainError("no items to explain, wanted at least one")


def _explanation(ranker: Ranker, request: Request, items: Sequence[ItemExplanation]) -> Explanation:
    return Explanation(ranker.name, _asked(request), tuple(sorted(items, key=lambda item: -item.score)))


def _asked(request: Request) -> str:
    told = {
        "query": f"'{request.query}'" if request.query else "",
        "history": f"of {len(request.history)} items" if request.history else "",
        "user": request.user_id,
        "context": ", ".join(f"{name}={value}" for name, value in request.context.items()),
    }
    return ", ".join(f"{name} {value}" for name, value in told.items() if value) or "nothing told"


# ---------------------------------------------------------------- text
def _explained_text(
    ranker: Ranker, backbone: Any, tokenizer: Tokenizer, request: Request, product: Product
) -> ItemExplanation:
    samples = ranker.sample(request, [product])
    first = {name: torch.from_numpy(array) for name, array in samples[ranker.graphs[0].name].items()}
    ids = first[INPUT_IDS.name]
    in_query = _query_positions(ids, tokenizer)
    own = _own_positions(ids, first[ATTENTION_MASK.name], tokenizer)
    fill = torch.where(in_query, _mask_id(tokenizer), padding_id(tokenizer)).to(ids.dtype)
    baseline = {**first, INPUT_IDS.name: torch.where(own, fill, ids)}
    path = _Path(
        _text_scorer(ranker, samples),
        [backbone.get_input_embeddings()],
        tuple(first.values()),
        tuple(baseline.values()),
        rows_at_once=ROWS_AT_ONCE,
    )
    parts = path.integrated()
    contributions = tuple(
        (_token_label(tokenizer, int(ids[0, place]), bool(in_query[0, place])), float(parts.of_lookups[0][0, place]))
        for place in np.flatnonzero(own[0].numpy())
    )
    return ItemExplanation(product.item_id, product.title, parts.score, parts.baseline_score, contributions)


def _text_scorer(ranker: Ranker, samples: Mapping[str, Mapping[str, np.ndarray]]) -> Callable[..., Tensor]:
    """The graphs in order as one function of the first one's inputs => float32 [rows]."""
    first, *others = ranker.graphs
    if not others:
        return lambda *tensors: first.module(*tensors)[:, 0]
    head = others[0]
    items = {name: torch.from_numpy(np.array(array)) for name, array in samples[head.name].items()}
    encoded = first.contract.outputs[0].name

    def score(*tensors: Tensor) -> Tensor:
        vectors = first.module(*tensors)
        rows = [head.module(*{**items, encoded: vector[None, :]}.values())[0] for vector in vectors]
        return torch.cat(rows)

    return score


def _query_positions(ids: Tensor, tokenizer: Tokenizer) -> Tensor:
    """bool [1, length]: up to the first separator."""
    seen = torch.cumsum((ids == separator_id(tokenizer)).int(), dim=1)
    return seen == 0


def _own_positions(ids: Tensor, attention_mask: Tensor, tokenizer: Tokenizer) -> Tensor:
    """bool [1, length]: tokens of the texts, neither special nor padding."""
    special = torch.isin(ids, torch.tensor(special_ids(tokenizer), dtype=ids.dtype))
    return (attention_mask > 0) & ~special


def _mask_id(tokenizer: Tokenizer) -> int:
    known = (tokenizer.token_to_id(token) for token in _MASK_TOKENS)
    return next((token for token in known if token is not None), padding_id(tokenizer))


def _token_label(tokenizer: Tokenizer, token: int, in_query: bool) -> str:
    return f"{QUERY_TOKEN if in_query else ITEM_TOKEN}: {_token_text(tokenizer, token)}"


def _token_text(tokenizer: Tokenizer, token: int) -> str:
    return (tokenizer.id_to_token(token) or str(token)).lstrip(_WORD_STARTS)


# ---------------------------------------------------------------- declared features
def _explained_features(
    ranker: FeatureRanker, labels: _Labels, product: Product, head_weights: Sequence[float]
) -> tuple[ItemExplanation, set[str]]:
    """Its explanation, and the features that were kept."""
    arrays = ranker.tensors(labels.request, [product])
    inputs = tuple(torch.from_numpy(np.array(arrays[feature.name])) for feature in ranker.features)
    baselines = tuple(torch.zeros_like(tensor) for tensor in inputs)  # ABSENT, the mean, or no vector
    layers = _embedding_layers(ranker.module)
    path = _Path(_feature_scorer(ranker, head_weights), layers, inputs, baselines)
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


def _by_column(parts: _Parts, owners: Sequence[Sequence[Sequence[Column]]]) -> tuple[dict[Column, float], float]:
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


def _owners(ranker: FeatureRanker, path: _Path) -> list[list[list[Column]]]:
    """For each look-up and each id in it, the columns (input, column) that it is made of.

    Found by making one id at a time absent and seeing which looked-up ids change, so that slices, offsets, joined
    tables and hashes in the module need not be understood.
    """
    wanted = path.lookups()
    owners: list[list[list[Column]]] = [[[] for _ in range(ids.numel())] for ids in wanted]
    for place, feature in enumerate(ranker.features):
        told = np.flatnonzero(path.inputs[place][0].numpy()) if feature.dtype == "INT32" else ()
        for column in map(int, told):
            for of_lookup, ids, found in zip(owners, wanted, path.lookups(without=(place, column)), strict=True):
                for position in np.flatnonzero((ids != found).flatten().numpy()):
                    of_lookup[position].append((place, column))
    return owners


class _Labels:
    """What a column of a feature is called: its raw value."""

    def __init__(self, ranker: FeatureRanker, request: Request, titles: Mapping[str, str]) -> None:
        self.features = ranker.features
        self.tokenizer = ranker.encoder.tokenizer
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
        ids = feature.encode(fields, self.tokenizer)
        told = np.flatnonzero(ids != ABSENT).tolist()
        if feature.kind == "tokens":
            return {column: f"{feature.fields[0]}: {_token_text(self.tokenizer, int(ids[column]))}" for column in told}
        bagged = _listed(fields.get(feature.fields[0]))[-feature.size :]
        first = feature.size - len(bagged)  # a bag is padded in front
        return {column: self._of_bag(feature, bagged[column - first]) for column in told}

    def _of_bag(self, feature: Feature, value: Any) -> str:
        if feature.source == "history":
            return f"history: {self._titles.get(str(value)) or value}"
        return f"{feature.fields[0]}={value}"


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, (list, tuple)) else value


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


# ---------------------------------------------------------------- integrated gradients
@dataclasses.dataclass(frozen=True)
class _Parts:
    """What :meth:`_Path.integrated` finds.

    Attributes:
        of_inputs: place of an input that is integrated over directly => float32 [1, ...].
        of_lookups: in the order in which the network looks ids up, float32 in the ids' shape.
    """

    score: float
    baseline_score: float
    of_inputs: Mapping[int, Tensor]
    of_lookups: Sequence[Tensor]


class _Path:
    """From a baseline's embeddings and numbers to the request's, in a straight line.

    Captum's LayerIntegratedGradients takes one output a layer, in rows like the inputs'. Here a table may be shared by
    several inputs and looked up in any shape, so each look-up counts, and one example is all look-ups of one candidate.

    Args:
        score: inputs => float32 [rows].
        layers: ``nn.Embedding`` and ``nn.EmbeddingBag`` to integrate over.
        inputs, baselines: of one candidate, [1, ...] each, the same shapes.
        rows_at_once: points of the path scored in one batch; more than 1 only where rows are independent of each other
            and every look-up has shape [1, ...].
    """

    def __init__(
        self,
        score: Callable[..., Tensor],
        layers: Sequence[nn.Module],
        inputs: tuple[Tensor, ...],
        baselines: tuple[Tensor, ...],
        rows_at_once: int = 1,
    ) -> None:
        self.score = score
        self.layers = layers
        self.inputs = inputs
        self.baselines = baselines
        self.rows_at_once = rows_at_once
        self._numbers = [place for place, tensor in enumerate(inputs) if tensor.is_floating_point()]

    def lookups(self, without: Column | None = None) -> list[Tensor]:
        """The ids of every look-up in order. without: (input, column) to make absent."""
        inputs = [tensor.clone() for tensor in self.inputs]
        if without is not None:
            inputs[without[0]][0, without[1]] = ABSENT
        return [ids for ids, _ in self._recorded(inputs)]

    @property
    def moves(self) -> bool:
        """Whether there is anything to integrate over."""
        return bool(self._numbers or self._recorded(self.inputs))

    def integrated(self) -> _Parts:
        """Contribution of everything that moves: look-ups in the place of ids, and numbers."""
        moving = self._numbers
        start = [self.baselines[place] for place in moving]
        end = [self.inputs[place] for place in moving]
        looked_up = [vectors[None] for _, vectors in self._recorded(self.inputs)]
        at_baseline = [vectors[None] for _, vectors in self._recorded(self.baselines)]
        ends, starts = (*end, *looked_up), (*start, *at_baseline)
        score, baseline_score = (self._score_at(moving, *point).item() for point in (ends, starts))
        found = self._integral(lambda *point: self._score_at(moving, *point), ends, starts, score - baseline_score)
        direct, embedded = found[: len(moving)], found[len(moving) :]
        return _Parts(
            score, baseline_score, dict(zip(moving, direct, strict=True)), [part[0].sum(dim=-1) for part in embedded]
        )

    def _integral(
        self, score: Callable[..., Tensor], ends: tuple[Tensor, ...], starts: tuple[Tensor, ...], difference: float
    ) -> list[Tensor]:
        nearest, least = [torch.zeros_like(end) for end in ends], float("inf")
        for steps in STEPS:
            found = IntegratedGradients(score).attribute(
                ends, starts, n_steps=steps, internal_batch_size=self.rows_at_once
            )
            found = [part.detach() for part in found]
            missed = abs(sum(part.sum().item() for part in found) - difference)
            if missed < least:
                nearest, least = found, missed
            if least <= TOLERANCE * self._size(nearest):
                break
        return nearest

    def _size(self, parts: Sequence[Tensor]) -> float:
        """Absolute sum of the contributions: each number's, and each looked-up vector's as a whole."""
        direct, embedded = parts[: len(self._numbers)], parts[len(self._numbers) :]
        return sum(part.abs().sum().item() for part in (*direct, *(part.sum(dim=-1) for part in embedded)))

    def _score_at(self, moving: Sequence[int], *point: Tensor) -> Tensor:
        """float32 [rows]: point holds the moving inputs, then every look-up's vectors, [rows, ...] each."""
        rows = point[0].shape[0]
        inputs = [tensor.expand(rows, *tensor.shape[1:]) for tensor in self.inputs]
        for place, tensor in zip(moving, point, strict=False):
            inputs[place] = tensor
        vectors = iter(point[len(moving) :])
        with _hooked(self.layers, lambda _layer, _args, _ids: next(vectors).flatten(0, 1)):
            scores = self.score(*inputs)
        untouched = sum(tensor.sum() for tensor in point) * 0.0  # Captum wants a gradient of every tensor
        return scores + untouched

    def _recorded(self, inputs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(ids, their vectors) of each look-up."""
        seen: list[tuple[Tensor, Tensor]] = []

        def record(layer: nn.Module, vectors: Tensor, ids: Tensor) -> Tensor:
            seen.append((ids.clone(), vectors))
            return vectors

        with torch.no_grad(), _hooked(self.layers, record):
            self.score(*inputs)
        return seen


@contextlib.contextmanager
def _hooked(layers: Sequence[nn.Module], vectors_of: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Iterator[None]:
    """While entered, what ``layers`` look up is ``vectors_of(layer, own vectors, ids)``, one vector an id."""

    def hook(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> Tensor:
        ids = args[0] if args else kwargs["input"]
        if isinstance(layer, nn.Embedding):
            return vectors_of(layer, output, ids)
        assert isinstance(layer, nn.EmbeddingBag)
        if len(args) > 1 or kwargs.keys() - {"input"}:
            raise ExplainError("an nn.EmbeddingBag is called with offsets or weights, wanted ids [rows, size] alone")
        return _bagged(layer, vectors_of(layer, functional.embedding(ids, layer.weight), ids), ids)

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bagged(layer: nn.EmbeddingBag, vectors: Tensor, ids: Tensor) -> Tensor:
    """float32 [rows, size, width] => [rows, width], as ``nn.EmbeddingBag`` does: padding counts for nothing."""
    own = torch.ones_like(ids) if layer.padding_idx is None else (ids != layer.padding_idx).to(ids.dtype)
    weights = own[..., None].to(vectors.dtype)
    if layer.mode == "max":
        lowest = torch.finfo(vectors.dtype).min
        bagged = torch.where(weights > 0, vectors, lowest).amax(dim=1)
        return torch.where(weights.amax(dim=1) > 0, bagged, 0.0)
    total = (vectors * weights).sum(dim=1)
    return total / weights.sum(dim=1).clamp(min=1) if layer.mode == "mean" else total


# ---------------------------------------------------------------- shown
def print_explanation(console: Console, explanation: Explanation, count: int = SHOWN_CONTRIBUTIONS) -> None:
    """One table: each item with its strongest contributions."""
    table = Table(title=Text(f"{explanation.ranker}: {explanation.asked}"), title_justify="left", expand=True)
    table.add_column("item", ratio=2)
    table.add_column("score = baseline + contributions", justify="right", no_wrap=True)
    table.add_column("strongest contributions", ratio=3)
    for item in explanation.items:
        sums = f"{item.score:.3f} = {item.baseline_score:.3f} {item.score - item.baseline_score:+.3f}"
        table.add_row(Text(f"{item.title}\n{item.item_id}"), sums, _contribution_text(item, count))
        table.add_section()
    console.print(table)
    console.print(f"contributions add up to within {explanation.completeness_error:.1e} of the score difference")
    if explanation.kept:
        console.print(f"kept as they are, since they pass no embedding layer: {', '.join(explanation.kept)}")


def _contribution_text(item: ItemExplanation, count: int) -> Text:
    parts = Text()
    for label, value in item.strongest(count):
        parts.append(f"{value:+.3f} ", "green" if value > 0 else "red").append(f"{label}   ")
    return parts


def explanation_figure(explanation: Explanation, count: int = SHOWN_CONTRIBUTIONS) -> go.Figure:
    """A bar chart an item, the best item first, on one scale."""
    shown = [item.strongest(count) for item in explanation.items]
    titles = [_chart_title(place, item) for place, item in enumerate(explanation.items, start=1)]
    height = sum(ITEM_PIXELS + ROW_PIXELS * len(parts) for parts in shown)
    figure = make_subplots(
        rows=len(shown),
        shared_xaxes="all",
        subplot_titles=titles,
        row_heights=[len(parts) for parts in shown],
        vertical_spacing=min(ITEM_PIXELS / height, 0.9 / max(len(shown) - 1, 1)),
    )
    for row, parts in enumerate(shown, start=1):
        figure.add_trace(_bars(parts), row=row, col=1)
    figure.update_yaxes(autorange="reversed", showticklabels=False, fixedrange=True)
    figure.update_xaxes(zeroline=True, zerolinecolor="#7d8796", showticklabels=True)
    figure.update_annotations(x=0, xanchor="left", font_size=14)
    title = f"{html.escape(explanation.ranker)}: {html.escape(explanation.asked)}"
    figure.update_layout(
        title=title, height=height + ITEM_PIXELS, showlegend=False, template="plotly_white", margin={"l": 40, "r": 40}
    )
    return figure


def write_explanation_html(path: Path, explanation: Explanation) -> None:
    """One page with plotly's script in it; it fetches nothing."""
    page = explanation_figure(explanation).to_html(include_plotlyjs=True, config={"displayModeBar": False})
    write_atomically(path, page)


def _chart_title(place: int, item: ItemExplanation) -> str:
    short = item.title if len(item.title) <= TITLE_LENGTH else f"{item.title[:TITLE_LENGTH]}…"
    sums = f"score {item.score:.3f} = baseline {item.baseline_score:.3f} {item.score - item.baseline_score:+.3f}"
    return f"<b>{place}. {html.escape(short or item.item_id)}</b>  {sums}"


def _bars(parts: Sequence[tuple[str, float]]) -> go.Bar:
    """Bars by position, as two contributions may have the same label."""
    values = [value for _, value in parts]
    labels = [html.escape(label) for label, _ in parts]
    return go.Bar(
        x=values,
        y=list(range(len(parts))),
        orientation="h",
        text=[f"{label}  {value:+.3f}" for label, value in zip(labels, values, strict=True)],
        textposition="outside",
        cliponaxis=False,
        marker_color=[COLORS[value < 0] for value in values],
        hovertemplate="%{text}<extra></extra>",
    )


# ---------------------------------------------------------------- the command
def run_explain(
    ranker: str | Path,
    console: Console,
    *,
    query: str = "",
    history: Sequence[str] = (),
    items: Sequence[str] = (),
    out: Path | None = None,
    data: Path | None = None,
) -> Explanation:
    """Explain, print, and write the page where ``out`` names one.

    Args:
        ranker: name of a recipe of the kit, or the path of one.
        query, history: of the request; a judged query brings its user and context along, and with neither of the two
            the first judged request is taken.
        items: ids of the corpus; none = the first judged candidates of the request.
        data: as :func:`builders.datasets.find_data` takes it.

    Raises:
        ExplainError: an item that the corpus does not hold, or no items for a query that is not judged.
        RecipeError: no such recipe.
    """
    recipe = _recipe(ranker)
    judged = evaluation_data(recipe.data, find_data(data).folder)
    request, candidates = _request(judged, query, history)
    products = _products(judged, items or candidates[:SHOWN_ITEMS])
    titles = {item_id: judged.products[item_id].title for item_id in request.history if item_id in judged.products}
    weights = recipe.postprocess.head_weights
    explanation = explain(load_ranker(recipe), request, products, titles=titles, head_weights=weights)
    print_explanation(console, explanation)
    if out is not None:
        write_explanation_html(out, explanation)
        console.print(f"plotted in {out}")
    return explanation


def _recipe(ranker: str | Path) -> Recipe:
    if Path(ranker).suffix == ".toml":
        return load_recipe(Path(ranker))
    recipes = load_recipes()
    if str(ranker) not in recipes:
        raise RecipeError(f"no recipe of a ranker '{ranker}'; wanted one of {', '.join(recipes)}, or a recipe's path")
    return recipes[str(ranker)]


def _request(judged: JudgedQueries, query: str, history: Sequence[str]) -> tuple[Request, list[str]]:
    """The request, and its judged candidates where it has some."""
    if history:
        return Request(query, tuple(history)), []
    query_id = next((found for found, text in judged.queries.items() if query in ("", text)), None)
    if query_id is None:
        return Request(query), []
    return judged.request(query_id), list(judged.judgements[query_id])


def _products(judged: JudgedQueries, items: Sequence[str]) -> list[Product]:
    if not items:
        raise ExplainError("no items, and the request is not a judged one; name items of the corpus with --items")
    unknown = [item_id for item_id in items if item_id not in judged.products]
    if unknown:
        raise ExplainError(f"items {', '.join(unknown)} are not in the corpus, wanted ids that corpus.jsonl holds")
    return [judged.products[item_id] for item_id in items]
