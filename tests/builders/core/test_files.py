"""Files and folders that are whole or absent."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from builders.core import files
from builders.core.files import fingerprint, folder_beside, sha256, write_atomically


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_a_fingerprint_changes_with_every_part_and_with_where_a_part_ends() -> None:
    assert fingerprint(["ab", "c"]) == fingerprint(["ab", "c"])
    assert len({fingerprint(parts) for parts in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"])}) == 4


@pytest.mark.parametrize("content", ["new 杯", b"\x00\xff"])
def test_a_file_is_replaced_and_readable_by_others(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "made" / "file"
    write_atomically(path, "old")
    write_atomically(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["file"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise Interrupted

    write_atomically(tmp_path / "file", "old")
    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(Interrupted):
        write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_whole_and_enterable_by_others(tmp_path: Path) -> None:
    with folder_beside(tmp_path / "model" / "1") as fresh:
        (fresh / "model.py").write_text("x")
        assert names(tmp_path / "model") == [fresh.name]
    assert names(tmp_path / "model" / "1") == ["model.py"]
    assert (tmp_path / "model" / "1").stat().st_mode & 0o777 == 0o755


def test_a_folder_being_filled_has_a_name_that_triton_takes_for_no_version(tmp_path: Path) -> None:
    with folder_beside(tmp_path / "1") as fresh:
        assert fresh.name.startswith(".")


def test_an_interrupted_folder_vanishes(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), folder_beside(tmp_path / "model" / "1") as fresh:
        (fresh / "half").write_text("x")
        raise Interrupted
    assert names(tmp_path / "model") == []


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".new-killed" / "deep").mkdir(parents=True)
    with folder_beside(tmp_path / "1"):
        pass
    assert names(tmp_path) == ["1"]


def test_a_folder_that_is_there_is_never_changed(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "kept").write_text("x")
    with (
        pytest.raises(FileExistsError, match="a version folder is never changed, choose the next number"),
        folder_beside(tmp_path / "1"),
    ):
        pytest.fail("the folder may not be given out")
    assert names(tmp_path / "1") == ["kept"]
