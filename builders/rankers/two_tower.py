"""A two-tower ranker: query and item encoded apart, cosine as score (Sentence-BERT, arXiv:1908.10084)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from builders.core.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    MAX_ROWS_PER_RUN,
    SCORE,
    Contract,
    item_vectors,
    length_buckets,
    query_vector,
)
from builders.core.keys import key_of
from builders.core.recipe import Recipe
from builders.data.beir import Product, Request
from builders.features.batches import batched
from builders.features.preprocessing import TEXT_CODE, preprocess_contract, tokens_version
from builders.features.text import (
    FORM_TEXT,
    KIT_FORM,
    TextForm,
    cut_texts,
    encode_texts,
    form_of_queries,
    load_tokenizer,
    padded,
    truncated_apart,
)
from builders.rankers.backbone import MASKED, check_positions, load_backbone, packaged_backbone, weight_files
from builders.rankers.base import Graph, Ranker, Sample, folders_of
from builders.rankers.quick_encoder import Batch, QuickEncoder, quick_encoder

BATCH = 32
"""Texts encoded at once: enough for the processor's kernels, few enough to be of one length."""
QUICK_FROM = 1000
"""Texts that OpenVINO encodes, as many as it is slower to begin than torch."""


class TwoTower(nn.Module):
    """The encoder of both towers: mean of the token states, L2-normalized."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.width = width

    @classmethod
    def from_checkpoint(cls, folder: Path | None = None) -> TwoTower:
        """In eval mode. folder: a Hugging Face checkpoint, None = the packaged one. Raises: CheckpointError."""
        network = load_backbone(folder or packaged_backbone())
        return cls(network, network.config.hidden_size).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int32 [rows, length] twice => float32 [rows, width]."""
        own = attention_mask.float()
        additive = (1.0 - own[:, None, None, :]) * MASKED
        states = self.backbone(input_ids=input_ids, attention_mask=additive).last_hidden_state.float()
        mean = (states * own.unsqueeze(-1)).sum(dim=1) / own.sum(dim=1, keepdim=True).clamp(min=1)
        return functional.normalize(mean, dim=-1)

    def encode_texts(
        self, tokenizer: Tokenizer, texts: Sequence[str], batch: int = BATCH, form: TextForm = KIT_FORM
    ) -> np.ndarray:
        """float32 [texts, width], in their order; encoded shortest first by tokens, so that little is padding."""
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        for chosen, tokens in sorted_batches(tokenizer, texts, batch, form):
            vectors[chosen] = self.encode_tokens(tokens)
        return vectors

    def encode_tokens(self, tokens: Sample) -> np.ndarray:
        """float32 [rows, width] of the inputs by name."""
        with torch.inference_mode():
            return np.asarray(self(*_inputs(tokens)).numpy())


def sorted_batches(tokenizer: Tokenizer, texts: Sequence[str], batch: int, form: TextForm) -> Iterator[Batch]:
    """The texts, shortest first by tokens, ``batch`` at a time."""
    rows = cut_texts(tokenizer, texts, form)
    order = sorted(range(len(rows)), key=lambda position: len(rows[position].ids))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        yield chosen, padded(tokenizer, [rows[position] for position in chosen], form)


def _inputs(tokens: Sample) -> list[Tensor]:
    return [torch.from_numpy(tokens[tensor.name]) for tensor in (INPUT_IDS, ATTENTION_MASK)]


class CosineHead(nn.Module):
    """Cosine of one query vector with each candidate's, both L2-normalized."""

    def forward(self, query_vector: Tensor, item_vectors: Tensor) -> Tensor:
        """float32 [1, width], [candidates, width] => float32 [candidates, 1]."""
        return item_vectors @ query_vector.T


