"""Network => smaller (or sparser) network. Every function changes what it is given: hand it a copy.

Structured pruning removes the same units from the layer that makes them and the one that reads them, so that the
exported graph is really smaller; importance is first-order Taylor expansion on real lists: |gradient x activation|
(Michel et al., arXiv:1905.10650; Molchanov et al., arXiv:1906.10771).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as masks

from builders.compress.lists import OnLists, scores_of
from builders.core.errors import BuilderError
from builders.core.quiet import quiet
from builders.rankers.base import Ranker, Sample

_ACTIVATIONS = (nn.ReLU, nn.GELU, nn.PReLU, nn.Sigmoid, nn.Tanh, nn.Dropout)


class PruningError(BuilderError):
    """The network has nothing that could be pruned so."""


class RemappedEmbedding(nn.Module):
    """An embedding with fewer rows than ids: ``rows_of`` says which row each id has."""

    rows_of: Tensor

    def __init__(self, table: Tensor, rows_of: Tensor) -> None:
        """table: float32 [rows, width]; rows_of: int32 [ids]."""
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.register_buffer("rows_of", rows_of.to(torch.int32))

    @property
    def weight(self) -> Tensor:
        """float32 [rows, width]."""
        return self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """int [...] => float32 [..., width]."""
        embedded: Tensor = self.embedding(self.rows_of[ids.long()])
        return embedded


@dataclasses.dataclass(frozen=True)
class Block:
    """Hidden units between two linear layers, in ``groups`` of equal size that come or go together (heads)."""

    producers: tuple[nn.Linear, ...]
    consumer: nn.Linear
    groups: int


# ---------------------------------------------------------------- structured
def keep_layers(network: nn.Module, keep: Sequence[int]) -> nn.Module:
    """Leave these layers of the encoder. Raises: PruningError: no encoder, or it has no such layer."""
    _, layers = encoder_layers(network)
    if max(keep) >= len(layers):
        raise PruningError(f"layers {list(keep)} are to be kept, the encoder has {len(layers)}: 0 to {len(layers) - 1}")
    set_layers(network, [layers[place] for place in keep])
    return network


def prune_channels(ranker: Ranker, samples: Sequence[dict[str, Sample]], amount: float) -> nn.Module:
    """Remove a share of each feed-forward block's hidden units. Raises: PruningError: no such block."""
    network = ranker.network
    blocks = list(feed_forward_blocks(network))
    if not blocks:
        raise PruningError("no two linear layers with nothing but activations between them; leave prune_channels out")
    _shrink_all(blocks, ranker, samples, amount)
    module: Any
    for module in network.modules():  # what Hugging Face layers say of themselves
        if hasattr(module, "intermediate") and hasattr(module.intermediate, "dense"):
            module.intermediate_size = module.intermediate.dense.out_features
    return network


def prune_heads(ranker: Ranker, samples: Sequence[dict[str, Sample]], amount: float) -> nn.Module:
    """Remove a share of each layer's attention heads. Raises: PruningError: no layer with heads."""
    network = ranker.network
    attentions = list(_attentions(network))
    if not attentions:
        raise PruningError("no layer with query, key and value projections; leave prune_heads out")
    blocks = [
        Block((inner.query, inner.key, inner.value), output.dense, inner.num_attention_heads)
        for inner, output in attentions
    ]
    _shrink_all(blocks, ranker, samples, amount)
    for inner, _ in attentions:
        inner.all_head_size = inner.query.out_features
        inner.num_attention_heads = inner.all_head_size // inner.attention_head_size
    return network


def keep_rows(ranker: Ranker, samples: Sequence[dict[str, Sample]], amount: float, min_rows: int) -> nn.Module:
    """Remove the embedding rows that the lists use least; their ids share one row, the mean of theirs.

    Raises:
        PruningError: no embedding has so many rows.
    """
    network = ranker.network
    tables = embeddings(network, min_rows)
    counts = {name: torch.zeros(table.num_embeddings, dtype=torch.int64) for name, table in tables.items()}
    with _counting(tables, counts), torch.inference_mode():
        for sample in samples:
            scores_of(ranker, sample)
    for name, table in tables.items():
        kept = max(1, round(table.num_embeddings * (1 - amount)))
        replace_module(network, name, _remapped(table, counts[name], kept))
    return network


