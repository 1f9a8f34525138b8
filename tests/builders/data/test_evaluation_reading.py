"""The data that recipes are judged on, as it is in the files now."""

from __future__ import annotations

from pathlib import Path

from builders.data.beir import GENERATED_MARK, JudgedQueries, Product, write_judged
from builders.data.evaluation import evaluation_data
from builders.data.find import DataSource
from builders.data.synthetic import write_generated


def write(folder: Path, title: str) -> None:
    write_judged(JudgedQueries({"q1": "mug"}, {"a": Product("a", title)}, {"q1": {"a": 3}}), folder)


def test_data_is_read_again_only_when_a_file_changed(tmp_path: Path) -> None:
    write(tmp_path, "mug")
    first = evaluation_data("judged", tmp_path)
    assert evaluation_data("judged", tmp_path) is first
    write(tmp_path, "tent for two")
    again = evaluation_data("judged", tmp_path)
    assert again.products["a"].title == "tent for two"
    assert again.digest != first.digest


def test_generated_data_is_known_as_such_however_it_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "generated"
    write_generated(folder)
    assert evaluation_data("judged", folder).generated
    assert evaluation_data("purchases", folder).generated
    assert DataSource(folder, "option", "").generated

    (folder / GENERATED_MARK).unlink()  # as earlier versions wrote it
    write_generated(folder)
    assert (folder / GENERATED_MARK).is_file()

    write(tmp_path, "mug")
    assert not evaluation_data("judged", tmp_path).generated