class TwoTowerRanker(Ranker):
    """Two graphs; the query is encoded once a request and compared with the items' stored vectors."""

    name = "two_tower"
    reads_text = FORM_TEXT
    preprocess_code = "vector_preprocess"

    def __init__(self, checkpoint: Path | None = None, backbone: Path | None = None, form: TextForm = KIT_FORM) -> None:
        """Load; ``checkpoint`` is another name of the backbone, the two-tower has no trained part of its own.

        Args:
            form: how query and items become tokens.
        """
        self._backbone = checkpoint or backbone or packaged_backbone()
        self._encoder = TwoTower.from_checkpoint(self._backbone).eval()
        self._query_encoder = self._encoder
        self._tokenizer = load_tokenizer(self._backbone)
        self._form = form
        self._vector_of_text: dict[str, np.ndarray] = {}
        self._quick: QuickEncoder | Literal["torch"] | None = None
        check_positions(form.max_length, self._encoder.backbone, self._backbone)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> TwoTowerRanker:
        """With the recipe's [text]."""
        ranker = cls(**folders_of(recipe), form=KIT_FORM.with_recipe(recipe.text))
        ranker.name = recipe.ranker
        return ranker

    @property
    def settings(self) -> Mapping[str, object]:
        """How it reads text."""
        return {"text": self._form}

    @property
    def network(self) -> TwoTower:
        """The query's encoder: what runs at each request. Items' vectors are stored, by the encoder as it was."""
        return self._query_encoder

    def with_network(self, network: nn.Module) -> TwoTowerRanker:
        """With another query encoder, whose vectors are to be compared with the same items' vectors."""
        other = copy.copy(self)
        other._query_encoder = network.eval()  # type: ignore[assignment]
        return other

    @property
    def graphs(self) -> list[Graph]:
        """``<name>_query`` (a row a request) and ``<name>`` (the cosine with every candidate)."""
        width = self._encoder.width
        encoder = Contract(
            name=f"{self.name}_query", inputs=(INPUT_IDS, ATTENTION_MASK), outputs=(query_vector(width, "rows"),)
        )
        head = Contract(
            name=self.name,
            inputs=(query_vector(width), item_vectors(width)),
            outputs=(SCORE,),
            score="cosine of query and item, -1 to 1; higher is better",
        )
        return [
            Graph(
                encoder.name,
                self._query_encoder,
                encoder,
                batches=True,
                max_batch_size=MAX_ROWS_PER_RUN,
                lengths=length_buckets(self._query_form.max_length),
            ),
            Graph(head.name, CosineHead(), head, batches=False, keep_fp32=True),
        ]

    @property
    def _query_form(self) -> TextForm:
        return form_of_queries(self._tokenizer, self._form)

    @property
    def preprocess(self) -> Contract:
        """The query's tokens and the items' vectors."""
        version = key_of(
            {
                "tokens": tokens_version(self._form, self._backbone / "tokenizer.json"),
                "checkpoint": self.checkpoint_files,
            }
        )
        return preprocess_contract(
            self.name,
            (INPUT_IDS, ATTENTION_MASK, item_vectors(self._encoder.width)),
            self._tokenizer,
            self._form,
            pair=False,
            features_version=version,
            takes_texts=False,
            vector_width=self._encoder.width,
        )

    @property
    def preprocess_files(self) -> dict[str, Path | str]:
        """The backbone's tokenizer, and what makes items' texts."""
        return {"tokenizer.json": self._backbone / "tokenizer.json", TEXT_CODE.name: TEXT_CODE}

    @property
    def checkpoint_files(self) -> list[Path]:
        """Backbone."""
        return weight_files(self._backbone)

    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """L2-normalized vectors, little-endian FP32."""
        for batch in batched(products):
            for product, vector in zip(batch, self._item_vectors(batch, remember=False), strict=True):
                yield product.item_id, vector.astype("<f4").tobytes()

    def sample(self, request: Request, products: Sequence[Product]) -> dict[str, Sample]:
        """The query's tokens; its vector with the items' vectors."""
        tokens = encode_texts(self._tokenizer, [self._form.query(request.query)], self._query_form)
        with torch.inference_mode():
            vector = self._query_encoder(*_inputs(tokens)).numpy()
        encoder, head = self.graphs
        return {
            encoder.name: {tensor.name: tokens[tensor.name] for tensor in encoder.contract.inputs},
            head.name: {"query_vector": vector, "item_vectors": self._item_vectors(products)},
        }

    def score(self, request: Request, products: Sequence[Product]) -> np.ndarray:
        """FP32 [candidates]: cosines."""
        head = self.sample(request, products)[self.name]
        return (head["item_vectors"] @ head["query_vector"][0]).astype(np.float32)

    def truncated(self, request: Request, products: Sequence[Product]) -> int:
        """Of its texts."""
        query = self._form.query(request.query)
        return truncated_apart(self._tokenizer, query, self._form.items(products), self._form)

    def _encoded(self, texts: Sequence[str]) -> np.ndarray:
        """FP32 [texts, width]; of many by OpenVINO, which takes seconds to begin."""
        if len(texts) < QUICK_FROM:
            return self._encoder.encode_texts(self._tokenizer, texts, form=self._form)
        if self._quick is None:
            sample = next(sorted_batches(self._tokenizer, texts[:8], 8, self._form))
            names = [tensor.name for tensor in (INPUT_IDS, ATTENTION_MASK)]
            self._quick = quick_encoder(self._encoder, names, sample, self._encoder.encode_tokens) or "torch"
        if self._quick == "torch":
            return self._encoder.encode_texts(self._tokenizer, texts, form=self._form)
        vectors = np.zeros((len(texts), self._encoder.width), dtype=np.float32)
        self._quick.encode(sorted_batches(self._tokenizer, texts, BATCH, self._form), vectors)
        return vectors

    def _item_vectors(self, products: Sequence[Product], *, remember: bool = True) -> np.ndarray:
        """FP32 [products, width]; a text that was encoded before is not encoded again.

        remember: for later calls, which a whole catalogue has no room for.
        """
        texts = self._form.items(products)
        unseen = sorted({text for text in texts if text not in self._vector_of_text})
        vectors = self._encoded(unseen)
        fresh = dict(zip(unseen, vectors, strict=True))
        if remember:
            self._vector_of_text.update(fresh)
        return np.stack([fresh[text] if text in fresh else self._vector_of_text[text] for text in texts])
