"""What the small text rankers share: query and item through one encoder, their cosine as score (Siamese network).

A ranker adds how it reads a sequence: :meth:`TextMatcher.read`. A text's vector is a dense layer over the largest value
of each of its channels over the tokens, plus a dense layer over the weighted mean of the word embeddings, so that an
untrained network is a good bag of words. Padding never changes a score.
"""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from builders.core.contract import MAX_QUERY_TOKENS
from builders.features.encoder import Feature, FeatureEncoder, tokens
from builders.features.padding import padding_id_of
from builders.features.text import load_tokenizer_file
from builders.rankers.backbone import packaged_backbone
from builders.rankers.checkpoint import load_checkpoint, load_weights
from builders.rankers.layers.word_embeddings import FROZEN, WordEmbeddings, weighted_mean, word_table

TITLE_TOKENS, BRAND_TOKENS = 48, 8
INITIAL_SCALE = 20.0
"""Cosine => score; learned from there."""
_LOWEST = -1.0
"""Where a text has no token, its largest values are this."""


class TextMatcher(nn.Module, abc.ABC):
    """Cosine of a query's vector with an item's, times a learned scale."""

    features: tuple[Feature, ...] = (
        tokens("query_tokens", "query", MAX_QUERY_TOKENS),
        tokens("title_tokens", "item", TITLE_TOKENS, field="title"),
        tokens("brand_tokens", "item", BRAND_TOKENS, field="brand"),
    )
    score_meaning = "scaled cosine of query and item; higher is better; comparable within one response only"
    name: ClassVar[str]

    def __init__(self, table: Tensor, *, width: int, channels: int, vector: int, dropout: float) -> None:
        """Start as a weighted bag of words.

        Args:
            table: float32 [vocabulary, columns], see :class:`WordEmbeddings`.
            width: of the word embeddings.
            channels: of what :meth:`read` gives.
            vector: width of a text's vector, at least ``width``.
            dropout: of embeddings and of what the dense layer takes, while training.
        """
        super().__init__()
        self.tokenizer_file: Path | None = None
        self.words = WordEmbeddings(table, width)
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(channels, vector)
        self.direct = nn.Linear(width, vector, bias=False)
        self.scale = nn.Parameter(torch.tensor(INITIAL_SCALE))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)
        nn.init.eye_(self.direct.weight)

    @classmethod
    def untrained(cls, config: dict[str, Any], backbone: Path | None = None) -> Self:
        """With the word table and tokenizer of a Hugging Face checkpoint folder, None = the packaged one.

        Args:
            config: arguments of the constructor but the table.
        """
        network = cls(word_table(backbone), **config)
        network.tokenizer_file = (backbone or packaged_backbone()) / "tokenizer.json"
        network.words.padding_id = padding_id_of(network.tokenizer_file)
        return network

    @classmethod
    def from_checkpoint(cls, checkpoint: Path | None, backbone: Path | None = None) -> Self:
        """In eval mode, embeddings multiplied out. Raises: CheckpointError."""
        found = load_checkpoint(checkpoint, cls.name)
        network = cls.untrained(dict(found.config), backbone)
        network.features = found.features
        load_weights(network, found, checkpoint, skip=FROZEN)
        network.words.bake()
        return network.eval()

    def encoder(self) -> FeatureEncoder:
        """Makes its tensors from raw fields."""
        assert self.tokenizer_file is not None
        tokenizer = load_tokenizer_file(self.tokenizer_file)
        return FeatureEncoder(self.features, tokenizer, padding_id=self.words.padding_id)

    @abc.abstractmethod
    def read(self, embedded: Tensor, own: Tensor) -> Tensor:
        """Read sequences.

        Args:
            embedded: float32 [rows, length, width], zeros at padding.
            own: float32 [rows, length, 1], 1 = token, 0 = padding.

        Returns:
            float32 [rows, length, channels], at tokens above -1 and the same whatever padding follows.
        """

    def encode(self, *texts: Tensor) -> Tensor:
        """int32 [rows, length] of each text of an item, or of a query => float32 [rows, vector], L2-normalized."""
        words, weights, states = zip(*(self._read(ids) for ids in texts), strict=True)
        largest = torch.cat(states, dim=1).amax(dim=1)  # [rows, channels]
        mean = weighted_mean(torch.cat(words, dim=1), torch.cat(weights, dim=1))  # [rows, width]
        return functional.normalize(self.dense(self.dropout(largest)) + self.direct(mean), dim=-1)

    def _read(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = self.words.own_tokens(ids)
        embedded, weights = self.words(ids)
        embedded = self.dropout(embedded)
        states = self.read(embedded, own)
        return embedded, weights, states * own + _LOWEST * (1 - own)

    def encode_request(self, query_tokens: Tensor) -> Tensor:
        """int32 [rows, length] => float32 [rows, vector]."""
        return self.encode(query_tokens)

    def score_candidates(self, request_vector: Tensor, title_tokens: Tensor, brand_tokens: Tensor) -> Tensor:
        """float32 [1, vector] and int32 [candidates, length] twice => float32 [candidates, 1]."""
        return self.scale * (self.encode(title_tokens, brand_tokens) @ request_vector.T)