# ---------------------------------------------------------------- unstructured
def zero_smallest(network: nn.Module, amount: float) -> nn.Module:
    """Zero a share of all linear weights together, the smallest. Raises: PruningError: no linear layer."""
    chosen = [(module, "weight") for module in network.modules() if isinstance(module, nn.Linear)]
    if not chosen:
        raise PruningError("no linear layer; leave prune_magnitude out")
    masks.global_unstructured(chosen, masks.L1Unstructured, amount=amount)
    for module, name in chosen:
        masks.remove(module, name)
    return network


def zero_two_of_four(ranker: Ranker, samples: Sequence[dict[str, Sample]], method: str) -> nn.Module:
    """The ranker's network made 2:4 sparse by ModelOpt, as plain weights. Raises: PruningError: no layer became so."""
    with quiet():  # it warns of versions
        import modelopt.torch.sparsity as sparsity

    config = {"data_loader": range(len(samples)), "collect_func": lambda place: place}
    with quiet():  # it names each layer
        sparsity.export(sparsity.sparsify(OnLists(ranker, samples), method, config=config))
    network = ranker.network
    if not any(is_two_of_four(module.weight) for module in network.modules() if isinstance(module, nn.Linear)):
        raise PruningError("no linear layer could be made 2:4 sparse: ModelOpt wants widths that are multiples of 16")
    return network


def is_two_of_four(weight: Tensor) -> bool:
    """Whether at least two of every four neighbours in a row are zero. weight: [outputs, inputs]."""
    if weight.shape[1] % 4:
        return False
    zeros = (weight.reshape(weight.shape[0], -1, 4) == 0).sum(dim=2)
    return bool((zeros >= 2).all())


# ---------------------------------------------------------------- finding parts
def encoder_layers(network: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """(the module that holds them, the layers) of the longest ``ModuleList`` of like layers.

    Raises:
        PruningError: there is none of two or more.
    """
    found = [
        (owner, layers)
        for owner in network.modules()
        for layers in owner.children()
        if isinstance(layers, nn.ModuleList) and len(layers) > 1 and len(set(map(_form, layers))) == 1
    ]
    if not found:
        raise PruningError("no encoder of two or more like layers; leave the step out")
    return max(found, key=lambda pair: len(pair[1]))


def _form(layer: nn.Module) -> tuple[object, ...]:
    return (type(layer), *(parameter.shape for parameter in layer.parameters()))


def set_layers(network: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Replace the layers found by :func:`encoder_layers`, and the number that configurations name."""
    owner, found = encoder_layers(network)
    name = next(name for name, child in owner.named_children() if child is found)
    setattr(owner, name, nn.ModuleList(layers))
    for module in network.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "num_hidden_layers"):
            config.num_hidden_layers = len(layers)


def embeddings(network: nn.Module, min_rows: int) -> dict[str, nn.Embedding]:
    """Name => table of at least ``min_rows`` rows. Raises: PruningError: there is none."""
    found = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings >= min_rows
    }
    if not found:
        raise PruningError(f"no embedding of {min_rows} rows or more; leave the step out, or lower min_rows")
    return found


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``network`` has a submodule of this dotted name."""
    owner, _, last = name.rpartition(".")
    setattr(network.get_submodule(owner), last, module)


def feed_forward_blocks(network: nn.Module) -> Iterator[Block]:
    """Linear, activation, linear: in Hugging Face layers, and in ``nn.Sequential``, nested ones too."""
    module: Any
    for module in network.modules():
        if hasattr(module, "intermediate") and hasattr(module, "output") and hasattr(module.output, "dense"):
            yield Block((module.intermediate.dense,), module.output.dense, module.intermediate.dense.out_features)
        elif isinstance(module, nn.TransformerEncoderLayer):
            yield Block((module.linear1,), module.linear2, module.linear1.out_features)
    inside = {id(child) for module in network.modules() if isinstance(module, nn.Sequential)
              for child in module.children()}  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.Sequential) and id(module) not in inside:
            yield from _chained(list(_flat(module)))


def _chained(parts: Sequence[nn.Module]) -> Iterator[Block]:
    last: nn.Linear | None = None
    for part in parts:
        if isinstance(part, nn.Linear):
            if last is not None:
                yield Block((last,), part, last.out_features)
            last = part
        elif not isinstance(part, _ACTIVATIONS) or (isinstance(part, nn.PReLU) and part.num_parameters > 1):
            last = None


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.Sequential):
            yield from _flat(child)
        else:
            yield child


