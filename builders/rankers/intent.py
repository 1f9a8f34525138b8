"""Query => top-level category, as a ranker over the categories (bag of words after fastText: Joulin et al., 2017,
arXiv:1607.01759).

Its items are the categories themselves, so ``rank`` called with category names as item ids answers with the most
likely first, and no endpoint of its own is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from builders.core.contract import MAX_QUERY_TOKENS
from builders.features.encoder import Feature, FeatureEncoder, sparse, tokens
from builders.features.padding import padding_id_of
from builders.features.text import load_tokenizer_file
from builders.rankers.backbone import packaged_backbone
from builders.rankers.checkpoint import load_checkpoint, load_weights
from builders.rankers.layers.word_embeddings import FROZEN, WordEmbeddings, weighted_mean, word_table

UNSEEN = 1
"""Rows that categories unknown to the network share."""


def intent_features(categories: Sequence[str]) -> tuple[Feature, ...]:
    """The query's tokens; which category an item is, by its id."""
    query = tokens("query_tokens", "query", MAX_QUERY_TOKENS)
    item = sparse("category_id", ["item_id"], vocabularies=(tuple(categories),), oov_buckets=UNSEEN)
    return query, item


class Intent(nn.Module):
    """Weighted mean of word embeddings, one hidden layer, softmax over the categories.

    A category that it was not trained with scores as the least likely of all.
    """

    score_meaning = "natural logarithm of the category's probability, at most 0; higher is better"
    name = "intent"

    def __init__(
        self, table: Tensor, categories: Sequence[str], *, width: int = 96, hidden: int = 256, dropout: float = 0.3
    ) -> None:
        """Build.

        Args:
            table: float32 [vocabulary, columns], see :class:`WordEmbeddings`.
            categories: in the order of the logits.
            width, hidden: of the word embeddings and of the hidden layer.
            dropout: of the mean and of the hidden layer, while training.
        """
        super().__init__()
        self.tokenizer_file: Path | None = None
        self.features = intent_features(categories)
        self.words = WordEmbeddings(table, width)
        self.hidden = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, len(categories))

    @classmethod
    def untrained(cls, config: dict[str, Any], features: Sequence[Feature], backbone: Path | None = None) -> Self:
        """With the word table and tokenizer of a Hugging Face checkpoint folder, None = the packaged one.

        Args:
            config: ``width``, ``hidden`` and ``dropout``.
            features: as :func:`intent_features` makes them.
        """
        [categories] = features[1].vocabularies
        network = cls(word_table(backbone), categories, **config)
        network.tokenizer_file = (backbone or packaged_backbone()) / "tokenizer.json"
        network.words.padding_id = padding_id_of(network.tokenizer_file)
        return network

    @classmethod
    def from_checkpoint(cls, checkpoint: Path | None, backbone: Path | None = None) -> Self:
        """In eval mode, embeddings multiplied out. Raises: CheckpointError."""
        found = load_checkpoint(checkpoint, cls.name)
        network = cls.untrained(dict(found.config), found.features, backbone)
        load_weights(network, found, checkpoint, skip=FROZEN)
        network.words.bake()
        return network.eval()

    @property
    def categories(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.features[1].vocabularies[0]

    def encoder(self) -> FeatureEncoder:
        """Makes its tensors from raw fields."""
        assert self.tokenizer_file is not None
        tokenizer = load_tokenizer_file(self.tokenizer_file)
        return FeatureEncoder(self.features, tokenizer, padding_id=self.words.padding_id)

    def encode_request(self, query_tokens: Tensor) -> Tensor:
        """int32 [rows, length] => float32 [rows, categories]: logits."""
        mean = self.dropout(weighted_mean(*self.words(query_tokens)))
        logits: Tensor = self.output(self.dropout(functional.relu(self.hidden(mean))))
        return logits

    def score_candidates(self, request_vector: Tensor, category_id: Tensor) -> Tensor:
        """float32 [1, categories] and int32 [candidates, 1] => float32 [candidates, 1]."""
        known = torch.log_softmax(request_vector, dim=1)[0]  # [categories]
        absent_or_unseen = known.min().expand(1 + UNSEEN)
        return torch.cat([absent_or_unseen, known])[category_id.long()]
