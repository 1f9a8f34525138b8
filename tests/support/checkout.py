"""A copy of this checkout that shares its environments: nobody has built anything in it yet."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = (".venv", ".venv-server")
NOT_COPIED = (
    *ENVIRONMENTS, ".git", "build", "item_store", ".*_cache", "__pycache__", ".hypothesis", ".new-*", "admin.key"
)  # fmt: skip
NOT_COPIED_OF_MODELS = ("[0-9]*", "configs", "manifest.json*", ".lock")


def copy_of_checkout(target: Path) -> Path:
    """The copy; the test is skipped where ``make`` would set an environment up anew, which the copy shares."""
    for name in ENVIRONMENTS:
        if not _is_current(ROOT / name):
            pytest.skip(f"'make' would set {name} up anew, which the copy shares: run 'make setup' first")
    shutil.copytree(ROOT, target, ignore=_not_copied)
    for name in ENVIRONMENTS:
        (target / name).symlink_to(ROOT / name)
    return target


def _is_current(environment: Path) -> bool:
    """Whether make leaves it as it is."""
    prerequisites = [ROOT / "clients" / "pyproject.toml", *(ROOT / "requirements").glob("*.txt")]
    ready = environment / ".ready"
    return ready.exists() and ready.stat().st_mtime >= max(path.stat().st_mtime for path in prerequisites)


def _not_copied(folder: str, names: list[str]) -> set[str]:
    in_models = Path(folder).is_relative_to(ROOT / "model_repository")
    patterns = (*NOT_COPIED, *NOT_COPIED_OF_MODELS) if in_models else NOT_COPIED
    return shutil.ignore_patterns(*patterns)(folder, names)
