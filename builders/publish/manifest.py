"""``manifest.json``: what is published in a model repository, made of what, and the SHA-256 of every file of it.

The one record of the repository's state: whatever it does not name was not published here (git brings configurations
of every variant). What may be rolled back to is named here, too, and kept for that.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic

from builders.core.errors import BuilderError
from builders.core.files import sha256, write_atomically
from builders.publish.signing import key_of_environment, read_signatures, signature, write_signatures

MANIFEST, CONTRACT = "manifest.json", "contract.json"
CONFIG = "config.pbtxt"
FUSED = "_fused"
"""End of the name of a model that runs a scorer with the steps around it."""
FORMAT = 2
KEPT_GENERATIONS = 3
"""Of every endpoint: the one served and two to roll back to."""


class RepositoryError(BuilderError):
    """The repository cannot be written or changed as asked."""


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Canary(_Record):
    """A request that a ready endpoint answers, as ``server/canary.py`` sends it, and the answer.

    Attributes:
        inputs: tensors as Triton's HTTP protocol has them.
        items: ids that the answer holds once each; empty where it may be any.
        scores: item id => the build's score; empty where there is none to compare.
        tolerance: absolute, of a score.
        stored: table of the item store => item id => SHA-256 of the stored bytes that the scores are of.
        may_be_refused: once an item has left the store.
    """

    inputs: list[dict[str, Any]]
    items: list[str] = []
    scores: dict[str, float] = {}
    tolerance: float = 0.0
    stored: dict[str, dict[str, str]] = {}
    may_be_refused: bool = False


class Generation(_Record):
    """What an endpoint serves or served.

    Attributes:
        number: 1 for the first time that the variant was published with other files or steps, and so on.
        variant: the scorer, such as ``two_tower_fp32_onnx``.
        steps: model => version, in the order of the data.
        since: when the endpoint began to serve it, ISO 8601, UTC.
        forced: although it failed its gate.
        canary: None of one that builds up to 0.2 published.
    """

    number: int
    variant: str
    steps: dict[str, int]
    since: str
    forced: bool = False
    canary: Canary | None = None

    @property
    def name(self) -> str:
        """Such as ``two_tower_fp32_onnx@3``, as ``builders rollback --to`` takes it."""
        return f"{self.variant}@{self.number}"

    @property
    def scorer(self) -> str:
        """The one of its steps that computes the variant's scores."""
        return next(step for step in self.steps if step.removesuffix(FUSED) == self.variant)


class PublishedVersion(_Record):
    """A version folder. built_from: checkpoint, data, recipe, settings, gate."""

    built_from: dict[str, Any]
    since: str


class Manifest(_Record):
    """The repository's state.

    Attributes:
        models: name => version => what it is.
        endpoints: name => its generations, the one served last. A model that is asked for directly is one, too.
        still_loaded: model => versions that endpoints served before the last change. They stay loaded until the next
            one, so that a running server, which takes up the steps before the endpoint, answers all the while.
        files: path in the repository => SHA-256; several while a publication is under way: of before and after.
    """

    format: int = FORMAT
    libraries: dict[str, str] = {}
    models: dict[str, dict[int, PublishedVersion]] = {}
    endpoints: dict[str, list[Generation]] = {}
    still_loaded: dict[str, list[int]] = {}
    files: dict[str, list[str]] = {}

    @property
    def served(self) -> dict[str, Generation]:
        """Endpoint => what it serves now."""
        return {name: generations[-1] for name, generations in self.endpoints.items()}

    @property
    def names(self) -> frozenset[str]:
        """Models and endpoints."""
        return frozenset({*self.models, *self.endpoints})

    @property
    def scorers(self) -> frozenset[str]:
        """Models by the names that their scorers have in an ensemble."""
        return frozenset(name.removesuffix(FUSED) for name in self.models)

    def loaded_versions(self, model: str) -> set[int]:
        """That some endpoint serves now."""
        return {each.steps[model] for each in self.served.values() if model in each.steps}

    def kept_versions(self, model: str) -> set[int]:
        """That some endpoint serves or can be rolled back to, or that are still loaded."""
        every = (each for generations in self.endpoints.values() for each in generations)
        return {each.steps[model] for each in every if model in each.steps} | set(self.still_loaded.get(model, ()))

    def built_from(self, generation: Generation) -> dict[str, Any]:
        """Of its scorer; empty where that is not named."""
        scorer = generation.scorer
        published = self.models.get(scorer, {}).get(generation.steps[scorer])
        return published.built_from if published else {}

    def serving(self, endpoint: str, generation: Generation) -> Manifest:
        """With the endpoint serving this, from now on or as long as it does; what it served before is kept, up to
        KEPT_GENERATIONS."""
        now_served = self.served.get(endpoint)
        same = now_served is not None and now_served.name == generation.name
        since = now_served.since if same and now_served else now()
        before = [each for each in self.endpoints.get(endpoint, ()) if each.name != generation.name]
        kept = [*before, generation.model_copy(update={"since": since})][-KEPT_GENERATIONS:]
        return self.model_copy(update={"endpoints": {**self.endpoints, endpoint: kept}})

    def without(self, endpoints: Iterable[str]) -> Manifest:
        """Without these endpoints."""
        gone = set(endpoints)
        kept = {name: each for name, each in self.endpoints.items() if name not in gone}
        return self.model_copy(update={"endpoints": kept})


