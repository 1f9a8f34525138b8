"""Cross-encoders of transformers and sentence-transformers: ``*ForSequenceClassification``, and CrossEncoder folders.

Both the old form of a CrossEncoder (a classifier alone) and the modular one (Transformer, Pooling, Dense, LayerNorm,
Dense of ``modules.json``). The activation belongs to the network: scores are those of ``CrossEncoder.predict``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

from builders.core.contract import SCORE, Contract
from builders.core.recipe import Text
from builders.data.beir import Product, Request
from builders.features.text import TextForm, load_tokenizer_text
from builders.rankers.backbone import CheckpointError
from builders.rankers.base import Graph, Sample
from builders.rankers.imported import library
from builders.rankers.imported.base import ImportedRanker
from builders.rankers.token_pairs import PAIR_TEXT, TokenPairs

BATCH = 32
MOST_LABELS = 2


class Classifier(library.LibraryModules):
    """The library's modules and its activation."""

    def __init__(self, modules: Sequence[nn.Module], inputs: Sequence[str], activation: nn.Module) -> None:
        super().__init__(modules, inputs, "scores")
        self.activation = activation

    def forward(self, *tensors: Tensor) -> Tensor:
        """int32 [rows, length] each => float32 [rows, labels]."""
        scores: Tensor = self.activation(super().forward(*tensors))
        return scores


