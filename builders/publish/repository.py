"""The only writer of ``model_repository/``, of which nothing is written by hand.

A version folder is complete in itself and never changed: it is filled under a name that Triton ignores and renamed to
the next number. What serves which of them changes by :mod:`builders.publish.state`. One process writes at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from builders.core.contract import ENDPOINTS, Contract
from builders.core.files import folder_beside, sha256, write_atomically
from builders.core.locks import only_writer
from builders.publish import model_config, pbtxt
from builders.publish.manifest import (
    CONFIG,
    CONTRACT,
    FUSED,
    MANIFEST,
    Canary,
    Generation,
    Manifest,
    PublishedVersion,
    RepositoryError,
    now,
    read_manifest,
)
from builders.publish.state import change_state, config_of, digest, loads_beside, version_numbers

NO_BYTECODE = "__pycache__"
"""An empty file of this name in a version folder: Python, which writes its byte code into a folder of that name, then
writes none. So a repository holds what was published and nothing else, and can be verified."""


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A step of an ensemble, ready to be published.

    Attributes:
        config: without version policy.
        contract: written beside ``config.pbtxt`` and into the version folder.
        files: path in the version folder => file to copy, or text to write.
        built_from: for the manifest: checkpoint, data, recipe, settings.
        canary: of a model that is asked for directly.
    """

    config: triton.ModelConfig
    contract: Contract
    files: Mapping[str, Path | str]
    built_from: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    canary: Canary | None = None

    @property
    def name(self) -> str:
        """Model name = folder name."""
        return str(self.config.name)

    @property
    def version_files(self) -> dict[str, Path | str]:
        """Everything that its version folder holds."""
        own = {CONTRACT: self.contract.to_json(), CONFIG: pbtxt.render(self.config), NO_BYTECODE: ""}
        return {**self.files, **own}


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """An endpoint over steps, by model name in the order of the data.

    Attributes:
        forced: published although its scorer failed the gate.
    """

    name: str
    steps: Sequence[str]
    contract: Contract
    forced: bool = False
    canary: Canary | None = None

    @property
    def variant(self) -> str:
        """The scorer: what stands before post-processing, or runs fused with it."""
        return [*self.steps][-2:][0].removesuffix(FUSED)


@contextlib.contextmanager
def writing(repository: Path) -> Iterator[Manifest]:
    """Hold the repository's lock, and read its manifest. A second writer waits."""
    with only_writer(repository, f"the model repository {repository}"):
        yield read_manifest(repository)


def publish_models(
    repository: Path,
    models: Sequence[ServedModel],
    ensembles: Sequence[Ensemble],
    libraries: Mapping[str, str],
    say: Any = print,
) -> dict[str, int]:
    """Write version folders, then configurations, then ensembles, then tidy up.

    Args:
        repository: Triton's model repository.
        models: every step that the ensembles name, and models that are asked for directly.
        ensembles: endpoints to write.
        libraries: name => version, for the manifest.
        say: told which endpoints of the same recipes go, as a step of theirs got other tensors.

    Returns:
        Model name => version now served. A model whose files did not change keeps its version. Versions that other
        endpoints name stay loaded.

    Raises:
        RepositoryError: an endpoint of another recipe, or one like ``rank``, could not be loaded any more. Nothing has
            changed then.
    """
    with writing(repository) as before:
        for name in [*(model.name for model in models), *(ensemble.name for ensemble in ensembles)]:
            _remove_unfinished(repository / name)
        for unfinished in repository.glob(f".{MANIFEST}.*"):
            unfinished.unlink()
        versions: dict[str, int] = {}
        try:
            for model in models:
                versions[model.name] = publish_version(repository / model.name, model)
            after = _after(repository, before, models, ensembles, versions, say)
            after = after.model_copy(update={"libraries": dict(libraries)})
            change_state(repository, before, after, {ensemble.name: ensemble.contract for ensemble in ensembles})
        except BaseException:
            _remove_added(repository, before, versions)
            raise
    return versions


def publish_version(folder: Path, model: ServedModel) -> int:
    """Add a version folder unless the newest one holds just these files; returns the version's number."""
    newest = max(version_numbers(folder), default=0)
    wanted = {name: digest(content) for name, content in model.version_files.items()}
    if newest and _holds(folder / str(newest), wanted):
        return newest
    with folder_beside(folder / str(newest + 1)) as fresh:
        for name, content in model.version_files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, fresh / name)
            else:
                (fresh / name).write_text(content, encoding="utf-8")
    return newest + 1


def tune_machine(repository: Path, machine: str, instances: int, threads: int) -> list[Path]:
    """Write ``<model>/configs/<machine>.pbtxt`` for every scorer; served with ``--model-config-name <machine>``.

    Returns:
        The files written.
    """
    written = []
    with writing(repository) as manifest:
        for path in sorted(repository.glob(f"*/{CONFIG}")):
            config = pbtxt.read(path)
            if config.platform != "ensemble":
                target = path.parent / "configs" / f"{machine}.pbtxt"
                write_atomically(target, pbtxt.render(model_config.tune(config, instances, threads)))
                written.append(target)
        change_state(repository, manifest, manifest)
    return written


