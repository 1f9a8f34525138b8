"""Bi-encoders of sentence-transformers: query and item encoded apart, a similarity of the two vectors as score.

What is encoded and stored equals ``SentenceTransformer.encode_query`` and ``encode_document``, what is served
``SentenceTransformer.similarity``. A folder of transformers alone is one to the library, too: it takes the mean of the
token states.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Encoding
from torch import Tensor, nn

from builders.core.contract import (
    MAX_CANDIDATES,
    PROMPT_LENGTH,
    SCORE,
    SOURCE,
    Contract,
    item_vectors,
    length_buckets,
    text_vectors,
)
from builders.core.keys import key_of
from builders.core.recipe import RecipeError, Text
from builders.data.beir import Product, Request
from builders.features.batches import batched
from builders.features.preprocessing import TEXT_CODE, preprocess_contract, special_token_template, tokens_version
from builders.features.text import (
    FORM_TEXT,
    cut_texts,
    form_of_queries,
    load_tokenizer_text,
    padded,
    row_tokens,
    truncated_apart,
)
from builders.features.vectors import as_stored, stored_vectors
from builders.rankers.backbone import CheckpointError
from builders.rankers.base import Graph, Sample
from builders.rankers.imported import library
from builders.rankers.imported.base import ImportedRanker
from builders.rankers.imported.bi_encoder_checks import check_modules, check_weights
from builders.rankers.imported.encoder import Encoder, GivenSimilarity, PromptlessPooling, StoredSimilarity
from builders.rankers.imported.folder import library_settings

BATCH = 32
_SAME_VECTOR = 1e-5


class ImportedBiEncoder(ImportedRanker):
    """Two graphs; one row a request and one for each text that it brings, then the similarity with every candidate."""

    reads_text = (*FORM_TEXT, "store", "vectors", "dimensions")
    preprocess_code = "vector_preprocess"

    def __init__(self, name: str, folder: Path, text: Text = Text(), *, trust_remote_code: bool = False) -> None:  # noqa: B008 - frozen
        """Load; see :class:`builders.rankers.imported.base.ImportedRanker`."""
        if not text.store and text.vectors != "fp32":
            raise RecipeError(f'recipe of {name}: [text] vectors = "{text.vectors}" with store = false, under which no '
                              "vector is kept; wanted one of the two")  # fmt: skip
        self.name = name
        self._folder = folder
        self._library = library.loaded(SentenceTransformer, folder, trust_remote_code)
        check_modules(folder, self._library)
        self._first: Any = self._library[0]
        first = self._first
        self._unread = check_weights(folder, first, trust_remote_code)
        self._store, self._stored_as = text.store, text.vectors
        self._tokenizer_json = library.served_tokenizer(first.tokenizer)
        self._tokenizer = load_tokenizer_text(self._tokenizer_json)
        prompts = (library.prompt_of(self._library, names) for names in (("query",), library.ITEM_PROMPTS))
        self._form = library.text_form(folder, self._library, text, *prompts)
        self._library.truncate_dim = self._dimensions(text)
        self._prompt_lengths = self._lengths_of_prompts()
        self._network = self._item_network = self._encoder()
        self.width = self._encoded_items(["a"]).shape[1]
        self._vector_of_text: dict[str, np.ndarray] = {}

    # ------------------------------------------------------------ what the folder says
    def _dimensions(self, text: Text) -> int | None:
        whole = _whole_width(self._library)
        wanted = text.dimensions or self._library.truncate_dim
        if wanted is not None and whole is not None and not 1 <= wanted <= whole:
            raise CheckpointError(
                f"{self._folder}: {wanted} dimensions of vectors that have {whole}, wanted 1 to {whole}: set "
                "dimensions under [text]"
            )
        return wanted

    def _lengths_of_prompts(self) -> tuple[int, int] | None:
        """Tokens of the query's and of the items' prompt, where vectors leave them out."""
        prompts = (self._form.query_prompt, self._form.item_prompt)
        leaves_out = any(isinstance(module, Pooling) and not module.include_prompt for module in self._library)
        if not leaves_out or not any(prompts):
            return None
        of_query, of_item = (
            int(self._library.preprocess(["a"], prompt=prompt)["prompt_length"]) if prompt else 0 for prompt in prompts
        )
        behind = len(special_token_template(self._tokenizer, pair=False)["after"])
        if not behind:
            raise CheckpointError(
                f"{self._folder}: its vectors leave the prompt out, and no special token ends a text: of a short text "
                "nothing may be left, and the library's own vector then depends on the texts beside; wanted "
                "include_prompt = true in the Pooling's config.json, or a tokenizer that ends texts"
            )
        room = form_of_queries(self._tokenizer, self._form).max_length
        if max(of_query, of_item) + behind >= room:
            raise CheckpointError(
                f"{self._folder}: a prompt as long as a sequence, {room} tokens, and its vectors leave the prompt out; "
                "wanted a shorter prompt or a larger max_length under [text]"
            )
        return of_query, of_item

    def _encoder(self) -> Encoder:
        by_row = self._prompt_lengths is not None
        modules = [
            PromptlessPooling(module)
            if by_row and isinstance(module, Pooling) and not module.include_prompt
            else module
            for module in self._library
        ]
        self._inputs = library.token_inputs(self._first.tokenizer, self._first.model)
        if by_row:
            self._inputs = (*self._inputs, PROMPT_LENGTH)
        names = [tensor.name for tensor in self._inputs]
        return Encoder(modules, names, self._library.truncate_dim).eval()

    @property
    def facts(self) -> Sequence[str]:
        """Modules, similarity, prompts, limits, and how vectors are stored."""
        modules = " => ".join(map(_shown, self._library))
        named = "similarity_fn_name" in library_settings(self._folder)
        left_out = "" if self._prompt_lengths is None else ", left out of the vectors"
        unread = (f"not read: {len(self._unread)} stored tensors ({', '.join(self._unread[:3])})",) * bool(self._unread)
        return (
            f"bi-encoder: {type(self._first.model).__name__}, modules {modules}, vectors of {self.width} in float32",
            f"similarity: {self._library.similarity_fn_name}{'' if named else ', as the folder names none'}",
            f"tokens: {', '.join(self._network.inputs)}; at most {self._form.max_length} of each text, cut on the "
            f"{self._form.truncation_side}",
            f"prompts: {self._form.query_prompt!r} before the query, {self._form.item_prompt!r} before an item"
            f"{left_out}",
            f"items' vectors: {f'stored as {self._stored_as}' if self._store else 'not stored, their texts are sent'}",
            *unread,
            *self._unused_prompts,
        )

    @property
    def _unused_prompts(self) -> Sequence[str]:
        used = ("", self._form.query_prompt, self._form.item_prompt)
        left = {name: prompt for name, prompt in self._library.prompts.items() if prompt not in used}
        return [
            f"prompt {name!r}, {prompt!r}, is used neither by encode_query nor by encode_document: to use it, set "
            "query_prompt or item_prompt under [text]"
            for name, prompt in left.items()
        ]

    @property
    def own_text(self) -> Mapping[str, Any]:
        """Prompts, length, and dimensions where there are fewer than the network gives."""
        prompts = {"query_prompt": self._form.query_prompt, "item_prompt": self._form.item_prompt}
        cut = {"dimensions": self._library.truncate_dim} if self._library.truncate_dim else {}
        return {**{name: prompt for name, prompt in prompts.items() if prompt},
                "max_length": self._form.max_length, **cut}  # fmt: skip

    # ------------------------------------------------------------ what the kit asks of a ranker
    @property
    def settings(self) -> Mapping[str, object]:
        """How it reads text, and what it keeps of vectors."""
        return {
            "text": self._form, "tokenizer": self._tokenizer_json, "store": self._store, "vectors": self._stored_as,
            "dimensions": self._library.truncate_dim,
        }  # fmt: skip

    @property
    def network(self) -> Encoder:
        """What encodes queries, and texts that a request brings; stored vectors are by the encoder as it was."""
        return self._network

    @property
    def unrounded(self) -> ImportedBiEncoder | None:
        """With stored vectors in FP32."""
        if not self._store or self._stored_as == "fp32":
            return None
        other = copy.copy(self)
        other._stored_as = "fp32"
        return other

    @property
    def graphs(self) -> list[Graph]:
        """``<name>_query`` (a row a text) and ``<name>`` (the similarity with every candidate)."""
        vectors = text_vectors(self.width)
        encoder = Contract(f"{self.name}_query", self._inputs, (vectors,))
        head = Contract(
            self.name,
            (vectors, *((self._stored_tensor,) if self._store else ()), SOURCE),
            (dataclasses.replace(SCORE, dims=("candidates", 1)),),
            score=f"{self._library.similarity_fn_name} as SentenceTransformer.similarity gives it; higher is better",
        )
        return [
            Graph(
                encoder.name,
                self._network,
                encoder,
                batches=True,
                max_batch_size=MAX_CANDIDATES + 1,
                lengths=length_buckets(self._form.max_length),
            ),
            Graph(head.name, self._head, head, batches=False, keep_fp32=True),
        ]

    @property
    def _head(self) -> nn.Module:
        kind = StoredSimilarity if self._store else GivenSimilarity
        return kind(self._library.similarity_fn_name).eval()

    @property
    def _stored_tensor(self) -> Any:
        meaning = "stored item vectors; zeros where there is none"
        return dataclasses.replace(item_vectors(self.width), meaning=meaning)

    @property
    def preprocess(self) -> Contract:
        """The query's tokens and those of given texts, and the items' stored vectors."""
        version = key_of(
            {
                "tokens": tokens_version(self._form, self._tokenizer_json),
                "checkpoint": self.checkpoint_files,
                "stored as": [self._stored_as, self.width],
            }
        )
        further: dict[str, Any] = {} if self._prompt_lengths is None else {"prompt_lengths": list(self._prompt_lengths)}
        if self._store:
            further |= {"vector_width": self.width, "vector_form": self._stored_as}
        return preprocess_contract(
            self.name,
            (*self._inputs, *((self._stored_tensor,) if self._store else ()), SOURCE),
            self._tokenizer,
            self._form,
            pair=False,
            features_version=version if self._store else None,
            **further,
        )

    @property
    def preprocess_files(self) -> Mapping[str, Path | str]:
        """The library's tokenizer, and what makes items' texts."""
        return {"tokenizer.json": self._tokenizer_json, TEXT_CODE.name: TEXT_CODE}

    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """Vectors, see :func:`builders.features.vectors.stored_vectors`; nothing where no store is read."""
        for some in batched(products if self._store else ()):
            vectors = self._encoded_items(self._form.items(some))
            rows = stored_vectors(vectors, self._stored_as)
            yield from zip((product.item_id for product in some), rows, strict=True)

    def sample(self, request: Request, products: Sequence[Product]) -> dict[str, Sample]:
        """The query's tokens, with the items' where none are stored; and the vectors of these."""
        texts = [] if self._store else self._form.items(products)
        query, items = self._cut_query(request), cut_texts(self._tokenizer, texts, self._form)
        tokens = self._tensors([*query, *items], len(query))
        encoder, head = self.graphs
        found: Sample = {text_vectors(self.width).name: self._run(self._network, tokens)}
        if self._store:
            found[self._stored_tensor.name] = self._stored_items(products)
            found[SOURCE.name] = np.full(len(products), -1, dtype=np.int32)
        else:
            found[SOURCE.name] = np.arange(1, 1 + len(products), dtype=np.int32)
        return {encoder.name: tokens, head.name: found}

    def score(self, request: Request, products: Sequence[Product]) -> np.ndarray:
        """FP32 [candidates]: similarities."""
        head = self.graphs[-1]
        sample = self.sample(request, products)[head.name]
        with torch.inference_mode():
            scores: Tensor = head.module(*(torch.from_numpy(sample[tensor.name]) for tensor in head.contract.inputs))
        return scores[:, 0].numpy()

    def library_scores(self, request: Request, products: Sequence[Product]) -> np.ndarray | None:
        """``similarity(encode_query(query), encode_document(texts))``, with items' vectors as they are stored."""
        texts = dataclasses.replace(self._form, item_prompt="").items(products)
        queries = form_of_queries(self._tokenizer, self._form)
        query = self._library.encode_query(
            [request.query], prompt=self._form.query_prompt, **_cut_to(queries.max_length)
        )
        items = self._library.encode_document(texts, prompt=self._form.item_prompt, **_cut_to(self._form.max_length))
        if self._store and self._stored_as != "fp32":
            own = self._encoded_items(self._form.items(products))
            # a value on the border of two steps, which the library puts to the other side, is no difference
            agree = np.abs(items - own).max(axis=1, keepdims=True) <= _SAME_VECTOR
            items = as_stored(np.where(agree, own, items), self._stored_as)
        return self._library.similarity(query, items)[0].numpy()

    def tokens(self, sample: Mapping[str, Sample]) -> list[str]:
        """Of the query."""
        return row_tokens(self._tokenizer, sample[f"{self.name}_query"])

    def truncated(self, request: Request, products: Sequence[Product]) -> int:
        """Of its texts."""
        query, items = self._form.query(request.query), self._form.items(products)
        return truncated_apart(self._tokenizer, query, items, self._form)

    # ------------------------------------------------------------ texts => vectors
    def _cut_query(self, request: Request) -> list[Encoding]:
        form = form_of_queries(self._tokenizer, self._form)
        return cut_texts(self._tokenizer, [self._form.query(request.query)], form)

    def _tensors(self, rows: Sequence[Encoding], queries: int) -> Sample:
        """The encoder's inputs; the first ``queries`` rows are queries, the others items."""
        found = padded(self._tokenizer, rows, self._form)
        if self._prompt_lengths is not None:
            of_query, of_item = self._prompt_lengths
            lengths = [of_query] * queries + [of_item] * (len(rows) - queries)
            found[PROMPT_LENGTH.name] = np.array(lengths, dtype=np.int32).reshape(-1, 1)
        return {tensor.name: found[tensor.name] for tensor in self._inputs}

    def _stored_items(self, products: Sequence[Product]) -> np.ndarray:
        """float32 [products, width] as they are read back; each text is encoded once in this ranker's life."""
        texts = self._form.items(products)
        unseen = sorted({text for text in texts if text not in self._vector_of_text})
        self._vector_of_text.update(zip(unseen, self._encoded_items(unseen), strict=True))
        return as_stored(np.stack([self._vector_of_text[text] for text in texts]), self._stored_as)

    def _encoded_items(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, width], in their order; encoded shortest first, so that little is padding."""
        rows = cut_texts(self._tokenizer, texts, self._form)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
        parts = [
            self._run(self._item_network, self._tensors([rows[place] for place in order[start : start + BATCH]], 0))
            for start in range(0, len(order), BATCH)
        ]
        return np.concatenate(parts)[np.argsort(order)] if parts else np.zeros((0, self.width), dtype=np.float32)

    def _run(self, network: Encoder, tokens: Sample) -> np.ndarray:
        """float32 [rows, width], in parts that fit into memory."""
        arrays = [torch.from_numpy(tokens[tensor.name]) for tensor in self._inputs]
        with torch.inference_mode():
            parts = [
                network(*(array[start : start + BATCH] for array in arrays)).numpy()
                for start in range(0, len(arrays[0]), BATCH)
            ]
        return np.concatenate(parts)


def _cut_to(max_length: int) -> dict[str, Any]:
    """For the library's own encoding, quietly."""
    return {"processing_kwargs": {"text": {"max_length": max_length}}, "show_progress_bar": False}


def _whole_width(model: SentenceTransformer) -> int | None:
    truncated, model.truncate_dim = model.truncate_dim, None
    try:
        return model.get_embedding_dimension()
    finally:
        model.truncate_dim = truncated


def _shown(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, Pooling):
        modes = (module.pooling_mode,) if isinstance(module.pooling_mode, str) else module.pooling_mode
        return f"{name} ({', '.join(modes)})"
    if isinstance(module, Dense):
        return f"{name} ({module.in_features} to {module.out_features}, {type(module.activation_function).__name__})"
    return name
