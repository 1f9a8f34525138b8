"""Networks of a bi-encoder, made of sentence-transformers' own modules and similarities."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util.similarity import SimilarityFunction
from torch import Tensor, nn

from builders.core.contract import PROMPT_LENGTH
from builders.rankers.imported import library


class PromptlessPooling(nn.Module):
    """The library's Pooling where it leaves the prompt out (``include_prompt=False``), with a prompt a row: query and
    items may be rows of one run."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """``prompt_length``: int32 [rows, 1]."""
        mask, states = features["attention_mask"], features["token_embeddings"]
        behind = torch.arange(mask.shape[1])[None] >= features[PROMPT_LENGTH.name]
        by_row = SimpleNamespace(
            pooling_mode=self.pooling.pooling_mode, _exclude_prompt_from_mask=lambda mask, _: mask * behind
        )
        vectors = Pooling._forward_padded(cast(Pooling, by_row), states, mask, features, prompt_length=1)
        return {**features, "sentence_embedding": torch.cat(vectors, dim=-1)}


class Encoder(library.LibraryModules):
    """The library's modules, and of their vectors the first ``dimensions``."""

    def __init__(self, modules: Sequence[nn.Module], inputs: Sequence[str], dimensions: int | None) -> None:
        super().__init__(modules, inputs, "sentence_embedding")
        self.dimensions = dimensions

    def forward(self, *tensors: Tensor) -> Tensor:
        """int32 [rows, length] each, and ``prompt_length`` where it is among the inputs => float32 [rows, width]."""
        return super().forward(*tensors)[:, : self.dimensions]


class GivenSimilarity(nn.Module):
    """The library's similarity of the query with items whose texts all came with the request."""

    def __init__(self, similarity: str) -> None:
        super().__init__()
        self.similarity = SimilarityFunction.to_similarity_pairwise_fn(similarity)

    def given(self, text_vectors: Tensor, source: Tensor) -> Tensor:
        """float32 [candidates, width]: the vector of each item's text; of the query where it has none."""
        return text_vectors.index_select(0, source.clamp(min=0).long())

    def forward(self, text_vectors: Tensor, source: Tensor) -> Tensor:
        """float32 [rows, width], the query's first, int32 [candidates] => float32 [candidates, 1]."""
        return self.similarity(text_vectors[:1], self.given(text_vectors, source)).unsqueeze(1)


class StoredSimilarity(GivenSimilarity):
    """The same, with stored vectors for the items whose text did not come."""

    def forward(self, text_vectors: Tensor, item_vectors: Tensor, source: Tensor) -> Tensor:  # type: ignore[override]
        """float32 [rows, width], float32 [candidates, width], int32 [candidates] => float32 [candidates, 1]."""
        items = torch.where((source >= 0).unsqueeze(1), self.given(text_vectors, source), item_vectors)
        return self.similarity(text_vectors[:1], items).unsqueeze(1)
