"""What the tests may write: a kit of their own, never what a developer built and serves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builders.core.workspace import PROJECT
from tests.support.kit import DEVELOPERS, WORKSPACE, Untouched


def test_the_tests_kit_lies_in_none_of_the_developers_folders() -> None:
    for folder in (WORKSPACE.build, WORKSPACE.repository, WORKSPACE.item_store):
        assert not [path for path in DEVELOPERS if folder.is_relative_to(path) or path.is_relative_to(folder)]


@pytest.mark.server
def test_building_and_serving_the_kit_writes_to_none_of_the_developers_files(
    developers_folders: Untouched, request: pytest.FixtureRequest
) -> None:
    assert {PROJECT.repository, PROJECT.item_store} < set(developers_folders.paths)
    request.getfixturevalue("served_kit")
    assert developers_folders.touched() == []


@pytest.mark.parametrize("change", ["write", "add", "remove"])
def test_a_file_that_was_written_added_or_removed_is_named(tmp_path: Path, change: str) -> None:
    file, new = tmp_path / "models" / "config.pbtxt", tmp_path / "models" / "new"
    file.parent.mkdir()
    file.write_text("a")
    os.utime(file, (0, 0))
    folders = Untouched((tmp_path / "models", tmp_path / "absent"))
    assert folders.touched() == []
    {"write": lambda: file.write_text("b"), "add": lambda: new.write_text(""), "remove": file.unlink}[change]()
    assert folders.touched() == [str(new if change == "add" else file)]
    folders.look()
    assert folders.touched() == []