def read_manifest(repository: Path) -> Manifest:
    """The repository's; an empty one where there is none.

    Raises:
        RepositoryError: it is not one.
    """
    path = repository / MANIFEST
    if not path.is_file():
        return Manifest()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Manifest.model_validate(found if "format" in found else _of_format_1(repository, found))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RepositoryError(
            f"{path}: not the repository's manifest ({type(error).__name__}: {error}); remove it and run "
            "'make repository'"
        ) from error


def write_manifest(repository: Path, manifest: Manifest) -> None:
    """By rename, and only where it is another; signed where $TRITONRANK_SIGNING_KEY names a key.

    Raises:
        SigningKeyError: it names none that can sign.
    """
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    path = repository / MANIFEST
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    key = key_of_environment()
    if key is None:
        write_atomically(path, text)
        return
    coming = signature(text.encode(), key)
    write_signatures(repository, *read_signatures(repository), coming)
    write_atomically(path, text)
    write_signatures(repository, coming)


def sign_manifest(repository: Path, key: Path) -> None:
    """Sign the manifest that is there. Raises: RepositoryError: there is none; SigningKeyError."""
    path = repository / MANIFEST
    if not path.is_file():
        raise RepositoryError(f"{path}: there is no manifest to sign; run 'make repository'")
    write_signatures(repository, signature(path.read_bytes(), key))


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def version_hashes(repository: Path, model: str, version: int) -> dict[str, list[str]]:
    """Path in the repository => [SHA-256], of a version folder."""
    return _hashes(repository, (path for path in (repository / model / str(version)).rglob("*") if path.is_file()))


def _hashes(repository: Path, paths: Iterable[Path]) -> dict[str, list[str]]:
    wanted = [path for path in sorted(paths) if path.is_file() and "__pycache__" not in path.parts[:-1]]
    return {path.relative_to(repository).as_posix(): [sha256(path)] for path in wanted}


def _of_format_1(repository: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """As builders up to 0.2 wrote it: each model's newest version only. What lies there is taken for what was written.

    Goes with 0.4.
    """
    since = now()
    models = {name: {entry["version"]: entry["built_from"]} for name, entry in dict(found["models"]).items()}
    endpoints = {name: dict(steps) for name, steps in dict(found["ensembles"]).items()}
    for steps in endpoints.values():
        for name, version in steps.items():
            models.setdefault(name, {}).setdefault(version, {})
    named = {name for steps in endpoints.values() for name in steps}
    alone = {name: {name: max(versions)} for name, versions in models.items() if name not in named}
    files: dict[str, list[str]] = {}
    for name, versions in models.items():
        for version in versions:
            files |= version_hashes(repository, name, version)
    for name in {*models, *endpoints}:
        files |= _hashes(repository, (repository / name / file for file in (CONFIG, CONTRACT)))
    return {
        "libraries": dict(found["libraries"]),
        "models": {
            name: {version: {"built_from": made_of, "since": since} for version, made_of in versions.items()}
            for name, versions in models.items()
        },
        "endpoints": {
            name: [{"number": 1, "variant": list(steps)[-2:][0], "steps": steps, "since": since}]
            for name, steps in {**endpoints, **alone}.items()
        },
        "files": files,
    }
