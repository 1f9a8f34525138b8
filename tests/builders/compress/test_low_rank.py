"""Factorised tables are exact where the table has that form, and shared layers share their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from builders.compress.low_rank import LowRankEmbedding, QuotientRemainderEmbedding, factorize, hash_rows, share_layers
from builders.compress.prune import PruningError
from tests.support.small_rankers import IDS, REQUEST, backbone_of, cross_encoder, priced_ranker, some_products

ALL_IDS = torch.arange(30, dtype=torch.int32)


def table(seed: int, *shape: int) -> Tensor:
    """float32, normal."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# ---------------------------------------------------------------- low rank
def test_a_table_of_low_rank_is_factorised_exactly() -> None:
    whole = table(0, 30, 3) @ table(1, 3, 8)
    small = LowRankEmbedding(whole, rank=3)
    np.testing.assert_allclose(small(ALL_IDS).detach(), whole, atol=1e-5)
    assert parameters_of(small) == 30 * 3 + 3 * 8


def test_a_table_of_higher_rank_loses_its_smallest_singular_values() -> None:
    whole = table(0, 30, 8)
    error = torch.linalg.norm(LowRankEmbedding(whole, rank=5)(ALL_IDS).detach() - whole)
    lost = torch.linalg.svdvals(whole)[5:]
    assert error.item() == pytest.approx(torch.linalg.norm(lost).item(), rel=1e-4)


def test_the_long_tables_of_a_network_become_of_low_rank_and_it_still_scores() -> None:
    ranker = priced_ranker()
    network: Any = ranker.network
    with torch.no_grad():
        network.items.weight.copy_(table(0, IDS + 2, 2) @ table(1, 2, 5))
    wanted, before = ranker.score(REQUEST, some_products()), parameters_of(network)
    factorize(network, rank=2, min_rows=100)
    assert isinstance(network.items, LowRankEmbedding)
    assert parameters_of(network) == before - (IDS + 2) * 3 + 2 * 5
    np.testing.assert_allclose(ranker.score(REQUEST, some_products()), wanted, atol=1e-5)


def test_a_rank_that_saves_nothing_is_refused() -> None:
    with pytest.raises(PruningError, match="no table of 100 rows or more is wider than rank 5; lower the rank"):
        factorize(priced_ranker().network, rank=5, min_rows=100)


def test_a_network_without_long_tables_is_refused() -> None:
    with pytest.raises(PruningError, match="no embedding of 1000 rows or more"):
        factorize(priced_ranker().network, rank=2, min_rows=1000)


# ---------------------------------------------------------------- quotient and remainder
@pytest.mark.parametrize("rows", [5, 7])
def test_a_table_that_is_such_a_sum_is_fitted_exactly_at_whole_quotients(rows: int) -> None:
    ids = torch.arange(4 * rows)
    whole = table(0, 4, 6)[ids // rows] + table(1, rows, 6)[ids % rows]
    small = QuotientRemainderEmbedding(whole, rows)
    np.testing.assert_allclose(small(ids).detach(), whole, atol=1e-5)
    assert parameters_of(small) == (4 + rows) * 6


def test_ids_up_to_the_last_of_a_part_quotient_have_an_embedding() -> None:
    small = QuotientRemainderEmbedding(table(0, 30, 6), rows=7)
    found = small(ALL_IDS.reshape(2, 15))
    assert found.shape == (2, 15, 6)
    assert torch.isfinite(found).all()
    assert torch.equal(found[1, 14], small.quotients.weight[4] + small.remainders.weight[1])


def test_the_fit_of_any_table_is_nearer_than_its_mean() -> None:
    whole = table(0, 28, 6)
    error = (QuotientRemainderEmbedding(whole, 7)(torch.arange(28)).detach() - whole).square().mean()
    assert error < (whole - whole.mean(dim=0)).square().mean()


def test_the_long_tables_of_a_network_become_sums_and_it_still_scores() -> None:
    ranker = priced_ranker()
    network: Any = ranker.network
    hash_rows(network, rows=20, min_rows=100)
    assert isinstance(network.items, QuotientRemainderEmbedding)
    assert parameters_of(network.items) == (20 + 16) * 5
    assert np.isfinite(ranker.score(REQUEST, some_products())).all()


def test_more_rows_than_the_table_has_are_refused() -> None:
    with pytest.raises(PruningError, match=f"no embedding of {IDS + 3} rows or more"):
        hash_rows(priced_ranker().network, rows=IDS + 2, min_rows=100)


# ---------------------------------------------------------------- shared layers
def test_both_layers_use_the_weights_of_the_first(tmp_path: Path) -> None:
    ranker = cross_encoder(tmp_path)
    encoder: Any = backbone_of(ranker)
    before, of_a_layer = parameters_of(ranker.network), parameters_of(encoder.layer[1])
    share_layers(ranker.network, groups=1)
    first, second = encoder.layer
    assert [one.data_ptr() for one in first.parameters()] == [one.data_ptr() for one in second.parameters()]
    assert parameters_of(ranker.network) == before - of_a_layer
    assert ranker.network.config.num_hidden_layers == 2
    assert np.isfinite(ranker.score(REQUEST, some_products())).all()


def test_neighbours_share_and_groups_do_not() -> None:
    network = nn.Sequential()
    network.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(6)])
    first, _, _, fourth, _, _ = network.layers
    share_layers(network, groups=2)
    assert list(network.layers) == [first, first, first, fourth, fourth, fourth]


def test_groups_that_do_not_part_the_layers_evenly_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PruningError, match="2 layers do not part into 3 equal groups; choose a divisor"):
        share_layers(cross_encoder(tmp_path).network, groups=3)