def _attentions(network: nn.Module) -> Iterator[tuple[Any, Any]]:
    """(self-attention, its output projection) of each Hugging Face layer."""
    for module in network.modules():
        inner, output = getattr(module, "self", None), getattr(module, "output", None)
        if isinstance(inner, nn.Module) and hasattr(inner, "num_attention_heads") and hasattr(output, "dense"):
            yield inner, output


# ---------------------------------------------------------------- importance and surgery
def _shrink_all(blocks: Sequence[Block], ranker: Ranker, samples: Sequence[dict[str, Sample]], amount: float) -> None:
    importance = _importance(blocks, ranker, samples)
    for block, scores in zip(blocks, importance, strict=True):
        of_groups = scores.reshape(block.groups, -1).sum(dim=1)
        kept_groups = max(1, round(block.groups * (1 - amount)))
        kept = torch.sort(torch.topk(of_groups, kept_groups).indices).values
        size = len(scores) // block.groups
        units = (kept[:, None] * size + torch.arange(size)).reshape(-1)
        for producer in block.producers:
            _keep_outputs(producer, units)
        _keep_inputs(block.consumer, units)


def _importance(blocks: Sequence[Block], ranker: Ranker, samples: Sequence[dict[str, Sample]]) -> list[Tensor]:
    """float32 [units] a block: the mean of |gradient x activation| of what its consumer reads."""
    found = [torch.zeros(block.consumer.in_features) for block in blocks]
    hooks = [
        block.consumer.register_forward_pre_hook(_accumulating(found[place])) for place, block in enumerate(blocks)
    ]
    try:
        for sample in samples:
            ranker.network.zero_grad()
            # the variance within the list: what the order depends on
            scores_of(ranker, sample).var(correction=0).backward()
    finally:
        for hook in hooks:
            hook.remove()
        ranker.network.zero_grad()
    return found


def _accumulating(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        [activation] = inputs

        def accumulate(gradient: Tensor) -> None:
            total.add_((gradient * activation.detach()).abs().flatten(0, -2).mean(dim=0))

        if activation.requires_grad:
            activation.register_hook(accumulate)

    return hook


def _keep_outputs(layer: nn.Linear, units: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[units].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[units].clone())
    layer.out_features = len(units)


def _keep_inputs(layer: nn.Linear, units: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[:, units].clone())
    layer.in_features = len(units)


class _counting:
    """While entered, counts which rows of the tables are looked up."""

    def __init__(self, tables: dict[str, nn.Embedding], counts: dict[str, Tensor]) -> None:
        self._hooks = [
            table.register_forward_pre_hook(lambda _, inputs, name=name: _count(counts[name], inputs[0]))
            for name, table in tables.items()
        ]

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _count(total: Tensor, ids: Tensor) -> None:
    total += torch.bincount(ids.reshape(-1).long(), minlength=len(total))


def _remapped(table: nn.Embedding, counts: Tensor, kept: int) -> RemappedEmbedding:
    """The ``kept`` commonest rows, and one more for all others: their mean."""
    order = torch.argsort(counts, descending=True, stable=True)
    common, rare = torch.sort(order[:kept]).values, order[kept:]
    rows_of = torch.full((len(counts),), kept, dtype=torch.int32)
    rows_of[common] = torch.arange(kept, dtype=torch.int32)
    shared = table.weight.detach()[rare].mean(dim=0, keepdim=True)
    return RemappedEmbedding(torch.cat([table.weight.detach()[common], shared]), rows_of)
