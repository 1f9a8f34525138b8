"""Late interaction: ColBERT checkpoints of PyLate, of Stanford and of sentence-transformers' MultiVectorEncoder.

The query becomes a vector a token at each request, by the library's own modules; the items' token vectors are stored,
as the library encodes them. The score is MaxSim: of each of the query's vectors its largest dot product with one of the
item's, summed up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel

from builders.core.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    MAX_CANDIDATES,
    SCORE,
    Contract,
)
from builders.core.recipe import Text
from builders.data.beir import Product, Request
from builders.features.preprocessing import special_token_template, tokens_version
from builders.features.text import TextForm, encode_texts, load_tokenizer_text, padding_id, truncated_texts
from builders.features.token_vectors import (
    BYTES_OF,
    SCALE_BYTES,
    QueryForm,
    query_vectors,
    read_vectors,
)
from builders.rankers.backbone import CheckpointError, check_positions, known_positions
from builders.rankers.base import Graph, Sample
from builders.rankers.imported import library
from builders.rankers.imported.base import ImportedRanker
from builders.rankers.imported.folder import look_at
from builders.rankers.token_vector_ranker import TokenVectorRanker

MEBIBYTE = 2**20
_METADATA = "artifact.metadata"


# ---------------------------------------------------------------- networks
class QueryEncoder(library.LibraryModules):
    """The library's modules as they treat a query.

    Args:
        modules, inputs: as of :class:`builders.rankers.imported.library.LibraryModules`.
        floor: every position before it counts, whether a token of the query or an expansion; 0 = tokens only.
        mean: whether the score is the mean over the query's vectors, in place of their sum.
    """

    def __init__(self, modules: Sequence[nn.Module], inputs: Sequence[str], floor: int, mean: bool) -> None:
        super().__init__(modules, inputs, "token_embeddings")
        self.floor, self.mean = floor, mean

    def features(self, *tensors: Tensor) -> dict[str, Any]:
        """All that the modules leave. tensors: int32 [rows, length] each."""
        features: dict[str, Any] = {"modality": "text", **dict(zip(self.inputs, tensors, strict=True))}
        if self.floor:
            places = torch.arange(tensors[0].shape[1], device=tensors[0].device)
            features["query_expansion_positions"] = (places < self.floor).expand_as(tensors[0])
        for module in self.library_modules:
            asks = "task" in getattr(module, "forward_kwargs", ())
            features = module(features, task="query") if asks else module(features)
        return features

    def forward(self, *tensors: Tensor) -> Tensor:
        """int32 [rows, length] each => float32 [rows, length, width]; zeros where nothing counts, which adds 0 to a
        score."""
        features = self.features(*tensors)
        counts = features["attention_mask"].bool().unsqueeze(-1)
        vectors = torch.where(counts, features[self.output].float(), 0.0)
        return vectors / counts.sum(dim=1, keepdim=True).clamp(min=1) if self.mean else vectors


class QueryMask(nn.Module):
    """What the library's ``MultiVectorMask`` does to queries whose tokens are skipped, too; ``torch.isin``, with which
    it does so, has no form in ONNX."""

    def __init__(self, skipped: Tensor) -> None:
        super().__init__()
        self.register_buffer("skipped", skipped.to(torch.int32), persistent=False)

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Of ``attention_mask`` and ``query_expansion_positions`` what is in the list of skipped tokens counts not."""
        counts = features["attention_mask"].bool()
        if "query_expansion_positions" in features:
            counts = counts | features["query_expansion_positions"]
        found = (features["input_ids"].unsqueeze(-1) == self.skipped).any(dim=-1)
        return {**features, "attention_mask": counts & ~found}


class MaxSim(nn.Module):
    """One query's token vectors with those of every candidate, which lie one after the other."""

    def forward(
        self, query_vectors: Tensor, item_vectors: Tensor, item_tokens: Tensor, item_scales: Tensor | None = None
    ) -> Tensor:
        """Score.

        Args:
            query_vectors: float32 [1, length, width].
            item_vectors: float32, float16 or int8 [tokens, width], of all candidates.
            item_tokens: int32 [candidates, longest]: rows of ``item_vectors``; an item with fewer repeats one of its
                own.
            item_scales: float32 [tokens]: what an int8 row is multiplied with.

        Returns:
            float32 [candidates, 1].
        """
        similarities = item_vectors.float() @ query_vectors[0].T
        if item_scales is not None:
            similarities = similarities * item_scales.unsqueeze(1)
        of_items = similarities.index_select(0, item_tokens.reshape(-1)).unflatten(0, item_tokens.shape)
        return of_items.amax(dim=1).sum(dim=1, keepdim=True)


