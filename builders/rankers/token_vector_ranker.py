"""What rankers have in common whose items' token vectors lie in the store, and whose query has a graph of its own."""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from builders.core.contract import ATTENTION_MASK, INPUT_IDS, MAX_ROWS_PER_RUN, Contract, Tensor
from builders.core.keys import key_of
from builders.data.beir import Product, Request
from builders.features.batches import batched
from builders.features.preprocessing import TEXT_CODE, preprocess_contract
from builders.features.text import TextForm
from builders.features.token_vectors import QueryForm, item_tensors, packed_vectors, query_vectors, stored_vectors
from builders.rankers.base import Graph, Ranker, Sample

PRODUCTS_AT_ONCE = 1024
"""Of a catalogue, so that its texts and vectors are never all in memory."""


class TokenVectorRanker(Ranker):
    """Two graphs: ``<name>_query`` once a request, and ``<name>``, which meets its vectors with the items'.

    Attributes:
        _form: how items become texts, and queries.
        _query: a query's row of tokens.
        _vectors: how items' vectors are stored: "fp32", "fp16" or "int8".
        _width: of a vector.
        _stored_of_text: what was encoded in this ranker's life.
    """

    preprocess_code = "multi_vector_preprocess"
    _form: TextForm
    _query: QueryForm
    _vectors: str
    _width: int
    _tokenizer: Tokenizer
    _stored_of_text: dict[str, bytes]

    # ------------------------------------------------------------ what each has of its own
    @abc.abstractmethod
    def _encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        """FP32 [tokens, width] of each item's text."""

    @property
    @abc.abstractmethod
    def _encoded_by(self) -> Mapping[str, Any]:
        """What items' vectors depend on besides the checkpoint, and how they are stored."""

    @property
    @abc.abstractmethod
    def _tokenizer_file(self) -> Path | str:
        """Of ``tokenizer.json``, or its text."""

    # ------------------------------------------------------------ what the kit asks of a ranker
    @property
    def unrounded(self) -> Self | None:
        """With stored vectors in FP32, as they are computed; None where they are."""
        if self._vectors == "fp32":
            return None
        other = copy.copy(self)
        other._vectors, other._stored_of_text = "fp32", {}
        return other

    @property
    def preprocess(self) -> Contract:
        """The query's tokens and the items' vectors."""
        version = key_of({**self._encoded_by, "checkpoint": self.checkpoint_files, "vectors": self._vectors})
        return preprocess_contract(
            self.name,
            (INPUT_IDS, ATTENTION_MASK, *self._items),
            self._tokenizer,
            self._form,
            pair=False,
            features_version=version,
            takes_texts=False,
            query={**dataclasses.asdict(self._query), "lengths": list(self._query.lengths)},
            vectors=self._vectors,
            vector_width=self._width,
        )

    @property
    def preprocess_files(self) -> Mapping[str, Path | str]:
        """The tokenizer, and what makes items' texts."""
        return {"tokenizer.json": self._tokenizer_file, TEXT_CODE.name: TEXT_CODE}

    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """Token vectors, see :func:`builders.features.token_vectors.stored_vectors`."""
        for some in batched(products, PRODUCTS_AT_ONCE):
            texts = self._form.items(some)
            made = self._made(texts)
            for product, text in zip(some, texts, strict=True):
                yield product.item_id, made.get(text) or self._stored_of_text[text]

    def score(self, request: Request, products: Sequence[Product]) -> np.ndarray:
        """FP32 [candidates], of the vectors as they are stored."""
        scorer = self.graphs[-1]
        arrays = self.sample(request, products)[scorer.name]
        with torch.inference_mode():
            scores = scorer.module(*(torch.from_numpy(arrays[tensor.name]) for tensor in scorer.contract.inputs))
        return np.asarray(scores[:, 0].numpy())

    # ------------------------------------------------------------ query and items
    @property
    def _items(self) -> tuple[Tensor, ...]:
        """What the scorer takes of them."""
        return item_tensors(self._width, self._vectors)

    def _query_graph(self, module: nn.Module) -> Graph:
        """A row a request."""
        encoder = Contract(f"{self.name}_query", (INPUT_IDS, ATTENTION_MASK), (query_vectors(self._width, "rows"),))
        return Graph(
            encoder.name, module, encoder, batches=True, max_batch_size=MAX_ROWS_PER_RUN, lengths=self._query.lengths
        )

    def _packed(self, products: Sequence[Product]) -> Sample:
        """All that a scorer may take of the items, see :func:`builders.features.token_vectors.packed_vectors`."""
        return packed_vectors(self._stored(products), self._vectors, self._width)

    def _stored(self, products: Sequence[Product]) -> list[bytes]:
        """Of each product; each text is encoded once in this ranker's life."""
        texts = self._form.items(products)
        self._stored_of_text |= self._made(texts)
        return [self._stored_of_text[text] for text in texts]

    def _made(self, texts: Sequence[str]) -> dict[str, bytes]:
        """Of each text that was not encoded yet."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._stored_of_text]
        return {
            text: stored_vectors(vectors, self._vectors)
            for text, vectors in zip(missing, self._encoded(missing), strict=True)
        }
