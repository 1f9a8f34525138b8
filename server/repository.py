"""Reads a model repository's folders; writes nothing. Knows nothing of what is inside a config.pbtxt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from server.errors import RepositoryError


def model_names(repository: Path) -> list[str]:
    """Return the names of the models in a repository: its folders that hold a configuration or a version folder."""
    if not repository.is_dir():
        raise RepositoryError(f"model repository {repository}: no such folder; run 'make repository' to write one.")
    names = sorted(folder.name for folder in repository.iterdir() if _is_model(folder))
    if not names:
        raise RepositoryError(f"model repository {repository}: holds no model; run 'make repository' to write it.")
    return names


def check_models_exist(repository: Path, wanted: Sequence[str]) -> None:
    """Raise RepositoryError where a wanted model is not in the repository."""
    present = model_names(repository)
    missing = [name for name in wanted if name not in present]
    if missing:
        raise RepositoryError(
            f"model repository {repository}: no model {', '.join(missing)}; it holds {', '.join(present)}. "
            "Name one of these with --load, or run 'make repository'."
        )


def _is_model(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return (folder / "config.pbtxt").is_file() or any(child.name.isdigit() for child in folder.iterdir())