# ---------------------------------------------------------------- the ranker
class ImportedLateInteraction(TokenVectorRanker, ImportedRanker):
    """Two graphs; the query is encoded once a request, and its vectors compared with those stored of the items."""

    reads_text = ("item", "query_prompt", "item_prompt", "max_length", "vectors")

    def __init__(self, name: str, folder: Path, text: Text = Text(), *, trust_remote_code: bool = False) -> None:  # noqa: B008 - frozen
        """Load; see :class:`builders.rankers.imported.base.ImportedRanker`."""
        from sentence_transformers import MultiVectorEncoder  # takes seconds

        self.name = name
        self._folder = folder
        self._check_trained()
        self._library: Any = library.loaded(MultiVectorEncoder, folder, trust_remote_code).float()
        self._first: Any = self._library[0]
        self._check(trust_remote_code)
        self._tokenizer_json = library.served_tokenizer(self._first.tokenizer)
        self._tokenizer = load_tokenizer_text(self._tokenizer_json)
        self._check_types()
        self._vectors = text.vectors
        self._form = self._item_form(text)
        self._query = self._query_form()
        self._limit_library()
        self._width = self._width_of_vectors()
        self._network = self._query_encoder()
        self._stored_of_text: dict[str, bytes] = {}

    # ------------------------------------------------------------ what cannot be served
    def _check_trained(self) -> None:
        found = look_at(self._folder)
        if found.format != "late_interaction":
            raise CheckpointError(
                f"{self._folder}: {'; '.join(found.facts)}: its library would put an untrained projection behind it; "
                f'wanted a trained late-interaction model, or format = "{found.format}"'
            )

    def _check(self, trust_remote_code: bool) -> None:
        folder, first = self._folder, self._first
        modalities = set(first.modality_config)
        if modalities != {"text"}:
            raise CheckpointError(
                f"{folder}: it reads {', '.join(sorted(modalities))}; wanted plain text alone, without a chat template"
            )
        of_text = first.processing_kwargs.get("text", {})
        if unknown := (set(first.processing_kwargs) - {"text"}) | (set(of_text) - {"max_length"}):
            raise CheckpointError(
                f"{folder}: sentence_bert_config.json sets {', '.join(sorted(unknown))} for its tokenizer, which is "
                "not served; wanted max_length at most"
            )
        pooled = [type(module).__name__ for module in self._library if _pools_queries(module)]
        if pooled:
            raise CheckpointError(
                f"{folder}: {', '.join(pooled)} joins vectors of the query, which no graph does; wanted pooling of "
                'documents alone (tasks = ["document"]), which is done when items are stored'
            )
        library.check_all_loaded(folder, AutoModel, unused=("pooler",), trust_remote_code=trust_remote_code)
        library.check_vocabulary(folder, first.tokenizer, first.model)
        library.check_right_padding(folder, first.tokenizer, first.model)
        if first.query_expansion is not None and first.tokenizer.padding_side != "right":
            raise CheckpointError(
                f"{folder}: queries are filled up on the left, which is not served; wanted padding_side "
                '"right" in tokenizer_config.json'
            )

    def _check_types(self) -> None:
        types = special_token_template(self._tokenizer, pair=False)["types"]
        if any(types):
            raise CheckpointError(f"{self._folder}: its tokenizer gives a text the token types {types}, wanted zeros")

    # ------------------------------------------------------------ what the checkpoint says
    def _item_form(self, text: Text) -> TextForm:
        own = TextForm(
            query_prompt=library.prompt_of(self._library, ("query",)),
            item_prompt=library.prompt_of(self._library, library.ITEM_PROMPTS),
            max_length=self._stated_length(self._first.document_length),
            max_query_tokens=None,
            truncation_side=self._first.tokenizer.truncation_side,
            pad_token_id=self._first.tokenizer.pad_token_id,
        )
        form = own.with_recipe(text)
        check_positions(form.max_length, self._first.model, self._folder)
        return form

    def _stated_length(self, own: int | None) -> int:
        """A length of its own goes before the tokenizer's, which PyLate leaves a token shorter."""
        stated = self._first.processing_kwargs.get("text", {}).get("max_length") or own
        if stated is None:
            return library.longest_sequence(self._first.tokenizer, self._first.model)
        return min(int(stated), known_positions(self._first.model) or int(stated))

    def _query_form(self) -> QueryForm:
        expansion = self._first.query_expansion
        if expansion is None:
            return QueryForm(self._stated_length(self._first.query_length))
        tokenizer, floor = self._first.tokenizer, int(expansion["length"])
        mask = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.eos_token_id
        token = tokenizer.convert_tokens_to_ids(expansion["token"]) if expansion["token"] else mask
        limit = floor if expansion["strategy"] == "fixed" else self._stated_length(self._first.query_length)
        check_positions(max(floor, limit), self._first.model, self._folder)
        return QueryForm(max(floor, limit), floor, int(token), bool(expansion["attend"]))

    def _limit_library(self) -> None:
        """So that the library's own tokens are cut as the recipe says."""
        self._first.processing_kwargs.get("text", {}).pop("max_length", None)
        self._first.document_length, self._first.query_length = self._form.max_length, self._query.limit

    def _width_of_vectors(self) -> int:
        [vectors] = self._encoded([self._form.item_prompt])
        if not len(vectors):
            raise CheckpointError(
                f"{self._folder}: nothing of an empty text is scored, so that an item without a text would have no "
                "vectors; wanted a special token or a prompt that skiplist_words leaves"
            )
        return int(vectors.shape[1])

    def _query_encoder(self) -> QueryEncoder:
        given = [tensor.name for tensor in (INPUT_IDS, ATTENTION_MASK)]
        mean = self._library.similarity_fn_name == "meanmaxsim"
        modules = [_for_queries(module) for module in self._library]
        return QueryEncoder(modules, given, self._query.floor, mean).eval()

    @property
    def facts(self) -> Sequence[str]:
        """Modules, query, items, and what a request takes."""
        modules = " => ".join(type(module).__name__ for module in self._library)
        of_score = "mean" if self._network.mean else "sum"
        longest = MAX_CANDIDATES * self._form.max_length
        bytes_a_token = self._width * BYTES_OF[self._vectors] + (SCALE_BYTES if self._vectors == "int8" else 0)
        request = longest * (bytes_a_token + 2 * 4 * self._query.limit) // MEBIBYTE
        return (
            f"late interaction: {type(self._network.backbone).__name__}, modules {modules}; score: {of_score} over the "
            f"query's vectors of their largest dot product with one of the item's; vectors of {self._width}",
            f"query: prompt {self._form.query_prompt!r}; {self._told_of_expansion()}",
            f"items: prompt {self._form.item_prompt!r}; at most {self._form.max_length} tokens",
            f"stored: {self._vectors}, {bytes_a_token} bytes a token; {MAX_CANDIDATES} items of "
            f"{self._form.max_length} tokens would take {request} MiB a request",
            "items' texts are not taken in requests: items are scored by their stored vectors",
        )

    def _told_of_expansion(self) -> str:
        query = self._query
        if not query.floor:
            return f"at most {query.limit} tokens"
        attended = "attended to" if query.attend else "not attended to"
        filler = self._first.tokenizer.convert_ids_to_tokens(query.expansion_id)
        return f"filled up to {query.floor} tokens with {filler!r}, which is {attended}; at most {query.limit} tokens"

    @property
    def own_text(self) -> Mapping[str, Any]:
        """Prompts, items' length, and how vectors are stored."""
        prompts = {"query_prompt": self._form.query_prompt, "item_prompt": self._form.item_prompt}
        given = {name: prompt for name, prompt in prompts.items() if prompt}
        return {**given, "max_length": self._form.max_length, "vectors": self._vectors}

    # ------------------------------------------------------------ what the kit asks of a ranker
    @property
    def settings(self) -> Mapping[str, object]:
        """How it reads text, with which tokenizer, and how vectors are stored."""
        return {
            "text": self._form, "query": self._query, "tokenizer": self._tokenizer_json, "vectors": self._vectors,
        }  # fmt: skip

    @property
    def network(self) -> QueryEncoder:
        """What runs at each request. Items' vectors are stored, by the network as it was."""
        return self._network

    @property
    def graphs(self) -> list[Graph]:
        """``<name>_query`` (a row a request) and ``<name>`` (MaxSim with every candidate)."""
        head = Contract(
            self.name,
            (query_vectors(self._width), *self._items),
            (SCORE,),
            score="MaxSim as MultiVectorEncoder.similarity gives it; higher is better",
        )
        return [
            self._query_graph(self._network),
            Graph(head.name, MaxSim(), head, batches=False, keep_fp32=True),
        ]

    @property
    def checkpoint_files(self) -> list[Path]:
        """Every file of the folder that a score depends on."""
        metadata = self._folder / _METADATA
        return [*library.files_of(self._folder), *([metadata] if metadata.is_file() else [])]

    def sample(self, request: Request, products: Sequence[Product]) -> dict[str, Sample]:
        """The query's tokens; its vectors with the items'."""
        tokens = self._query_tokens(request.query)
        with torch.inference_mode():
            vectors = self._network(*map(torch.from_numpy, tokens.values())).numpy()
        encoder, head = self.graphs
        packed = self._packed(products)
        items = {tensor.name: packed[tensor.name] for tensor in self._items}
        return {encoder.name: tokens, head.name: {"query_vectors": vectors, **items}}

    def library_scores(self, request: Request, products: Sequence[Product]) -> np.ndarray:
        """``similarity`` of ``encode_query`` and ``encode_document``, with items' vectors as they are stored."""
        query = self._library.encode_query([self._form.query(request.query)], prompt="", show_progress_bar=False)
        if self._vectors == "fp32":
            items = self._library.encode_document(self._form.items(products), prompt="", show_progress_bar=False)
        else:
            stored = self._stored(products)
            items = [torch.from_numpy(read_vectors(one, self._vectors, self._width)) for one in stored]
        return np.asarray(self._library.similarity(query, items)[0].numpy())

    def truncated(self, request: Request, products: Sequence[Product]) -> int:
        """Of its texts."""
        if truncated_texts(self._tokenizer, [self._form.query(request.query)], self._cut_query):
            return len(products)
        return truncated_texts(self._tokenizer, self._form.items(products), self._form)

    # ------------------------------------------------------------ texts => tokens and vectors
    @property
    def _encoded_by(self) -> Mapping[str, Any]:
        return {"tokens": tokens_version(self._form, self._tokenizer_json)}

    @property
    def _tokenizer_file(self) -> str:
        return self._tokenizer_json

    @property
    def _cut_query(self) -> TextForm:
        return dataclasses.replace(self._form, max_length=self._query.limit)

    def _query_tokens(self, query: str) -> Sample:
        tokens = encode_texts(self._tokenizer, [self._form.query(query)], self._cut_query)
        ids = tokens[INPUT_IDS.name][0][tokens[ATTENTION_MASK.name][0] == 1]
        own = self._form.pad_token_id
        return self._query.tokens(ids, padding_id(self._tokenizer) if own is None else own)

    def _encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        """FP32 [tokens, width] of each item's text, by the library. texts: with their prompt."""
        if not texts:
            return []
        with library.asked(self._folder):
            found: list[np.ndarray] = self._library.encode_document(
                list(texts), prompt="", convert_to_numpy=True, show_progress_bar=False
            )
        return found


def _for_queries(module: nn.Module) -> nn.Module:
    skipped: Any = getattr(module, "_skiplist_ids", None)
    skips = skipped is not None and "query" in getattr(module, "skiplist_tasks", ())
    return QueryMask(skipped) if skips else module


def _pools_queries(module: nn.Module) -> bool:
    applies = getattr(module, "applies_to", None)
    return applies is not None and bool(applies("query"))