def served_variant(repository: Path, endpoint: str = "rank") -> str:
    """Name of the scorer that ``endpoint`` ends in, before post-processing.

    Raises:
        RepositoryError: the endpoint was not published here.
    """
    served = read_manifest(repository).served
    if endpoint not in served:
        raise RepositoryError(f"no endpoint '{endpoint}' in {repository}; run 'make repository'")
    return served[endpoint].variant


def published_names(repository: Path) -> frozenset[str]:
    """Models and endpoints that builds on this machine published: what the manifest names.

    Git brings configurations of every variant, also of those that fail their gate here: they name versions that this
    repository does not hold.
    """
    return read_manifest(repository).names


def published_rankers(repository: Path) -> frozenset[str]:
    """Names of the rankers whose models the manifest names."""
    built_from = [
        each.built_from for versions in read_manifest(repository).models.values() for each in versions.values()
    ]
    return frozenset(Path(each["recipe"]).stem for each in built_from if "recipe" in each)


def left_out(repository: Path, names: Iterable[str]) -> str:
    """One line about those of ``names`` that have a configuration here and were not published; empty without any."""
    published = published_names(repository)
    unpublished = [name for name in names if (repository / name / CONFIG).is_file() and name not in published]
    if not unpublished:
        return ""
    return (
        f"left out, not published on this machine: {', '.join(unpublished)} (failed the gate here, or not built; "
        "'python -m builders gate VARIANT' says which)"
    )


# ---------------------------------------------------------------- the state after a publication
def _after(
    repository: Path,
    before: Manifest,
    models: Sequence[ServedModel],
    ensembles: Sequence[Ensemble],
    versions: Mapping[str, int],
    say: Any,
) -> Manifest:
    """The manifest with these models and endpoints. Raises: RepositoryError."""
    known = {name: dict(published) for name, published in before.models.items()}
    for model in models:
        number = versions[model.name]
        published = known.setdefault(model.name, {})
        since = published[number].since if number in published else now()
        published[number] = PublishedVersion(built_from=dict(model.built_from), since=since)
    after = before.model_copy(update={"models": known})
    for ensemble in ensembles:
        after = after.serving(ensemble.name, _generation(after, ensemble, versions))
    named = {name for ensemble in ensembles for name in ensemble.steps}
    for model in models:  # those that are asked for directly
        if model.name not in named:
            alone = Ensemble(model.name, [model.name], model.contract, canary=model.canary)
            after = after.serving(model.name, _generation(after, alone, versions))
    return after.without(_given_up(repository, after, models, versions, say))


def _generation(manifest: Manifest, ensemble: Ensemble, versions: Mapping[str, int]) -> Generation:
    """The one of these steps, whichever endpoint of the kind serves it; else a new one."""
    steps = {name: versions[name] for name in ensemble.steps}
    kind = ensemble.name.split("_")[0]
    every = [each for name, kept in manifest.endpoints.items() if name.split("_")[0] == kind for each in kept]
    variants = [each for each in every if each.variant == ensemble.variant]
    for generation in variants:
        if list(generation.steps.items()) == list(steps.items()):
            return generation.model_copy(update={"forced": ensemble.forced, "canary": ensemble.canary})
    number = max((each.number for each in variants), default=0) + 1
    return Generation(
        number=number,
        variant=ensemble.variant,
        steps=steps,
        since=now(),
        forced=ensemble.forced,
        canary=ensemble.canary,
    )


def _given_up(
    repository: Path, after: Manifest, models: Sequence[ServedModel], versions: Mapping[str, int], say: Any
) -> list[str]:
    """Endpoints of variants of these recipes that are not written now and that a step's other tensors leave behind.

    An endpoint of another recipe, or one that services call (``rank``), is never given up: the state does not resolve.
    """
    configs = {model.name: model.config for model in models}
    recipes = {str(model.built_from.get("recipe")) for model in models} - {"None"}
    gone = []
    for endpoint, generation in after.served.items():
        stale = [
            name
            for name, version in generation.steps.items()
            if name in configs
            and version != versions[name]
            and not loads_beside(config_of(repository, name, version), configs[name])
        ]
        variants_own = endpoint in (f"{kind}_{generation.variant}" for kind in ENDPOINTS)
        if stale and variants_own and str(after.built_from(generation).get("recipe")) in recipes:
            gone.append(endpoint)
            say(f"{endpoint} is published no more: {', '.join(stale)} has other tensors now, and it was not built anew")
    return gone


# ---------------------------------------------------------------- files
def _holds(folder: Path, wanted: Mapping[str, str]) -> bool:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return names == set(wanted) and all(sha256(folder / name) == digest for name, digest in wanted.items())


def _remove_added(repository: Path, before: Manifest, versions: Mapping[str, int]) -> None:
    """What a publication added that then failed, so that it does not go on filling a full disk."""
    for name, version in versions.items():
        config = repository / name / CONFIG
        listed = pbtxt.read(config).version_policy.specific.versions if config.is_file() else ()
        if version not in before.models.get(name, {}) and version not in listed:
            shutil.rmtree(repository / name / str(version), ignore_errors=True)


def _remove_unfinished(folder: Path) -> None:
    """What a killed build left under temporary names, see ``builders/core/files.py``."""
    for pattern in (".new-*", f".{CONFIG}.*", f".{CONTRACT}.*", "configs/.*.pbtxt.*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
