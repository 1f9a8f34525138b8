"""Pruned networks are really smaller (or sparser), still score, and what mattered is still there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from builders.compress.lists import tensors_of
from builders.compress.prune import (
    PruningError,
    RemappedEmbedding,
    encoder_layers,
    feed_forward_blocks,
    is_two_of_four,
    keep_layers,
    keep_rows,
    prune_channels,
    prune_heads,
    zero_smallest,
    zero_two_of_four,
)
from builders.data.unlabeled import UnlabeledList, unlabeled_lists
from builders.rankers.base import Sample
from builders.rankers.cross_encoder import CrossEncoderRanker
from builders.rankers.feature_ranker import FeatureRanker
from tests.support.small_rankers import (
    HIDDEN,
    IDS,
    REQUEST,
    backbone_of,
    catalogue,
    cross_encoder,
    priced_ranker,
    some_products,
)


@pytest.fixture
def text(tmp_path: Path) -> CrossEncoderRanker:
    return cross_encoder(tmp_path)


@pytest.fixture
def priced() -> FeatureRanker:
    return priced_ranker()


def lists_of(ranker: FeatureRanker | CrossEncoderRanker) -> list[dict[str, Sample]]:
    return tensors_of(ranker, unlabeled_lists(catalogue(), 6, 8, seed=3))


def parameters_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class Nothing(nn.Module):
    """Neither layers nor linear layers nor tables."""


# ---------------------------------------------------------------- layers
def test_the_layers_named_are_kept_and_the_configuration_says_how_many(text: CrossEncoderRanker) -> None:
    encoder: Any = backbone_of(text)
    second = encoder.layer[1]
    keep_layers(text.network, [1])
    assert list(encoder.layer) == [second]
    assert text.network.config.num_hidden_layers == 1
    assert np.isfinite(text.score(REQUEST, some_products())).all()


def test_a_network_without_its_last_layer_gives_what_its_first_layer_gave(text: CrossEncoderRanker) -> None:
    seen: list[torch.Tensor] = []
    encoder: Any = backbone_of(text)
    hook = encoder.layer[0].register_forward_hook(
        lambda _, __, output: seen.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    text.score(REQUEST, some_products())
    hook.remove()
    keep_layers(text.network, [0])
    sample = text.sample(REQUEST, some_products())["cross_encoder"]
    with torch.inference_mode():
        states = text.network._encode(*map(torch.from_numpy, sample.values()))
    np.testing.assert_allclose(states, seen[0], atol=1e-5)


def test_a_layer_that_the_encoder_has_not_is_refused(text: CrossEncoderRanker) -> None:
    with pytest.raises(PruningError, match=r"layers \[0, 2\] are to be kept, the encoder has 2: 0 to 1"):
        keep_layers(text.network, [0, 2])


def test_a_network_without_an_encoder_is_refused(priced: FeatureRanker) -> None:
    with pytest.raises(PruningError, match="no encoder of two or more like layers; leave the step out"):
        keep_layers(priced.network, [0])


def test_the_encoder_is_found_beside_a_list_of_other_modules() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolutions = nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 4)])
            self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])

    network = Both()
    convolutions, wanted = network.convolutions, [network.layers[2], network.layers[0]]
    assert encoder_layers(network)[1] is network.layers
    keep_layers(network, [2, 0])
    assert list(network.layers) == wanted
    assert network.convolutions is convolutions


# ---------------------------------------------------------------- heads
def test_half_of_the_heads_go_and_the_network_still_scores(text: CrossEncoderRanker) -> None:
    before = parameters_of(text.network)
    prune_heads(text, lists_of(text), 0.5)
    layer: Any
    for layer in backbone_of(text).layer:
        inner, output = layer.attention.self, layer.attention.output.dense
        assert [part.weight.shape for part in (inner.query, inner.key, inner.value)] == [(16, 32)] * 3
        assert [part.bias.shape for part in (inner.query, inner.key, inner.value)] == [(16,)] * 3
        assert output.weight.shape == (32, 16)
        assert (inner.num_attention_heads, inner.all_head_size) == (2, 16)
    assert parameters_of(text.network) < before
    assert np.isfinite(text.score(REQUEST, some_products())).all()


def test_the_heads_that_nothing_reads_are_those_removed(text: CrossEncoderRanker) -> None:
    layer: Any
    for layer in backbone_of(text).layer:  # heads of 8: the first and the third are not read
        with torch.no_grad():
            layer.attention.output.dense.weight[:, 0:8] = 0
            layer.attention.output.dense.weight[:, 16:24] = 0
    wanted = text.score(REQUEST, some_products())
    prune_heads(text, lists_of(text), 0.5)
    np.testing.assert_allclose(text.score(REQUEST, some_products()), wanted, atol=1e-4)


def test_every_layer_keeps_a_head(text: CrossEncoderRanker) -> None:
    prune_heads(text, lists_of(text), 0.99)
    encoder: Any = backbone_of(text)
    assert [layer.attention.self.num_attention_heads for layer in encoder.layer] == [1, 1]


def test_a_network_without_heads_is_refused(priced: FeatureRanker) -> None:
    with pytest.raises(PruningError, match="no layer with query, key and value projections; leave prune_heads out"):
        prune_heads(priced, [], 0.5)


# ---------------------------------------------------------------- channels
def test_feed_forward_blocks_of_an_encoder_lose_a_quarter_of_their_units(text: CrossEncoderRanker) -> None:
    prune_channels(text, lists_of(text), 0.25)
    layer: Any
    for layer in backbone_of(text).layer:
        assert layer.intermediate.dense.weight.shape == (48, 32)
        assert layer.intermediate.dense.bias.shape == (48,)
        assert layer.output.dense.weight.shape == (32, 48)
    head: Any = text.network.head.first_token
    assert (head[0].out_features, head[2].in_features) == (24, 24)
    assert np.isfinite(text.score(REQUEST, some_products())).all()


def test_hidden_layers_of_a_feature_ranker_shrink_and_its_inputs_and_output_do_not(priced: FeatureRanker) -> None:
    prune_channels(priced, lists_of(priced), 0.5)
    linear = [module for module in priced.network.modules() if isinstance(module, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(8, 8), (8, 8), (1, 8)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(8, 8), (8, 8), (8, 1)]
    assert priced.score(REQUEST, some_products()).shape == (12,)


def test_units_without_influence_are_those_removed(priced: FeatureRanker) -> None:
    first, second, _ = (module for module in priced.network.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        second.weight[:, ::2] = 0  # nothing reads every other unit, whatever it holds
        first.weight[::2] *= 100
        priced.network.mix[3].weight[:, 1::2] = 0
    wanted = priced.score(REQUEST, some_products())
    prune_channels(priced, lists_of(priced), 0.5)
    np.testing.assert_allclose(priced.score(REQUEST, some_products()), wanted, atol=1e-5)


def test_a_network_without_hidden_units_is_refused(priced: FeatureRanker) -> None:
    priced.network.mix = nn.Sequential(nn.Linear(8, 1))
    with pytest.raises(PruningError, match="no two linear layers with nothing but activations between them"):
        prune_channels(priced, [], 0.5)


def test_units_whose_values_go_elsewhere_too_are_no_block() -> None:
    normed = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    assert list(feed_forward_blocks(normed)) == []
    own_slopes = nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 1))
    assert list(feed_forward_blocks(own_slopes)) == []


def test_blocks_inside_another_module_of_a_sequence_are_found_once() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 4))

    assert len(list(feed_forward_blocks(nn.Sequential(Residual(), Residual())))) == 2


# ---------------------------------------------------------------- rows
def test_the_commonest_rows_are_kept_as_they_were_and_the_others_share_their_mean(priced: FeatureRanker) -> None:
    table = priced.network.items.weight.detach().clone()
    before = parameters_of(priced.network)
    products = some_products(10)
    used = sorted({int(row) for row in priced.sample(REQUEST, products)["priced"]["item"][:, 0]})
    samples = tensors_of(priced, [UnlabeledList(REQUEST, tuple(products))])
    keep_rows(priced, samples, 1 - 10 / (IDS + 2), min_rows=100)
    remapped = priced.network.items
    assert isinstance(remapped, RemappedEmbedding)
    assert remapped.weight.shape == (11, 5)
    assert parameters_of(priced.network) == before - (IDS + 2 - 11) * 5
    assert torch.equal(remapped(torch.tensor(used)), table[used])
    others = [row for row in range(IDS + 2) if row not in used]
    shared = remapped(torch.tensor(others))
    assert torch.equal(shared, shared[:1].expand_as(shared))
    np.testing.assert_allclose(shared[0].detach(), table[others].mean(dim=0), atol=1e-6)


def test_lists_of_common_items_score_as_before(priced: FeatureRanker) -> None:
    wanted = priced.score(REQUEST, some_products(10))
    samples = tensors_of(priced, [UnlabeledList(REQUEST, tuple(some_products(10)))])
    keep_rows(priced, samples, 0.9, min_rows=100)
    np.testing.assert_array_equal(priced.score(REQUEST, some_products(10)), wanted)


def test_short_tables_are_left_alone_and_none_long_enough_is_refused(priced: FeatureRanker) -> None:
    with pytest.raises(PruningError, match="no embedding of 303 rows or more; leave the step out, or lower min_rows"):
        keep_rows(priced, [], 0.5, min_rows=IDS + 3)
    assert isinstance(priced.network.items, nn.Embedding)


# ---------------------------------------------------------------- zeros
def test_the_smallest_weights_of_all_linear_layers_together_become_zero(priced: FeatureRanker) -> None:
    linear = [module for module in priced.network.modules() if isinstance(module, nn.Linear)]
    before = torch.cat([layer.weight.detach().flatten() for layer in linear])
    zero_smallest(priced.network, 0.75)
    after = torch.cat([layer.weight.detach().flatten() for layer in linear])
    assert (after == 0).float().mean().item() == pytest.approx(0.75, abs=0.002)
    assert before[after == 0].abs().max() <= before[after != 0].abs().min()
    assert torch.equal(after[after != 0], before[after != 0])
    assert not any("_orig" in name or "_mask" in name for name, _ in priced.network.named_parameters())


def test_zeros_without_a_linear_layer_are_refused() -> None:
    with pytest.raises(PruningError, match="no linear layer; leave prune_magnitude out"):
        zero_smallest(Nothing(), 0.5)


@pytest.mark.parametrize("method", ["sparse_magnitude", "sparsegpt"])
def test_two_of_every_four_weights_become_zero(text: CrossEncoderRanker, method: str) -> None:
    zero_two_of_four(text, lists_of(text)[:2], method)
    layer: Any = backbone_of(text).layer[0]
    for part in (layer.attention.self.query, layer.intermediate.dense, layer.output.dense):
        assert type(part) is nn.Linear
        assert is_two_of_four(part.weight)
        assert (part.weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)
    assert np.isfinite(text.score(REQUEST, some_products())).all()


def test_a_network_too_narrow_for_two_of_four_is_refused() -> None:
    narrow = priced_ranker()
    narrow.network.mix = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))
    with pytest.raises(PruningError, match=r"no linear layer could be made 2:4 sparse: .* multiples of 16"):
        zero_two_of_four(narrow, lists_of(narrow)[:1], "sparse_magnitude")


def test_two_of_four_is_told_by_each_group_of_four_in_a_row() -> None:
    assert is_two_of_four(torch.tensor([[1.0, 0, 0, 2, 0, 0, 0, 3]]))
    assert not is_two_of_four(torch.tensor([[0.0, 0, 0, 0, 1, 2, 3, 0]]))
    assert not is_two_of_four(torch.zeros(2, 6))
