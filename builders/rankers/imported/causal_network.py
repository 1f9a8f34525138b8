"""A causal language model as a reranker: transformers' own network, of whose vocabulary only the asked tokens are
computed, on whole sequences or on what follows a prefix that is encoded once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from builders.core.contract import length_step
from builders.rankers.backbone import CheckpointError

SAME = 1e-4
"""Largest difference of two scores that are the same but for rounding, in units of the larger of 1 and the score."""


class CausalScorer(nn.Module):
    """Whole sequences => scores.

    Args:
        network: transformers' ``*ForCausalLM``; left as it is.
        score: sentence-transformers' ``LogitScore``, which names the asked tokens.
        activation: of the score.

    Raises:
        CheckpointError: the network has no linear layer that gives its logits.
    """

    def __init__(self, network: Any, score: Any, activation: nn.Module) -> None:
        super().__init__()
        asked = [score.true_token_id] if score.false_token_id is None else [score.true_token_id, score.false_token_id]
        self.network = _with_tokens(network, asked)
        self.score = type(score)(true_token_id=0, false_token_id=None if len(asked) == 1 else 1)
        self.activation = activation

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int32 [rows, length] twice, padded on the right => float32 [rows, 1]."""
        logits = self.network(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return self.of_last(logits, attention_mask)

    def of_last(self, logits: Tensor, attention_mask: Tensor) -> Tensor:
        """float32 [rows, length, asked], int32 [rows, length] => float32 [rows, 1]: of each row's last own token."""
        last = (attention_mask.sum(dim=1, keepdim=True) - 1).clamp(min=0).to(torch.int64)
        own = logits.gather(1, last.unsqueeze(2).expand(-1, -1, logits.shape[2]))
        scores: Tensor = self.activation(self.score({self.score.module_input_name: own})["scores"].float())
        return scores


class PrefixEncoder(nn.Module):
    """What all sequences of a request start with => its keys and values in every layer."""

    def __init__(self, scorer: CausalScorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, prefix_ids: Tensor) -> Tensor:
        """int32 [1, prefix], padded on the right, which no token before sees => float32 [layers, 2, heads, prefix,
        width]."""
        cache: Any = DynamicCache()
        self.scorer.network(input_ids=prefix_ids, past_key_values=cache, use_cache=True)
        return torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]).float()


class SuffixScorer(nn.Module):
    """What follows the prefix in each row => scores."""

    def __init__(self, scorer: CausalScorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, prefix_length: Tensor, prefix_keys_values: Tensor
    ) -> Tensor:
        """int32 [candidates, length] twice, padded on the right, int32 [1], float32 [layers, 2, heads, prefix, width]
        => float32 [candidates, 1]."""
        candidates, length = input_ids.shape
        start = prefix_length.to(torch.int64)
        columns = torch.arange(prefix_keys_values.shape[3], device=input_ids.device)
        of_prefix = (columns < start).to(torch.int64).expand(candidates, -1)
        logits = self.scorer.network(
            input_ids=input_ids,
            attention_mask=torch.cat([of_prefix, torch.ones_like(input_ids, dtype=torch.int64)], dim=1),
            position_ids=(start + torch.arange(length, device=input_ids.device)).expand(candidates, -1),
            past_key_values=_filled(prefix_keys_values, candidates),
            use_cache=True,
        ).logits
        return self.scorer.of_last(logits, attention_mask)


def _filled(keys_values: Tensor, rows: int) -> DynamicCache:
    cache = DynamicCache()
    for layer, of_layer in enumerate(keys_values.unbind()):
        keys, values = (one.unsqueeze(0).expand(rows, -1, -1, -1) for one in of_layer.unbind())
        cache.update(keys, values, layer)
    return cache


def _with_tokens(network: Any, tokens: list[int]) -> Any:
    """The same network, whose logits are those of some tokens alone; what scales or caps logits is its own code."""
    head = network.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise CheckpointError(
            f"{network.name_or_path}: {type(network).__name__} makes its logits by {type(head).__name__}, wanted a "
            "linear layer, whose rows are the tokens"
        )
    rows = nn.Linear(head.in_features, len(tokens), bias=head.bias is not None, dtype=head.weight.dtype)
    with torch.no_grad():
        rows.weight.copy_(head.weight[tokens])
        if head.bias is not None:
            rows.bias.copy_(head.bias[tokens])
    shared = copy.copy(network)
    shared._modules = dict(network._modules)
    shared.set_output_embeddings(rows)
    return shared


# ---------------------------------------------------------------- whether a prefix can be shared
def why_no_prefix(scorer: CausalScorer, arrays: list[dict[str, Tensor]], max_length: int) -> str:
    """Why the network does not score by a prefix's keys and values; "" where it does.

    Args:
        scorer: without an activation, which could hide a difference.
        arrays: of some requests: the inputs of both graphs by name, and ``whole_ids``, ``whole_mask``.
    """
    window = _narrowest_window(scorer.network)
    if window is not None and window < max_length + length_step(max_length):
        return f"some layers see {window} tokens, sequences have up to {max_length}"
    try:
        return "" if all(map(_agrees, [scorer] * len(arrays), arrays)) else "its scores differ by it"
    except Exception as error:  # networks without such a cache raise what they meet
        return f"{type(scorer.network).__name__} does not take it ({type(error).__name__})"


def _agrees(scorer: CausalScorer, of_request: dict[str, Tensor]) -> bool:
    with torch.inference_mode():
        wanted = scorer(of_request["whole_ids"], of_request["whole_mask"])
        keys_values = PrefixEncoder(scorer)(of_request["prefix_ids"])
        rests = (of_request[name] for name in ("input_ids", "attention_mask", "prefix_length"))
        found = SuffixScorer(scorer)(*rests, keys_values)
    return bool(((found - wanted).abs() <= SAME * wanted.abs().clamp(min=1)).all())


def _narrowest_window(network: Any) -> int | None:
    config = network.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and set(kinds) == {"full_attention"}:
        return None
    limits = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((int(limit) for limit in limits if limit), default=None)


def check_positions_stay(network: Any, folder: Path) -> None:
    """Raises: CheckpointError: rotary positions are stretched by the longest sequence of a batch."""
    found = str(getattr(network.config.get_text_config(), "rope_parameters", None))
    if kind := next((kind for kind in ("dynamic", "longrope") if f"'{kind}'" in found), None):
        raise CheckpointError(
            f"{folder}: its rotary positions are of the kind '{kind}': the library's own scores depend on the longest "
            "text beside; wanted a fixed kind, such as 'default', 'linear', 'llama3' or 'yarn', in config.json"
        )
