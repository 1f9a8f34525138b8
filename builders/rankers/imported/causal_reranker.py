"""Causal rerankers (Qwen3-Reranker's form): sentence-transformers' Transformer => LogitScore, and ``*ForCausalLM``
folders, of which the library makes the same with the tokens "yes" and "no".

What all prompts of a request start with, instruction and query in most templates, is encoded once: the first graph
gives its keys and values in every layer, the second scores what follows in each candidate's prompt. Token ids are
compared, not texts, so that nothing is approximated.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from builders.core.contract import ATTENTION_MASK, INPUT_IDS, Contract, padded_length
from builders.core.keys import key_of
from builders.core.recipe import Text
from builders.data.beir import Product, Request
from builders.features import prompts
from builders.features.batches import batched
from builders.features.preprocessing import TEXT_CODE, preprocess_contract
from builders.features.prompts import Prompt
from builders.features.text import TextForm, load_tokenizer_text
from builders.rankers.base import Graph, Sample
from builders.rankers.imported import library
from builders.rankers.imported.base import ImportedRanker
from builders.rankers.imported.causal_checks import check_folder, check_neighbours, check_tokens
from builders.rankers.imported.causal_graphs import (
    PREFIX_IDS,
    PREFIX_LENGTH,
    SUFFIXES,
    WHOLE,
    prefix_graphs,
    whole_graph,
)
from builders.rankers.imported.causal_network import (
    CausalScorer,
    PrefixEncoder,
    why_no_prefix,
)
from builders.rankers.imported.chat_prompt import chat_prompt, chat_suffix

BATCH = 32
CODE = Path(prompts.__file__)
"""Beside the served pre-processing, too."""
STORED_FORM = "text, UTF-8"


class ImportedCausalReranker(ImportedRanker):
    """Two graphs, ``<name>_prefix`` and ``<name>``; or one, of whole sequences, where no prefix can be shared."""

    reads_text = ("item", "query_prompt", "item_prompt", "max_length", "store")
    preprocess_code = "prompt_preprocess"

    def __init__(self, name: str, folder: Path, text: Text = Text(), *, trust_remote_code: bool = False) -> None:  # noqa: B008 - frozen
        """Load; see :class:`builders.rankers.imported.base.ImportedRanker`."""
        from sentence_transformers import CrossEncoder  # takes seconds

        self.name = name
        self._folder = folder
        self._library = library.loaded(CrossEncoder, folder, trust_remote_code)
        check_folder(folder, self._library, trust_remote_code)
        first, logit_score = self._library
        self._tokenizer_json = library.served_tokenizer(first.tokenizer)
        self._tokenizer = load_tokenizer_text(self._tokenizer_json)
        self._store = text.store
        self._form = library.text_form(folder, self._library, text, library.prompt_of(self._library))
        self._limit_library()
        self._prompt = self._prompt_of_chat() if "message" in first.modality_config else None
        check_tokens(folder, first, self._form, self._tokens_of)
        check_neighbours(folder, self._library)
        self._network = CausalScorer(first.model, logit_score, self._library.activation_fn).eval()
        self._whole_because = self._why_whole(CausalScorer(first.model, logit_score, nn.Identity()).eval())

    # ------------------------------------------------------------ how it reads text
    def _limit_library(self) -> None:
        """So that the library cuts where the recipe says."""
        first = self._library[0]
        first.max_seq_length = self._form.max_length
        if "max_length" in first.processing_kwargs.get("text", {}):
            first.processing_kwargs["text"]["max_length"] = self._form.max_length

    def _prompt_of_chat(self) -> Prompt:
        first, system = self._library[0], self._form.query_prompt
        settings = first.processing_kwargs.get("chat_template", {})
        with library.asked(self._folder):
            prompt = chat_prompt(self._folder, first, system, settings)
            return dataclasses.replace(prompt, suffix=chat_suffix(first, system, settings))

    def _tokens_of(self, query: str, items: Sequence[str]) -> tuple[list[list[int]], int]:
        """Of each whole prompt, and how many were cut."""
        form = self._form
        asked = query if self._prompt else form.query(query)  # a chat's prompt is in the template
        return prompts.token_sequences(
            self._tokenizer, self._prompt, asked, items, form.max_length, form.truncation_side
        )

    def _rows(self, request: Request, products: Sequence[Product]) -> tuple[list[list[int]], int]:
        return self._tokens_of(request.query, self._form.items(products))

    @property
    def _padding(self) -> tuple[prompts.PaddedLength, int, int]:
        assert self._form.pad_token_id is not None  # refused else
        return padded_length, self._form.max_length, self._form.pad_token_id

    # ------------------------------------------------------------ what is shared
    def _why_whole(self, scorer: CausalScorer) -> str:
        """Why no prefix is shared; "" where one is."""
        if self._prompt and self._prompt.slots[0] == "item":
            return "the template puts the document before the query"
        checked = []
        for query, items in (("red shoe", ["mug", "garden hose, 20 m"]), ("mug", ["tent"])):
            rows, _ = self._tokens_of(query, items)
            whole = prompts.padded_sequences(rows, *self._padding)
            arrays = {
                **prompts.split_sequences(rows, *self._padding),
                **{"whole_ids": whole["input_ids"], "whole_mask": whole["attention_mask"]},
            }
            checked.append({name: torch.from_numpy(array) for name, array in arrays.items()})
        return why_no_prefix(scorer, checked, self._form.max_length)

    @property
    def shares_prefix(self) -> bool:
        """Whether what all prompts of a request start with is encoded once."""
        return not self._whole_because

    def without_sharing(self) -> ImportedCausalReranker:
        """The same ranker with one graph of whole sequences; to compare with."""
        other = copy.copy(self)
        other._whole_because = "as asked"
        return other

    @property
    def facts(self) -> Sequence[str]:
        """Network, asked tokens, prompt, limits, and what is shared."""
        first, score = self._library
        yes, no = (
            None if token is None else first.tokenizer.convert_ids_to_tokens(token)
            for token in (score.true_token_id, score.false_token_id)
        )
        form = self._form
        template = "chat template, tokenised as one text" if self._prompt else "the tokenizer's pair of query and item"
        return (
            f"causal reranker: {type(first.model).__name__}; the score is the logit of {yes!r}"
            + (f" less that of {no!r}" if no is not None else ""),
            f"activation: {type(self._library.activation_fn).__name__}; computed in float32",
            f"prompt: {template}; {'system message' if self._prompt else 'before the query'}: {form.query_prompt!r}",
            f"tokens: at most {form.max_length} of the whole prompt, cut on the {form.truncation_side}"
            + (", the template's end written over the cut" if self._prompt and self._prompt.suffix else ""),
            "what all prompts of a request start with is encoded once"
            if self.shares_prefix
            else f"every prompt is computed whole: {self._whole_because}",
        )

    @property
    def own_text(self) -> Mapping[str, Any]:
        """Prompt and length."""
        prompt = {"query_prompt": self._form.query_prompt} if self._form.query_prompt else {}
        return {**prompt, "max_length": self._form.max_length}

    @property
    def form(self) -> TextForm:
        """How it reads text."""
        return self._form

    @property
    def settings(self) -> Mapping[str, object]:
        """How it reads text, with which tokenizer and which prompt, and what of it is shared."""
        return {
            "text": self._form,
            "tokenizer": self._tokenizer_json,
            "prompt": self._prompt,
            "whole because": self._whole_because,
        }

    @property
    def network(self) -> nn.Module:
        """The library's network with the asked tokens."""
        return self._network

    # ------------------------------------------------------------ graphs
    @property
    def graphs(self) -> list[Graph]:
        """``<name>_prefix`` once a request and ``<name>`` on what follows; or whole sequences, a row a candidate."""
        if self.shares_prefix:
            return prefix_graphs(self.name, self._network, self._form.max_length)
        return [whole_graph(self.name, self._network, self._form.max_length)]

    @property
    def preprocess(self) -> Contract:
        """Token sequences of the prompts, the prefix apart where it is shared."""
        prompted = {"query_prompt": ""} if self._prompt else {}
        return preprocess_contract(
            self.name,
            (PREFIX_IDS, PREFIX_LENGTH, *SUFFIXES) if self.shares_prefix else WHOLE,
            self._tokenizer,
            dataclasses.replace(self._form, **prompted),  # type: ignore[arg-type]
            pair=False,
            features_version=self._stored_version if self._store else None,
            prompt=dataclasses.asdict(self._prompt) if self._prompt else None,
            shares_prefix=self.shares_prefix,
        )

    @property
    def _stored_version(self) -> str:
        item = {"item": self._form.item, "item_prompt": self._form.item_prompt}
        return key_of({"stored as": STORED_FORM, "text": item, "code": TEXT_CODE})

    @property
    def preprocess_files(self) -> Mapping[str, Path | str]:
        """The library's tokenizer, what makes items' texts, and what makes prompts of them."""
        return {"tokenizer.json": self._tokenizer_json, TEXT_CODE.name: TEXT_CODE, CODE.name: CODE}

    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """(item id, its text); nothing where no store is read."""
        for some in batched(products if self._store else ()):
            for product, text in zip(some, self._form.items(some), strict=True):
                yield product.item_id, text.encode("utf-8")

    def sample(self, request: Request, products: Sequence[Product]) -> dict[str, Sample]:
        """Token sequences; the prefix's keys and values by the network."""
        rows, _ = self._rows(request, products)
        if not self.shares_prefix:
            return {self.name: prompts.padded_sequences(rows, *self._padding)}
        own = prompts.split_sequences(rows, *self._padding)
        prefix_ids = own.pop(PREFIX_IDS.name)
        with torch.inference_mode():
            own["prefix_keys_values"] = PrefixEncoder(self._network)(torch.from_numpy(prefix_ids)).numpy()
        return {f"{self.name}_prefix": {PREFIX_IDS.name: prefix_ids}, self.name: own}

    @torch.inference_mode()
    def score(self, request: Request, products: Sequence[Product]) -> np.ndarray:
        """FP32 [candidates], some rows at a time."""
        scorer = self.graphs[-1]
        sample = self.sample(request, products)[self.name]
        parts = [
            scorer.module(*(torch.from_numpy(part[tensor.name]) for tensor in scorer.contract.inputs))
            for part in _parts(sample, len(products))
        ]
        return torch.cat(parts)[:, 0].numpy()

    def library_scores(self, request: Request, products: Sequence[Product]) -> np.ndarray | None:
        """``CrossEncoder.predict`` of the pairs as texts."""
        pairs = [(request.query, text) for text in self._form.items(products)]
        return np.asarray(self._library.predict(pairs, prompt=self._form.query_prompt), dtype=np.float32)

    def tokens(self, sample: Mapping[str, Sample]) -> list[str]:
        """Of the first prompt, the shared part included."""
        own = sample[self.name]
        ids = own[INPUT_IDS.name][0][own[ATTENTION_MASK.name][0] == 1]
        if self.shares_prefix:
            [prefix] = sample[f"{self.name}_prefix"][PREFIX_IDS.name]
            ids = np.concatenate([prefix[: own[PREFIX_LENGTH.name][0]], ids])
        return [self._tokenizer.id_to_token(int(token)) or str(token) for token in ids]

    def truncated(self, request: Request, products: Sequence[Product]) -> int:
        """Of its prompts."""
        return self._rows(request, products)[1]


def _parts(sample: Sample, rows: int) -> Iterator[Sample]:
    """The sample with BATCH of its rows at a time."""
    for start in range(0, rows, BATCH):
        chosen = {name: sample[name][start : start + BATCH] for name in (INPUT_IDS.name, ATTENTION_MASK.name)}
        yield {**sample, **chosen}
