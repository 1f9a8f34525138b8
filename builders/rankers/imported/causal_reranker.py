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
from transformers import AutoModelForCausalLM

from builders.core.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    LENGTH_BUCKET,
    MAX_CANDIDATES,
    SCORE,
    TOKEN_TYPE_IDS,
    Contract,
    Tensor,
    length_buckets,
)
from builders.core.keys import key_of
from builders.core.recipe import Text
from builders.data.beir import Product, Request
from builders.features import prompts
from builders.features.preprocessing import TEXT_CODE, preprocess_contract
from builders.features.prompts import Prompt
from builders.features.text import TextForm, load_tokenizer_text
from builders.rankers.backbone import CheckpointError, check_positions
from builders.rankers.base import Graph, Sample
from builders.rankers.imported import library
from builders.rankers.imported.base import ImportedRanker
from builders.rankers.imported.causal_network import (
    SAME,
    CausalScorer,
    PrefixEncoder,
    SuffixScorer,
    check_positions_stay,
    why_no_prefix,
)
from builders.rankers.imported.chat_prompt import PROBES, chat_prompt, chat_suffix

BATCH = 32
CODE = Path(prompts.__file__)
"""Beside the served pre-processing, too."""
STORED_FORM = "text, UTF-8"
MODULES = ["Transformer", "LogitScore"]

PREFIX_DIM = "padded_prefix_length"
PREFIX_IDS = Tensor("prefix_ids", "INT32", (1, PREFIX_DIM), "what all candidates' token ids start with, padded behind")
PREFIX_LENGTH = Tensor("prefix_length", "INT32", (1,), "how many of prefix_ids are no padding; may be 0")
OF_SUFFIX = tuple(
    dataclasses.replace(tensor, dims=("candidates", "length"), meaning=f"{tensor.meaning}, after the prefix")
    for tensor in (INPUT_IDS, ATTENTION_MASK)
)


