"""A ``torch.nn.Module`` that declares its features => a :class:`builders.rankers.base.Ranker`, served.

The module, in the kit's ``builders/rankers/`` or in a file of yours:

``features``
    tuple of :class:`builders.features.encoder.Feature`, a class or instance attribute: ``forward``'s inputs, in order.
    Where an instance keeps something of its own under that name, as torch-rechub's models do, its class's counts.
``forward(*tensors)``
    => float32 [rows, 1], or [rows, heads]; higher is better. All inputs have the same number of rows: what the request
    has once is repeated for each candidate inside the graph, on the server.
``broadcasts = True``
    optional: ``forward`` takes per-request inputs with one row and broadcasts them itself, which is cheaper.
``encode_request(*per_request) => [rows, width]`` and ``score_candidates(request_vector, *per_candidate)``
    optional, in place of ``forward``: the first runs once a request, a step of its own that joins requests; the second
    takes [1, width] and the candidates' rows.
``from_checkpoint(folder)``
    optional class method; ``folder`` is the recipe's checkpoint or None. Without it the class is called bare.
``tokenizer_file``, ``fallback_field``, ``heads``, ``score_meaning``
    optional: path of a ``tokenizer.json`` for token features, relative to the module's file; the item field that ranks
    items for an unknown user; scores a candidate, weighed by the recipe's ``head_weights``; what a score means.

Knows nothing of any network.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from builders.core.contract import (
    CONTEXT,
    FALLBACK,
    HISTORY,
    ITEM_FIELDS,
    KNOWN,
    LENGTH_BUCKET,
    MAX_ROWS_PER_RUN,
    RANK,
    RECOMMEND,
    SCORE,
    USER_ID,
    Contract,
    ContractError,
    Tensor,
)
from builders.core.files import fingerprint, sha256
from builders.data.beir import DatasetError, Product, Request
from builders.features.checks import check_module, feature_faults_as
from builders.features.encoder import ABSENT, Feature, FeatureEncoder, Source
from builders.features.padding import padding_id_of
from builders.features.preprocessing import limits
from builders.features.text import load_tokenizer_file
from builders.rankers.backbone import packaged_backbone, weight_files
from builders.rankers.base import Graph, Ranker, Sample

FEATURES_FILE = "features.json"
REQUEST_VECTOR = "request_vector"
_OPTIONAL_INPUTS: dict[Source, Tensor] = {"user": USER_ID, "context": CONTEXT, "history": HISTORY}


class FeatureRanker(Ranker):
    """Any module that declares its features; see the module's docstring."""

    preprocess_code = "feature_preprocess"

    def __init__(self, name: str, module: nn.Module, weights: Sequence[Path] = ()) -> None:
        """Wrap.

        Args:
            name: of the ranker.
            module: see the docstring of this file.
            weights: files that it was loaded from.

        Raises:
            ContractError: the module declares no features, or none that its form can take.
        """
        self.name = name
        self.module = module.eval()
        self._weights = [*weights, Path(inspect.getfile(type(module)))]
        self.features = _declared(name, module)
        if not any(feature.per_candidate for feature in self.features):
            raise ContractError(
                f"{name}: {type(module).__name__}.features declares {len(self.features)} features, none of an item; "
                'wanted at least one with source "item", so that candidates can differ'
            )
        self.endpoint = RECOMMEND if self._reads("history") and not self._reads("query") else RANK
        self.encoder = self._make_encoder()
        vocabulary = self.encoder.tokenizer.get_vocab_size() if self.encoder.tokenizer else 0
        check_module(name, self.module, self.features, vocabulary, self.heads)

    @classmethod
    def load(cls, name: str, network: type[nn.Module], checkpoint: Path | None, backbone: Path | None) -> FeatureRanker:
        """From a class: by its ``from_checkpoint``, or bare. Raises: ContractError."""
        make = getattr(network, "from_checkpoint", None)
        if make is None and checkpoint is not None:
            raise ContractError(f"{name}: the recipe names a checkpoint, but {network.__name__} has no from_checkpoint")
        takes_backbone = make is not None and "backbone" in inspect.signature(make).parameters
        further = {"backbone": backbone} if takes_backbone else {}
        module = network() if make is None else make(checkpoint, **further)
        files = sorted(path for path in checkpoint.iterdir() if path.suffix != ".md") if checkpoint else []
        if takes_backbone:
            files += weight_files(backbone or packaged_backbone())
        return cls(name, module, files)

    @property
    def network(self) -> nn.Module:
        """The module itself."""
        return self.module

    def with_network(self, network: nn.Module) -> FeatureRanker:
        """Around another module that takes the same features."""
        other = copy.copy(self)
        other.__dict__.pop("graphs", None)  # of the old module
        other.module = network.eval()
        return other

    @functools.cached_property
    def graphs(self) -> list[Graph]:
        """One graph, or two where the request is encoded apart."""
        request = tuple(_tensor(feature) for feature in self.features if not feature.per_candidate)
        candidates = tuple(_tensor(feature) for feature in self.features if feature.per_candidate)
        if not self.encodes_request:
            inputs = tuple(_tensor(feature) for feature in self.features)
            module = Broadcasting(self.module, self.features).eval()
            return [Graph(self.name, module, self._scorer(inputs, module), batches=False)]
        encoder = EncodeRequest(self.module).eval()
        width = self._vector_width(encoder)
        vector = Tensor(REQUEST_VECTOR, "FP32", (1, width), "what the request's own features were encoded to")
        per_row = tuple(_with_rows(tensor, "rows") for tensor in request)
        encoded = Contract(f"{self.name}_request", per_row, (_with_rows(vector, "rows"),))
        head = ScoreCandidates(self.module).eval()
        return [
            Graph(
                encoded.name,
                encoder,
                encoded,
                batches=True,
                max_batch_size=MAX_ROWS_PER_RUN,
                lengths=self._request_lengths(),
            ),
            Graph(self.name, head, self._scorer((vector, *candidates), head), batches=False),
        ]

    @property
    def encodes_request(self) -> bool:
        """Whether the per-request part is a step of its own."""
        return hasattr(self.module, "encode_request")

    @property
    def preprocess(self) -> Contract:
        """The endpoint's inputs and those that its features make it read; the graphs' inputs."""
        base = [tensor for tensor in self.endpoint.inputs if not tensor.optional]
        further = [
            _optional(tensor)
            for source, tensor in _OPTIONAL_INPUTS.items()
            if self._reads(source) and tensor not in base
        ]
        outputs = [tensor for graph in self.graphs for tensor in graph.contract.inputs if tensor.name != REQUEST_VECTOR]
        return Contract(
            name=f"{self.name}_preprocess",
            inputs=(*base, *further, ITEM_FIELDS),
            outputs=(*outputs, KNOWN, *([FALLBACK] if self.falls_back else [])),
            parameters={
                **limits(
                    "max_candidates", "max_item_id_bytes", "max_query_bytes", "max_history_events", "max_context_bytes"
                ),
                "item_features": self.name,
                "item_features_version": self.features_version,
                "user_features": f"{self.name}_users" if self._reads("user") else "",
            },
        )

    @property
    def heads(self) -> int:
        """Scores of a candidate."""
        return int(getattr(self.module, "heads", 1))

    @property
    def falls_back(self) -> bool:
        """Whether a user without a known history gets the items by popularity."""
        return bool(self.encoder.fallback_field) and self._reads("history")

    @property
    def features_version(self) -> str:
        """Of the store's tables: they belong to these features and these weights."""
        tokenizer = [sha256(self._tokenizer_file)] if self._tokenizer_file else []
        weights = [sha256(path) for path in self._weights if path.suffix != ".py"]
        return fingerprint([self.encoder.to_json(), *tokenizer, *weights])

    @property
    def preprocess_files(self) -> dict[str, Path | str]:
        """The declarations, the code that reads them, and the tokenizer where there is text."""
        tokenizer = {"tokenizer.json": self._tokenizer_file} if self._tokenizer_file else {}
        code = Path(inspect.getfile(FeatureEncoder))
        return {FEATURES_FILE: self.encoder.to_json(), "features.py": code, **tokenizer}

    @property
    def checkpoint_files(self) -> list[Path]:
        """Weights, and the file of the module itself."""
        return self._weights

    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """A record an item. Raises: DatasetError naming ranker, item and field."""
        for product in products:
            yield product.item_id, self._record(product)

    def user_features(self, users: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, bytes]]:
        """A record a user; nothing where no feature reads one."""
        if self._reads("user"):
            for user_id, fields in users.items():
                with feature_faults_as(DatasetError, f"{self.name}: user '{user_id}'"):
                    record = self.encoder.user_record(fields)
                yield user_id, record

    def sample(self, request: Request, products: Sequence[Product]) -> dict[str, Sample]:
        """By the encoder that serving uses, from raw fields instead of the store."""
        tensors = self.tensors(request, products)
        samples: dict[str, Sample] = {}
        for graph in self.graphs:
            samples[graph.name] = {tensor.name: tensors[tensor.name] for tensor in graph.contract.inputs}
            if self.encodes_request and graph.name != self.name:
                with torch.inference_mode():
                    tensors[REQUEST_VECTOR] = _run(graph.module, samples[graph.name]).numpy()
        return samples

    def tensors(self, request: Request, products: Sequence[Product]) -> Sample:
        """Name => array of every declared feature."""
        records = [self._record(product) for product in products]
        with feature_faults_as(DatasetError, f"{self.name}: a request's user or context"):
            of_request = self.encoder.request_tensors(
                query=request.query,
                history=request.history,
                user=None if request.user is None else self.encoder.user_record(request.user),
                context=request.context,
            )
        return {**of_request, **self.encoder.candidate_tensors(records)}

    def score(self, request: Request, products: Sequence[Product]) -> np.ndarray:
        """FP32 [candidates], or [candidates, heads]."""
        sample = self.sample(request, products)[self.name]
        with torch.inference_mode():
            scores = _run(self.graphs[-1].module, sample).numpy()
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def fallback(self, request: Request, products: Sequence[Product]) -> np.ndarray | None:
        """FP32 [candidates]: popularity for a user without a known history, NaN for others; None without a fallback."""
        if not self.falls_back:
            return None
        return self.encoder.fallback_scores([self._record(product) for product in products], request.history)

    # ------------------------------------------------------------ its parts
    def _reads(self, source: Source) -> bool:
        return any(feature.source == source for feature in self.features)

    def _make_encoder(self) -> FeatureEncoder:
        file = getattr(self.module, "tokenizer_file", None)
        beside = Path(inspect.getfile(type(self.module))).parent
        self._tokenizer_file = beside / file if file else None  # an absolute path stays what it is
        fallback_field = getattr(self.module, "fallback_field", "")
        with feature_faults_as(ContractError, self.name):
            return FeatureEncoder(
                self.features,
                load_tokenizer_file(self._tokenizer_file) if self._tokenizer_file else None,
                fallback_field=fallback_field,
                length_bucket=LENGTH_BUCKET,
                padding_id=padding_id_of(self._tokenizer_file) if self._tokenizer_file else ABSENT,
            )

    def _record(self, product: Product) -> bytes:
        with feature_faults_as(DatasetError, f"{self.name}: item '{product.item_id}'"):
            return self.encoder.item_record(product.raw_fields)

    def _scorer(self, inputs: tuple[Tensor, ...], module: nn.Module) -> Contract:
        meaning = getattr(self.module, "score_meaning", "higher is better; comparable within one response only")
        score = Tensor(SCORE.name, "FP32", ("candidates", self.heads), SCORE.meaning, "per_candidate")
        return Contract(self.name, inputs, (score,), score=meaning)

    def _vector_width(self, encoder: nn.Module) -> int:
        sample = self.encoder.request_tensors()
        names = [feature.name for feature in self.features if not feature.per_candidate]
        with torch.inference_mode():
            return int(_run(encoder, {name: sample[name] for name in names}).shape[1])

    def _request_lengths(self) -> Sequence[int]:
        sizes = [feature.size for feature in self.features if feature.kind == "tokens" and not feature.per_candidate]
        step = self.encoder.length_bucket  # features are padded to multiples of it, whatever their length
        return range(step, -(-max(sizes) // step) * step + 1, step) if sizes else ()


def _declared(name: str, module: nn.Module) -> tuple[Feature, ...]:
    """``features`` of the instance or, where those are a library's own, of its class. Raises: ContractError."""
    found = [owner.features for owner in (module, type(module)) if hasattr(owner, "features")] or [()]
    for features in found:
        if isinstance(features, (tuple, list)) and all(isinstance(each, Feature) for each in features):
            return tuple(features)
    kinds = sorted({type(each).__name__ for each in _listed(found[0])})
    raise ContractError(
        f"{name}: {type(module).__name__}.features holds {', '.join(kinds)}, wanted features of builders.features; "
        "declare them in the class, or wrap the library's model in a module of your own that does"
    )


def _listed(features: object) -> Sequence[object]:
    return features if isinstance(features, (tuple, list)) else (features,)


class Broadcasting(nn.Module):
    """Gives ``forward`` as many rows of each input as there are candidates, unless it broadcasts by itself."""

    def __init__(self, network: nn.Module, features: Sequence[Feature]) -> None:
        super().__init__()
        self.network = network
        self.first_candidate = next(row for row, feature in enumerate(features) if feature.per_candidate)
        own = bool(getattr(network, "broadcasts", False))
        self.repeated = [not feature.per_candidate and not own for feature in features]

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """[1, ...] and [candidates, ...] in declared order => float32 [candidates, heads]."""
        candidates = tensors[self.first_candidate].shape[0]
        rows = [
            tensor.expand(candidates, *tensor.shape[1:]) if repeated else tensor
            for tensor, repeated in zip(tensors, self.repeated, strict=True)
        ]
        scores: torch.Tensor = self.network(*rows)
        return scores


class EncodeRequest(nn.Module):
    """A network's ``encode_request`` as a module of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """[rows, ...] each => float32 [rows, width]."""
        vector: torch.Tensor = self.network.encode_request(*tensors)  # type: ignore[operator]
        return vector


class ScoreCandidates(nn.Module):
    """A network's ``score_candidates`` as a module of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, request_vector: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """[1, width] and [candidates, ...] each => float32 [candidates, heads]."""
        scores: torch.Tensor = self.network.score_candidates(request_vector, *tensors)  # type: ignore[operator]
        return scores


def _run(module: nn.Module, sample: Sample) -> torch.Tensor:
    result: torch.Tensor = module(*(torch.from_numpy(np.array(array)) for array in sample.values()))
    return result


def _tensor(feature: Feature) -> Tensor:
    rows = "candidates" if feature.per_candidate else 1
    meaning = f"{feature.kind} of {', '.join(feature.fields)}, from {feature.source}"
    scope = "per_candidate" if feature.per_candidate else "per_request"
    width = f"{feature.name}_length" if feature.width == "length" else feature.width
    return Tensor(feature.name, feature.dtype, (rows, width), meaning, scope)  # type: ignore[arg-type]


def _with_rows(tensor: Tensor, rows: int | str) -> Tensor:
    return Tensor(tensor.name, tensor.dtype, (rows, *tensor.dims[1:]), tensor.meaning, tensor.scope)


def _optional(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.dtype, tensor.dims, tensor.meaning, tensor.scope, optional=True)
