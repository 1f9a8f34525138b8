"""A product is made once for what it was made from, whole or not at all, and says why it is made anew."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.core.keeper import drop_unused, keep, keep_figures


class Kitchen:
    """Makes a file with one beside it, and counts."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / "model.xml"
        self.beside = folder / "model.bin"
        self.made = 0
        self.said: list[str] = []

    def make(self, target: Path, source: Any) -> dict[str, Any]:
        self.made += 1
        target.with_suffix(".bin").write_text("weights")
        target.write_text(f"product {self.made}")
        return {"layers": 3}

    def keep(self, make: Callable[..., Any] | None = None, **inputs: object) -> Any:
        return keep(self.target, inputs, make or self.make, beside=[self.beside], say=self.said.append)


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


def test_a_product_is_made_once(kitchen: Kitchen) -> None:
    first, second = kitchen.keep(data="a"), kitchen.keep(data="a")
    assert first == second
    assert kitchen.made == 1
    assert second.told == {"layers": 3}
    assert kitchen.said == []


def test_what_the_maker_wrote_beside_it_belongs_to_it_unnamed(kitchen: Kitchen) -> None:
    def with_data(target: Path, source: Any) -> None:
        kitchen.make(target, source)
        target.with_name(f"{target.name}.data").write_text("weights")

    data = kitchen.target.with_name("model.xml.data")
    kitchen.keep(with_data, data="a")
    data.unlink()
    kitchen.keep(with_data, data="a")
    assert kitchen.made == 2 and data.is_file()
    kitchen.keep(kitchen.make, data="b")
    assert kitchen.made == 3 and not data.exists()


def test_it_is_made_anew_for_other_inputs_and_says_which(kitchen: Kitchen) -> None:
    kitchen.keep(data="a", libraries="1")
    kitchen.keep(data="b", libraries="1")
    assert kitchen.made == 2
    assert kitchen.said == ["model.xml: made anew, as data changed"]


@pytest.mark.parametrize("lost", ["target", "beside"])
def test_it_is_made_anew_where_a_file_of_it_is_gone(kitchen: Kitchen, lost: str) -> None:
    kitchen.keep(data="a")
    getattr(kitchen, lost).unlink()
    kitchen.keep(data="a")
    assert kitchen.made == 2


def test_what_was_there_stays_when_making_fails(kitchen: Kitchen) -> None:
    kitchen.keep(data="a")

    def half(target: Path, source: Any) -> None:
        target.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kitchen.keep(half, data="b")
    assert kitchen.target.read_text() == "product 1"
    assert kitchen.keep(data="a").path == kitchen.target
    assert kitchen.made == 1
    assert {path.name for path in kitchen.target.parent.iterdir()} == {"model.xml", "model.bin", "model.xml.made"}


@pytest.mark.parametrize("mark", ["", "{", "[]", "{}", '{"made_from": "abc", "seconds": 1}'])
def test_a_mark_that_is_none_of_ours_counts_for_nothing(kitchen: Kitchen, mark: str) -> None:
    kitchen.keep(data="a")
    kitchen.target.with_name("model.xml.made").write_text(mark)
    kitchen.keep(data="a")
    assert kitchen.made == 2


def test_the_source_is_asked_for_only_where_something_is_made(tmp_path: Path) -> None:
    asked: list[str] = []

    def source() -> None:
        asked.append("source")

    for _ in range(2):
        keep(tmp_path / "a", {"x": 1}, lambda target, made_of: target.write_text("a") and None, source=source)
    assert asked == ["source"]


# ---------------------------------------------------------------- figures
def test_figures_are_computed_once_for_their_inputs(tmp_path: Path) -> None:
    said: list[str] = []
    computed: list[int] = []

    def compute() -> dict[str, float]:
        computed.append(1)
        return {"ndcg": 0.5}

    for head_weights in ([1.0], [1.0], [2.0]):
        found = keep_figures(tmp_path / "fp32.json", {"head_weights": head_weights}, compute, say=said.append)
        assert found == {"ndcg": 0.5}
    assert len(computed) == 2
    assert said == ["fp32: measured anew, as head_weights changed"]
    assert set(json.loads((tmp_path / "fp32.json").read_text())) == {"ndcg", "made_from"}


def test_figures_that_cannot_be_read_as_figures_are_computed_anew(tmp_path: Path) -> None:
    path = tmp_path / "fp32.json"
    keep_figures(path, {"a": 1}, lambda: {"old": 1})
    assert keep_figures(path, {"a": 1}, lambda: {"new": 1}, valid=lambda stored: "new" in stored) == {"new": 1}
    path.write_text("half a f")
    assert keep_figures(path, {"a": 1}, lambda: {"new": 2}) == {"new": 2}


def test_what_no_build_asked_for_in_so_many_days_goes_with_all_its_files(kitchen: Kitchen) -> None:
    kitchen.keep(data="a")
    folder, ten_days_ago = kitchen.target.parent, time.time() - 10 * 86_400
    (folder / ".new-killed").mkdir()
    (folder / "a file of somebody else").write_text("")
    for path in folder.iterdir():
        os.utime(path, (ten_days_ago, ten_days_ago))
    assert drop_unused(folder, 11) == (0, 0)
    kitchen.keep(data="a")  # asked for now
    assert drop_unused(folder, 9) == (0, 0)
    os.utime(folder / "model.xml.made", (ten_days_ago, ten_days_ago))
    assert drop_unused(folder, 9) == (1, len("product 1") + len("weights"))
    assert [path.name for path in folder.iterdir()] == ["a file of somebody else"]
