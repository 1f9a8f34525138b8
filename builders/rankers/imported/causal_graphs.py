"""A causal scorer as graphs: a prefix once and what follows it, or whole sequences."""

from __future__ import annotations

import dataclasses

import torch

from builders.core.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    MAX_CANDIDATES,
    SCORE,
    Contract,
    Tensor,
    length_buckets,
)
from builders.rankers.base import Graph
from builders.rankers.imported.causal_network import CausalScorer, PrefixEncoder, SuffixScorer

_PADDED = "padded_prefix_length"
PREFIX_IDS = Tensor("prefix_ids", "INT32", (1, _PADDED), "what all candidates' token ids start with, padded")
PREFIX_LENGTH = Tensor("prefix_length", "INT32", (1,), "how many of prefix_ids are no padding; may be 0")
SUFFIXES = tuple(
    dataclasses.replace(tensor, dims=("candidates", "length"), meaning=f"{tensor.meaning}, after the prefix")
    for tensor in (INPUT_IDS, ATTENTION_MASK)
)
WHOLE = (INPUT_IDS, ATTENTION_MASK)


def prefix_graphs(name: str, scorer: CausalScorer, max_length: int) -> list[Graph]:
    """``<name>_prefix``, once a request, and ``<name>`` on what follows in each row. Rows of several requests are never
    joined: each has its own prefix. Those of one are run in parts, each with the whole prefix."""
    keys_values = _keys_values(scorer)
    prefix = Contract(f"{name}_prefix", (PREFIX_IDS,), (keys_values,))
    suffix = _scoring(name, (*SUFFIXES, PREFIX_LENGTH, keys_values), "candidates")
    return [
        Graph(prefix.name, PrefixEncoder(scorer), prefix, batches=False),
        Graph(
            suffix.name,
            SuffixScorer(scorer),
            suffix,
            batches=False,
            lengths=length_buckets(max_length),
            splits=True,
            padding_mask=ATTENTION_MASK.name,
        ),
    ]


def whole_graph(name: str, scorer: CausalScorer, max_length: int) -> Graph:
    """A row a candidate; rows of requests of equal padded length may be joined."""
    lengths = length_buckets(max_length)
    contract = _scoring(name, WHOLE, "rows")
    return Graph(name, scorer, contract, True, MAX_CANDIDATES, lengths, padding_mask=ATTENTION_MASK.name)


def _scoring(name: str, inputs: tuple[Tensor, ...], rows: str) -> Contract:
    score = dataclasses.replace(SCORE, dims=(rows, 1))
    return Contract(name, inputs, (score,), score="as CrossEncoder.predict gives it; higher is better")


def _keys_values(scorer: CausalScorer) -> Tensor:
    with torch.inference_mode():
        layers, both, heads, _, width = PrefixEncoder(scorer)(torch.zeros((1, 1), dtype=torch.int32)).shape
    meaning = "keys and values of the prefix in every layer"
    return Tensor("prefix_keys_values", "FP32", (layers, both, heads, _PADDED, width), meaning)