class ImportedCrossEncoder(ImportedRanker):
    """One graph; query and item in one sequence, a row a candidate."""

    reads_text = PAIR_TEXT
    preprocess_code = "pair_preprocess"

    def __init__(self, name: str, folder: Path, text: Text = Text(), *, trust_remote_code: bool = False) -> None:  # noqa: B008 - frozen
        """Load; see :class:`builders.rankers.imported.base.ImportedRanker`."""
        from sentence_transformers import CrossEncoder  # takes seconds

        self.name = name
        self._folder = folder
        self._library = library.loaded(CrossEncoder, folder, trust_remote_code)
        first = self._library[0]
        self._check(first, trust_remote_code)
        self._tokenizer_json = library.served_tokenizer(first.tokenizer)
        tokenizer = load_tokenizer_text(self._tokenizer_json)
        form = library.text_form(folder, self._library, text, library.prompt_of(self._library))
        self._pairs = TokenPairs(tokenizer, self._tokenizer_json, form, text.store)
        self._library.max_seq_length = self._pairs.form.max_length
        self._inputs = library.token_inputs(first.tokenizer, first.model)
        names = [tensor.name for tensor in self._inputs]
        self._network = Classifier(list(self._library), names, self._library.activation_fn).eval()

    def _check(self, first: Any, trust_remote_code: bool) -> None:
        """Raises: CheckpointError."""
        folder, network, tokenizer = self._folder, first.model, first.tokenizer
        if "message" in first.modality_config:
            raise CheckpointError(
                f"{folder}: its tokenizer has a chat template, so that the library makes a conversation of each pair; "
                'wanted format = "causal_reranker" for a causal language model'
            )
        if not isinstance(self._library.activation_fn, nn.Module):
            raise CheckpointError(f"{folder}: activation {self._library.activation_fn!r}, wanted a torch.nn.Module")
        if unknown := set(first.processing_kwargs.get("text", {})) - {"max_length"}:
            raise CheckpointError(
                f"{folder}: sentence_bert_config.json sets {', '.join(sorted(unknown))} for text, which is not served; "
                "wanted max_length at most"
            )
        if not 1 <= self.heads <= MOST_LABELS:
            raise CheckpointError(
                f"{folder}: a head of {self.heads} labels, wanted 1 (a score) or 2 (not relevant, relevant): nothing "
                "says how more labels order items"
            )
        classifies = first.transformer_task == "sequence-classification"
        task = AutoModelForSequenceClassification if classifies else AutoModel
        unused = () if classifies else ("pooler",)
        library.check_all_loaded(folder, task, unused=unused, trust_remote_code=trust_remote_code)
        library.check_vocabulary(folder, tokenizer, network)
        library.check_right_padding(folder, tokenizer, network)

    @property
    def facts(self) -> Sequence[str]:
        """Modules, activation, labels, and limits."""
        modules = " => ".join(type(module).__name__ for module in self._library)
        labels = "1 label" if self.heads == 1 else f"{self.heads} labels; the score is the second less the first"
        stored = str(next(self._network.parameters()).dtype).removeprefix("torch.")
        return (
            f"cross-encoder: {type(self._network.backbone).__name__}, modules {modules}, {labels}",
            f"activation: {type(self._network.activation).__name__}; computed in {stored}",
            f"tokens: {', '.join(self._network.inputs)}; at most {self.form.max_length} of query and item together, "
            f"the longer of the two cut first, on the {self.form.truncation_side}",
            f"prompt before the query: {self.form.query_prompt!r}",
        )

    @property
    def own_text(self) -> Mapping[str, Any]:
        """Prompt and length."""
        prompt = {"query_prompt": self.form.query_prompt} if self.form.query_prompt else {}
        return {**prompt, "max_length": self.form.max_length}

    @property
    def head_weights(self) -> tuple[float, ...]:
        """Of two labels: their difference, which orders items as the probability of the second does."""
        return (-1.0, 1.0) if self.heads == MOST_LABELS else ()

    @property
    def form(self) -> TextForm:
        """How it reads text."""
        return self._pairs.form

    @property
    def heads(self) -> int:
        """Labels, which are scores of a candidate."""
        return int(self._library.num_labels)

    @property
    def settings(self) -> Mapping[str, object]:
        """How it reads text, and with which tokenizer."""
        return {"text": self.form, "tokenizer": self._tokenizer_json}

    @property
    def network(self) -> Classifier:
        """The library's modules."""
        return self._network

    @property
    def graphs(self) -> list[Graph]:
        """One: rows of requests of equal padded length may be joined."""
        score = dataclasses.replace(SCORE, dims=("rows", self.heads))
        contract = Contract(
            self.name, self._inputs, (score,), score="as CrossEncoder.predict gives it; higher is better"
        )
        return [self._pairs.graph(self._network, contract)]

    @property
    def preprocess(self) -> Contract:
        """Token sequences of query and item."""
        return self._pairs.preprocess(self.name, self._inputs)

    @property
    def preprocess_files(self) -> Mapping[str, Path | str]:
        """The library's tokenizer, and what makes items' texts."""
        return self._pairs.files

    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """Tokens of each item's text, see :func:`builders.features.text.stored_tokens`."""
        return self._pairs.item_features(products)

    def sample(self, request: Request, products: Sequence[Product]) -> dict[str, Sample]:
        """Token sequences from the tokenizer's own template for pairs."""
        return {self.name: self._pairs.sample(request, products, self.graphs[0].contract)}

    def score(self, request: Request, products: Sequence[Product]) -> np.ndarray:
        """FP32 [candidates], or [candidates, labels], in batches as the library makes them."""
        arrays = list(self.sample(request, products)[self.name].values())
        with torch.inference_mode():
            parts = [
                self._network(*(torch.from_numpy(array[start : start + BATCH]) for array in arrays)).numpy()
                for start in range(0, len(products), BATCH)
            ]
        scores = np.concatenate(parts)
        return scores[:, 0] if self.heads == 1 else scores

    def library_scores(self, request: Request, products: Sequence[Product]) -> np.ndarray | None:
        """``CrossEncoder.predict`` of the pairs as texts; None where the recipe cuts queries, which it cannot."""
        if self.form.max_query_tokens is not None:
            return None
        pairs = [(request.query, text) for text in self.form.items(products)]
        return np.asarray(self._library.predict(pairs, prompt=self.form.query_prompt), dtype=np.float32)

    def tokens(self, sample: Mapping[str, Sample]) -> list[str]:
        """Of the first pair."""
        return self._pairs.tokens(sample[self.name])

    def truncated(self, request: Request, products: Sequence[Product]) -> int:
        """Of its pairs."""
        return self._pairs.truncated(request, products)
