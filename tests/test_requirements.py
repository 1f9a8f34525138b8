"""The pinned environments: each package with its hashes, but for torch, whose file differs by package index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "requirements"
LOCKED = ("builders", "server", "gateway", "container", "supply-chain")
_NAME = re.compile(r"[\w.-]+")


def entries(name: str) -> list[str]:
    """Each package of a locked file, with its hashes, as one line."""
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", "")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def normalised(name: str) -> str:
    """As package indexes compare names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def named(lines: list[str]) -> set[str]:
    found = (_NAME.match(line) for line in lines if line and not line.startswith(("#", "-")))
    return {normalised(match.group()) for match in found if match}


@pytest.mark.parametrize("name", LOCKED)
def test_every_package_is_pinned_with_a_hash(name: str) -> None:
    without = [
        line for line in entries(name) if not re.fullmatch(r"[\w.-]+==\S+( +--hash=sha256:[0-9a-f]{64})+ *", line)
    ]
    assert entries(name)
    assert without == []


@pytest.mark.parametrize("name", ["builders", "server", "gateway", "supply-chain"])
def test_what_is_asked_for_is_locked(name: str) -> None:
    wanted = named((FOLDER / f"{name}.in").read_text(encoding="utf-8").splitlines())
    assert wanted <= named(entries(name))


def test_the_gateways_image_has_the_versions_that_its_tests_ran_with() -> None:
    def pinned(name: str) -> set[str]:
        return {line.split()[0] for line in entries(name)}

    assert pinned("gateway") <= pinned("builders")


def test_torch_is_pinned_apart() -> None:
    assert named((FOLDER / "torch.txt").read_text(encoding="utf-8").splitlines()) == {"torch"}
    assert "-r torch.txt" in (FOLDER / "builders.in").read_text(encoding="utf-8").splitlines()
    assert "torch" not in named(entries("builders"))
