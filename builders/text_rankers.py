"""Text rankers: networks, tokenizer and item features together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from builders.backbone import packaged_backbone, weight_files
from builders.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    MAX_CANDIDATES,
    MAX_LENGTH,
    MAX_QUERY_TOKENS,
    MAX_ROWS_PER_RUN,
    SCORE,
    TOKEN_TYPE_IDS,
    Contract,
    item_vectors,
    length_buckets,
    padded_length,
    query_vector,
)
from builders.datasets import Product
from builders.files import fingerprint, sha256
from builders.preprocessing import preprocess_contract
from builders.ranker import Graph, Ranker, Sample
from builders.rankers.cross_encoder import CrossEncoder
from builders.rankers.two_tower import CosineHead, TwoTower
from builders.text import encode_pairs, encode_texts, item_text, load_tokenizer

_TEXT_FORM = "title and brand 1"
"""Changes when item_text() does: stored features of another form do not belong to the model."""


def _texts(products: Iterable[Product]) -> list[str]:
    return [item_text(product.title, product.brand) for product in products]


class CrossEncoderRanker(Ranker):
    """One graph; query and item in one sequence, a row a candidate."""

    name = "cross_encoder"

    def __init__(self, checkpoint: Path | None = None, backbone: Path | None = None) -> None:
        """Load; see :meth:`CrossEncoder.from_checkpoint` for the folders and the errors."""
        self._backbone = backbone or packaged_backbone()
        self._checkpoint = checkpoint
        self._network = CrossEncoder.from_checkpoint(checkpoint, self._backbone).eval()
        self._tokenizer = load_tokenizer(self._backbone)

    @property
    def graphs(self) -> list[Graph]:
        """``cross_encoder``: rows of requests of equal padded length may be joined."""
        inputs = (INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS) if self._network.takes_token_types else (INPUT_IDS, ATTENTION_MASK)
        contract = Contract(
            name=self.name,
            inputs=inputs,
            outputs=(SCORE,),
            score="relevance of the item to the query, comparable within one query only; higher is better",
        )
        return [Graph(self.name, self._network, contract, batches=True, max_batch_size=MAX_CANDIDATES, lengths=length_buckets())]

    @property
    def preprocess(self) -> Contract:
        """Token sequences of query and item."""
        version = fingerprint([_TEXT_FORM, sha256(self.tokenizer_file)])
        inputs = self.graphs[0].contract.inputs
        return preprocess_contract(self.name, inputs, self._tokenizer, pair=True, features_version=version)

    @property
    def tokenizer_file(self) -> Path:
        """The backbone's."""
        return self._backbone / "tokenizer.json"

    @property
    def checkpoint_files(self) -> list[Path]:
        """Backbone and, where trained, adapter and head."""
        return [*weight_files(self._backbone), *(weight_files(self._checkpoint) if self._checkpoint else [])]

    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """Token ids of title and brand without special tokens, little-endian INT32, at most MAX_LENGTH."""
        listed = list(products)
        encodings = self._tokenizer.encode_batch(_texts(listed), add_special_tokens=False)
        for product, encoding in zip(listed, encodings, strict=True):
            yield product.item_id, np.array(encoding.ids[:MAX_LENGTH], dtype="<i4").tobytes()

    def sample(self, query: str, products: Sequence[Product]) -> dict[str, Sample]:
        """Token sequences from the tokenizer's own template for pairs."""
        sequences = encode_pairs(self._tokenizer, query, _texts(products))
        return {self.name: {tensor.name: sequences[tensor.name] for tensor in self.graphs[0].contract.inputs}}

    def score(self, query: str, products: Sequence[Product]) -> np.ndarray:
        """FP32 [candidates]."""
        sample = self.sample(query, products)[self.name]
        with torch.inference_mode():
            return self._network(*(torch.from_numpy(array) for array in sample.values())).numpy()[:, 0]


class TwoTowerRanker(Ranker):
    """Two graphs; the query is encoded once a request and compared with the items' stored vectors."""

    name = "two_tower"

    def __init__(self, checkpoint: Path | None = None, backbone: Path | None = None) -> None:
        """Load; ``checkpoint`` is another name of the backbone, the two-tower has no trained part of its own."""
        self._backbone = checkpoint or backbone or packaged_backbone()
        self._encoder = TwoTower.from_checkpoint(self._backbone).eval()
        self._tokenizer = load_tokenizer(self._backbone)
        self._vector_of_text: dict[str, np.ndarray] = {}

    @property
    def graphs(self) -> list[Graph]:
        """``two_tower_query`` (a row a request) and ``two_tower`` (the cosine with every candidate)."""
        width = self._encoder.width
        encoder = Contract(
            name="two_tower_query", inputs=(INPUT_IDS, ATTENTION_MASK), outputs=(query_vector(width, "rows"),)
        )
        head = Contract(
            name=self.name,
            inputs=(query_vector(width), item_vectors(width)),
            outputs=(SCORE,),
            score="cosine of query and item, -1 to 1; higher is better",
        )
        return [
            Graph(
                encoder.name, self._encoder, encoder, batches=True, max_batch_size=MAX_ROWS_PER_RUN,
                lengths=length_buckets(padded_length(self._longest_query)),
            ),
            Graph(head.name, CosineHead(), head, batches=False, precise=True),
        ]

    @property
    def _longest_query(self) -> int:
        """Tokens of a truncated query with its special tokens."""
        return MAX_QUERY_TOKENS + self._tokenizer.num_special_tokens_to_add(is_pair=False)

    @property
    def preprocess(self) -> Contract:
        """The query's tokens and the items' vectors."""
        weights = [sha256(path) for path in self.checkpoint_files]
        return preprocess_contract(
            self.name,
            (INPUT_IDS, ATTENTION_MASK, item_vectors(self._encoder.width)),
            self._tokenizer,
            pair=False,
            features_version=fingerprint([_TEXT_FORM, sha256(self.tokenizer_file), *weights]),
            vector_width=self._encoder.width,
        )

    @property
    def tokenizer_file(self) -> Path:
        """The backbone's."""
        return self._backbone / "tokenizer.json"

    @property
    def checkpoint_files(self) -> list[Path]:
        """Backbone."""
        return weight_files(self._backbone)

    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """L2-normalised vectors, little-endian FP32."""
        listed = list(products)
        for product, vector in zip(listed, self._item_vectors(listed), strict=True):
            yield product.item_id, vector.astype("<f4").tobytes()

    def sample(self, query: str, products: Sequence[Product]) -> dict[str, Sample]:
        """The query's tokens; its vector with the items' vectors."""
        tokens = encode_texts(self._tokenizer, [query], max_length=self._longest_query)
        with torch.inference_mode():
            vector = self._encoder(*(torch.from_numpy(array) for array in tokens.values())).numpy()
        return {"two_tower_query": tokens, self.name: {"query_vector": vector, "item_vectors": self._item_vectors(products)}}

    def score(self, query: str, products: Sequence[Product]) -> np.ndarray:
        """FP32 [candidates]: cosines."""
        head = self.sample(query, products)[self.name]
        return (head["item_vectors"] @ head["query_vector"][0]).astype(np.float32)

    def _item_vectors(self, products: Sequence[Product]) -> np.ndarray:
        """FP32 [products, width]; each text is encoded once in this ranker's life."""
        texts = _texts(products)
        unseen = sorted({text for text in texts if text not in self._vector_of_text})
        self._vector_of_text.update(zip(unseen, self._encoder.encode_texts(self._tokenizer, unseen), strict=True))
        return np.stack([self._vector_of_text[text] for text in texts])