class ImportedCausalReranker(ImportedRanker):
    """Two graphs, ``<name>_prefix`` and ``<name>``; or one, of whole sequences, where no prefix can be shared."""

    reads_text = ("item", "query_prompt", "item_prompt", "max_length", "store")
    preprocess_code = "prompt_preprocess"

    def __init__(self, name: str, folder: Path, text: Text = Text(), *, trust_remote_code: bool = False) -> None:  # noqa: B008 - frozen
        """Load; see :class:`builders.rankers.imported.base.ImportedRanker`."""
        from sentence_transformers import CrossEncoder  # takes seconds

        self.name = name
        self._folder = folder
        with library.asked(folder):
            self._library = CrossEncoder(
                str(folder), device="cpu", local_files_only=True, trust_remote_code=trust_remote_code,
                model_kwargs=dict(library.FLOAT32),
            ).eval()  # fmt: skip
        self._check(trust_remote_code)
        first, logit_score = self._library
        self._tokenizer_json = library.served_tokenizer(first.tokenizer)
        self._tokenizer = load_tokenizer_text(self._tokenizer_json)
        self._store = text.store
        self._form = self._form_with(text)
        self._limit_library()
        self._prompt = self._prompt_of_chat() if "message" in first.modality_config else None
        self._check_tokens()
        self._check_neighbours()
        self._network = CausalScorer(first.model, logit_score, self._library.activation_fn).eval()
        self._whole_because = self._why_whole(CausalScorer(first.model, logit_score, nn.Identity()).eval())

    # ------------------------------------------------------------ what is refused
    def _check(self, trust_remote_code: bool) -> None:
        """Raises: CheckpointError."""
        folder, first = self._folder, self._library[0]
        modules = [type(module).__name__ for module in self._library]
        modalities = set(getattr(first, "modality_config", {}))
        if modules != MODULES or first.transformer_task != "text-generation":
            raise CheckpointError(
                f"{folder}: modules {' => '.join(modules)} for {getattr(first, 'transformer_task', 'no task')}, wanted "
                f"{' => '.join(MODULES)} for text-generation"
            )
        if extra := sorted(map(str, modalities - {"text", "message"})):
            raise CheckpointError(
                f"{folder}: a multimodal model ({', '.join(extra)}), wanted one that reads text alone"
            )
        if not isinstance(self._library.activation_fn, nn.Module):
            raise CheckpointError(f"{folder}: activation {self._library.activation_fn!r}, wanted a torch.nn.Module")
        self._check_settings(first.processing_kwargs)
        library.check_all_loaded(folder, AutoModelForCausalLM, trust_remote_code=trust_remote_code)
        library.check_vocabulary(folder, first.tokenizer, first.model)
        check_positions_stay(first.model, folder)
        self._check_asked_tokens()
        self._check_inputs(first)

    def _check_settings(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        sizes = {"padding", "truncation", "max_length", "return_tensors"}
        unserved = [
            *(f"text.{name}" for name in set(settings.get("text", {})) - {"max_length"}),
            *(f"chat_template.{name}" for name in sizes.intersection(settings.get("chat_template", {}))),
            *(f"common.{name}" for name in settings.get("common", {})),
        ]
        if unserved:
            raise CheckpointError(
                f"{self._folder}: sentence_bert_config.json sets {', '.join(sorted(unserved))}, which is not served; "
                "wanted max_length for text and arguments of the chat template at most"
            )

    def _check_asked_tokens(self) -> None:
        first, score = self._library
        rows = first.model.get_output_embeddings().weight.shape[0]
        asked = [score.true_token_id, score.false_token_id]
        beyond = [token for token in asked if token is not None and not 0 <= token < rows]
        if beyond or asked[0] == asked[1]:
            raise CheckpointError(
                f"{self._folder}: LogitScore asks for the tokens {asked}, of a network with {rows}; wanted two "
                "different ones of these, or one; the tokens of a plain folder are 'yes' and 'no', which its tokenizer "
                "must have"
            )
        if not (self._folder / "modules.json").is_file():
            found = first.tokenizer.convert_ids_to_tokens(asked)
            if found != ["yes", "no"]:
                raise CheckpointError(
                    f"{self._folder}: its tokenizer has no tokens 'yes' and 'no' (found {found}), which the library "
                    "scores a plain folder by; wanted a folder that CrossEncoder.save_pretrained wrote, with LogitScore"
                )

    def _check_inputs(self, first: Any) -> None:
        if first.tokenizer.pad_token_id is None:
            raise CheckpointError(
                f"{self._folder}: its tokenizer has no padding token, so that the library itself cannot score two "
                "pairs at once; wanted pad_token in tokenizer_config.json"
            )
        if TOKEN_TYPE_IDS in library.token_inputs(first.tokenizer, first.model):
            raise CheckpointError(
                f"{self._folder}: {type(first.model).__name__} reads token types, wanted one that does not: a prompt "
                "is one text"
            )

    def _check_tokens(self) -> None:
        """Raises: CheckpointError: our tokens of some pairs are not the library's."""
        long = "waterproof tent " * self._form.max_length
        for query, items in [
            *((query, [item, "mug"]) for query, item in PROBES),
            ("mug", [long, "tent"]),
            (long, [""]),
        ]:
            with library.asked(self._folder):
                given = self._library[0].preprocess([[query, item] for item in items], prompt=self._form.query_prompt)
            wanted = [
                ids[mask.bool()].tolist() for ids, mask in zip(given["input_ids"], given["attention_mask"], strict=True)
            ]
            prompted = query if self._prompt else self._form.query(query)
            if self._tokens(prompted, items)[0] != wanted:
                raise CheckpointError(
                    f"{self._folder}: the library makes other tokens of query {query[:40]!r} with document "
                    f"{items[0][:40]!r} than the tokenizers library of its tokenizer.json; wanted a tokenizer without "
                    "code of its own"
                )

    def _check_neighbours(self) -> None:
        """Raises: CheckpointError: the library's own score of a pair depends on the padding before it."""
        pair, longer = ("red shoe", "mug"), ("red shoe", "garden hose " * 8)
        with library.asked(self._folder):
            beside, _ = self._library.predict([pair, longer], activation_fn=nn.Identity())
            [alone] = self._library.predict([pair], activation_fn=nn.Identity())
        if abs(beside - alone) > SAME * max(1.0, abs(alone)):
            raise CheckpointError(
                f"{self._folder}: the library scores a pair {alone:.4f} alone and {beside:.4f} beside a longer one: "
                "its network counts positions from the padding on; wanted a network with rotary positions"
            )

    # ------------------------------------------------------------ how it reads text
    def _form_with(self, text: Text) -> TextForm:
        first = self._library[0]
        longest = library.longest_sequence(first.tokenizer, first.model)
        stated = first.processing_kwargs.get("text", {}).get("max_length") or longest
        own = TextForm(
            query_prompt=self._library.prompts.get(self._library.default_prompt_name, "") or "",
            max_length=min(longest, int(stated)),
            max_query_tokens=None,
            truncation_side=first.tokenizer.truncation_side,
            pad_token_id=first.tokenizer.pad_token_id,
        )
        form = own.with_recipe(text)
        check_positions(form.max_length, first.model, self._folder)
        return form

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

    def _tokens(self, query: str, items: Sequence[str]) -> tuple[list[list[int]], int]:
        form = self._form
        return prompts.token_sequences(
            self._tokenizer, self._prompt, query, items, form.max_length, form.truncation_side
        )

    def _rows(self, request: Request, products: Sequence[Product]) -> tuple[list[list[int]], int]:
        query = request.query if self._prompt else self._form.query(request.query)  # a chat's prompt is in the template
        return self._tokens(query, self._form.items(products))

    @property
    def _padding(self) -> tuple[int, int, int]:
        assert self._form.pad_token_id is not None  # refused else
        return LENGTH_BUCKET, self._form.max_length, self._form.pad_token_id

    # ------------------------------------------------------------ what is shared
    def _why_whole(self, scorer: CausalScorer) -> str:
        """Why no prefix is shared; "" where one is."""
        if self._prompt and self._prompt.slots[0] == "item":
            return "the template puts the document before the query"
        checked = []
        for query, items in (("red shoe", ["mug", "garden hose, 20 m"]), ("mug", ["tent"])):
            rows, _ = self._tokens(query, items)
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

    def with_network(self, network: nn.Module) -> ImportedCausalReranker:
        """Around another network that takes the same token sequences."""
        other = copy.copy(self)
        other._network = network.eval()  # type: ignore[assignment]
        return other

    # ------------------------------------------------------------ graphs
    @property
    def graphs(self) -> list[Graph]:
        """``<name>_prefix`` once a request and ``<name>`` on what follows; or whole sequences, a row a candidate."""
        if not self.shares_prefix:
            contract = self._contract((INPUT_IDS, ATTENTION_MASK), "rows")
            lengths = length_buckets(self._form.max_length)
            return [Graph(self.name, self._network, contract, True, MAX_CANDIDATES, lengths)]
        keys_values = self._keys_values()
        prefix = Contract(f"{self.name}_prefix", (PREFIX_IDS,), (keys_values,))
        suffix = self._contract((*OF_SUFFIX, PREFIX_LENGTH, keys_values), "candidates")
        return [
            Graph(prefix.name, PrefixEncoder(self._network), prefix, batches=False),
            Graph(suffix.name, SuffixScorer(self._network), suffix, batches=False),
        ]

    def _contract(self, inputs: tuple[Tensor, ...], rows: str) -> Contract:
        score = dataclasses.replace(SCORE, dims=(rows, 1))
        return Contract(self.name, inputs, (score,), score="as CrossEncoder.predict gives it; higher is better")

    def _keys_values(self) -> Tensor:
        with torch.inference_mode():
            layers, two, heads, _, width = PrefixEncoder(self._network)(torch.zeros((1, 1), dtype=torch.int32)).shape
        return Tensor(
            "prefix_keys_values",
            "FP32",
            (layers, two, heads, PREFIX_DIM, width),
            "keys and values of the prefix in every layer",
        )

    @property
    def preprocess(self) -> Contract:
        """Token sequences of the prompts, the prefix apart where it is shared."""
        shared = (PREFIX_IDS, PREFIX_LENGTH, *OF_SUFFIX)
        prompted = {"query_prompt": ""} if self._prompt else {}
        return preprocess_contract(
            self.name,
            shared if self.shares_prefix else (INPUT_IDS, ATTENTION_MASK),
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

    @property
    def checkpoint_files(self) -> list[Path]:
        """Every file of the folder that a score depends on."""
        return library.files_of(self._folder)

    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """(item id, its text); nothing where no store is read."""
        if not self._store:
            return
        listed = list(products)
        for product, text in zip(listed, self._form.items(listed), strict=True):
            yield product.item_id, text.encode("utf-8")

    def sample(self, request: Request, products: Sequence[Product]) -> dict[str, Sample]:
        """Token sequences; the prefix's keys and values by the network."""
        rows, _ = self._rows(request, products)
        if not self.shares_prefix:
            return {self.name: prompts.padded_sequences(rows, *self._padding)}
        arrays = prompts.split_sequences(rows, *self._padding)
        of_prefix = {PREFIX_IDS.name: arrays.pop(PREFIX_IDS.name)}
        with torch.inference_mode():
            keys_values = PrefixEncoder(self._network)(torch.from_numpy(of_prefix[PREFIX_IDS.name])).numpy()
        return {f"{self.name}_prefix": of_prefix, self.name: {**arrays, "prefix_keys_values": keys_values}}

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

    def truncated(self, request: Request, products: Sequence[Product]) -> int:
        """Of its prompts."""
        return self._rows(request, products)[1]


def _parts(sample: Sample, rows: int) -> Iterator[Sample]:
    """The sample with BATCH of its rows at a time."""
    for start in range(0, rows, BATCH):
        chosen = {name: sample[name][start : start + BATCH] for name in (INPUT_IDS.name, ATTENTION_MASK.name)}
        yield {**sample, **chosen}
