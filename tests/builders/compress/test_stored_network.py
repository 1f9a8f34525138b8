"""Networks between two steps are read by name: nothing that a file says is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from builders.compress.low_rank import LowRankEmbedding
from builders.compress.stored_network import StoredNetworkError, can_be_stored, load_network, save_network
from tests.support.small_rankers import Priced


class Runs:
    """A pickle of it makes a folder when it is read without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_network_comes_back_with_layers_that_the_trained_one_has_not(tmp_path: Path) -> None:
    network = Priced()
    network.items = LowRankEmbedding(network.items.weight.detach(), 2)  # type: ignore[assignment]
    network.mix[1] = nn.Sequential(nn.Linear(16, 3), nn.GELU(), nn.Linear(3, 16))
    save_network(network, tmp_path / "n.pt")
    loaded = load_network(tmp_path / "n.pt", Priced())

    given = torch.tensor([[3], [7]], dtype=torch.int32), torch.ones(2, 3)
    assert torch.equal(loaded(*given), network(*given))


@pytest.mark.parametrize("inside", [lambda runs: runs, lambda runs: {"a": runs}, lambda runs: nn.ModuleList()])
def test_code_in_a_stored_network_is_refused_and_not_run(tmp_path: Path, inside) -> None:
    mark = tmp_path / "mark"
    written = inside(Runs(mark))
    if isinstance(written, nn.Module):
        written.hidden = Runs(mark)
    torch.save(written, tmp_path / "n.pt")
    with pytest.raises(
        StoredNetworkError, match=r"n\.pt: holds 'posix\.mkdir', wanted modules .* remove it, and the next"
    ):
        load_network(tmp_path / "n.pt", Priced())
    assert not mark.exists()

    torch.load(tmp_path / "n.pt", weights_only=False)
    assert mark.exists(), "the file would have run"


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "n.pt").write_bytes(pickle.dumps(Runs(tmp_path / "mark")))
    with pytest.raises(StoredNetworkError, match=r"n\.pt: not a network that a step wrote"):
        load_network(tmp_path / "n.pt", Priced())
    assert not (tmp_path / "mark").exists()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.ones(1)}, tmp_path / "n.pt")
    with pytest.raises(StoredNetworkError, match="holds dict, wanted a network"):
        load_network(tmp_path / "n.pt", Priced())


def test_a_network_that_holds_a_function_of_pythons_own_is_not_stored() -> None:
    network = Priced()
    assert can_be_stored(network)
    network.by_name = getattr  # type: ignore[assignment]
    assert not can_be_stored(network)
