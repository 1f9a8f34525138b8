"""Reads a model repository's folders and its manifest; writes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from server.errors import RepositoryError

MANIFEST = "manifest.json"


def model_names(repository: Path) -> list[str]:
    """Return the names of the models in a repository: its folders that hold a configuration or a version folder."""
    if not repository.is_dir():
        raise RepositoryError(f"model repository {repository}: no such folder; run 'make repository' to write one.")
    names = sorted(folder.name for folder in repository.iterdir() if _is_model(folder))
    if not names:
        raise RepositoryError(f"model repository {repository}: holds no model; run 'make repository' to write it.")
    return names


def published_names(repository: Path) -> tuple[list[str], list[str]]:
    """Return the models that can be served, and those that have a configuration but were not published here.

    Where there is a manifest.json, what it names was published; git brings configurations of other variants, too, which
    name versions that are not there. A repository without a manifest is not of our builders: all of it is served.
    """
    names, path = model_names(repository), repository / MANIFEST
    if not path.is_file():
        return names, []
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        published = {*manifest["models"], *manifest["endpoints"]}
    except (ValueError, KeyError, TypeError) as error:
        raise RepositoryError(f"{path} cannot be read ({error}); run 'make repository' to write it anew.") from error
    if published.isdisjoint(names):
        raise RepositoryError(f"model repository {repository}: nothing was published; run 'make repository'.")
    return [name for name in names if name in published], [name for name in names if name not in published]


def served_names(repository: Path) -> tuple[list[str], list[str]]:
    """As `published_names`, without the models that an endpoint can only be rolled back to: they take no memory."""
    names, unpublished = published_names(repository)
    path = repository / MANIFEST
    if not path.is_file():
        return names, unpublished
    endpoints = json.loads(path.read_text(encoding="utf-8"))["endpoints"]
    earlier = {step for generations in endpoints.values() for each in generations[:-1] for step in each["steps"]}
    now = {step for generations in endpoints.values() for step in generations[-1]["steps"]}
    return [name for name in names if name not in earlier - now], unpublished


def all_published(repository: Path, wanted: Sequence[str]) -> bool:
    """Whether our builders published each of these models, so that none of their configurations lacks anything."""
    return (repository / MANIFEST).is_file() and set(wanted) <= set(published_names(repository)[0])


def asking_for_response_cache(repository: Path) -> list[str]:
    """Return the models whose configuration names Triton's response cache, which a server without one leaves unsaid."""
    configs = [repository / name / "config.pbtxt" for name in model_names(repository)]
    return [path.parent.name for path in configs if path.is_file() and "response_cache" in path.read_text("utf-8")]


def check_models_exist(repository: Path, wanted: Sequence[str]) -> None:
    """Raise RepositoryError where a wanted model is not in the repository, or was not published in it."""
    present, unpublished = published_names(repository)
    refused = [name for name in wanted if name in unpublished]
    if refused:
        raise RepositoryError(
            f"model repository {repository}: {', '.join(refused)} was not published on this machine: it failed its "
            "gate here, or was not built. 'python -m builders gate VARIANT' says which; 'make repository' publishes "
            "what passes."
        )
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
