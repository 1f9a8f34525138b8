"""Query and item in one token sequence: what every cross-encoder has around its network, whoever trained it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from torch import nn

from builders.core.contract import ATTENTION_MASK, MAX_CANDIDATES, Contract, Tensor, length_buckets
from builders.data.beir import Product, Request
from builders.features.batches import batched
from builders.features.preprocessing import TEXT_CODE, preprocess_contract, tokens_version
from builders.features.text import FORM_TEXT, TextForm, encode_pairs, row_tokens, stored_tokens, truncated_pairs
from builders.rankers.base import Graph, Sample

PAIR_TEXT = (*FORM_TEXT, "store")
"""Fields of a recipe's [text] that a cross-encoder reads."""


@dataclasses.dataclass(frozen=True)
class TokenPairs:
    """How one ranker's sequences are made, offline and served.

    Attributes:
        tokenizer_json: the file, or its text.
        store: whether items' tokens lie in the item store; else every text comes in the request.
    """

    tokenizer: Tokenizer
    tokenizer_json: Path | str
    form: TextForm
    store: bool = True

    def graph(self, network: nn.Module, contract: Contract) -> Graph:
        """The network that scores rows of sequences; rows of requests of equal padded length may be joined."""
        lengths = length_buckets(self.form.max_length)
        return Graph(
            contract.name,
            network,
            contract,
            batches=True,
            max_batch_size=MAX_CANDIDATES,
            lengths=lengths,
            padding_mask=ATTENTION_MASK.name,
        )

    def preprocess(self, ranker: str, outputs: Sequence[Tensor]) -> Contract:
        """Contract of ``<ranker>_preprocess``."""
        version = tokens_version(self.form, self.tokenizer_json) if self.store else None
        return preprocess_contract(ranker, outputs, self.tokenizer, self.form, pair=True, features_version=version)

    @property
    def files(self) -> Mapping[str, Path | str]:
        """Beside the pre-processing model: the tokenizer, and what makes an item's text."""
        return {"tokenizer.json": self.tokenizer_json, TEXT_CODE.name: TEXT_CODE}

    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """(item id, stored tokens); nothing where no store is read."""
        if not self.store:
            return
        for batch in batched(products):
            tokens = stored_tokens(self.tokenizer, self.form.items(batch), self.form)
            yield from zip((product.item_id for product in batch), tokens, strict=True)

    def sample(self, request: Request, products: Sequence[Product], contract: Contract) -> Sample:
        """The contract's inputs, by the tokenizer's own template for pairs."""
        texts = self.form.items(products)
        sequences = encode_pairs(self.tokenizer, self.form.query(request.query), texts, self.form)
        return {tensor.name: sequences[tensor.name] for tensor in contract.inputs}

    def tokens(self, sample: Sample) -> list[str]:
        """Of the first row, special ones included, without padding."""
        return row_tokens(self.tokenizer, sample)

    def truncated(self, request: Request, products: Sequence[Product]) -> int:
        """How many pairs are not read to their end."""
        return truncated_pairs(self.tokenizer, self.form.query(request.query), self.form.items(products), self.form)
