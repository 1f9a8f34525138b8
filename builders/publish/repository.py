"""The only writer of ``model_repository/``, of which nothing is written by hand.

A version folder is complete in itself and never changed: it is filled under a name that Triton ignores and renamed to
the next number. ``config.pbtxt`` is replaced by rename, the ensembles' last. Between any two steps of
:func:`publish_models` the repository can be loaded, and what was served before still can. The one exception: a model
has one configuration, so where its tensors change under the same name, its old version cannot be loaded from the
moment of that rename to the ensembles' own; a build killed between them is mended by the next.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from builders.core.contract import Contract
from builders.core.errors import BuilderError
from builders.core.files import folder_beside, sha256, write_atomically
from builders.publish import model_config, pbtxt

CONFIG, CONTRACT, MANIFEST = pbtxt.CONFIG, "contract.json", "manifest.json"
KEPT_VERSIONS = 2
"""The served version and the one before it, to roll back to."""


class RepositoryError(BuilderError):
    """The repository cannot be written or changed as asked."""


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A step of an ensemble, ready to be published.

    Attributes:
        config: without version policy.
        contract: written beside ``config.pbtxt`` and into the version folder.
        files: name in the version folder => file to copy, or text to write.
        built_from: for the manifest: checkpoint, data, recipe, settings.
    """

    config: triton.ModelConfig
    contract: Contract
    files: Mapping[str, Path | str]
    built_from: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Model name = folder name."""
        return str(self.config.name)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """An endpoint over steps, by model name in the order of the data."""

    name: str
    steps: Sequence[str]
    contract: Contract


def publish_models(
    repository: Path, models: Sequence[ServedModel], ensembles: Sequence[Ensemble], libraries: Mapping[str, str]
) -> dict[str, int]:
    """Write version folders, then configurations, then ensembles, then tidy up.

    Args:
        repository: Triton's model repository.
        models: every step that the ensembles name.
        ensembles: endpoints to write.
        libraries: name => version, for the manifest.

    Returns:
        Model name => version now served. A model whose files did not change keeps its version. Versions that endpoints
        of earlier builds name stay loaded, unless the model's tensors changed: then those endpoints leave the manifest.
    """
    for name in [*(model.name for model in models), *(ensemble.name for ensemble in ensembles)]:
        _remove_unfinished(repository / name)
    versions = {model.name: publish_version(repository / model.name, model) for model in models}
    for model in models:  # old and new side by side: the ensembles still name the old ones
        _write_step(repository, model, {versions[model.name], *_compatible_versions(repository, model)})
    for ensemble in ensembles:
        _write_ensemble(repository, ensemble, {model.name: model.config for model in models}, versions)
    written = {ensemble.name for ensemble in ensembles}
    for model in models:
        _write_step(repository, model, {versions[model.name], *_versions_of_others(repository, model, written)})
        _drop_old_versions(repository / model.name)
    _write_manifest(repository, models, ensembles, versions, libraries)
    return versions


def publish_version(folder: Path, model: ServedModel) -> int:
    """Add a version folder unless the newest one holds just these files; returns the version's number."""
    newest = max(version_numbers(folder), default=0)
    wanted = {name: _digest(content) for name, content in model.files.items()}
    if newest and _holds(folder / str(newest), wanted, model.contract):
        return newest
    with folder_beside(folder / str(newest + 1)) as fresh:
        for name, content in model.files.items():
            if isinstance(content, Path):
                shutil.copyfile(content, fresh / name)
            else:
                (fresh / name).write_text(content, encoding="utf-8")
        (fresh / CONTRACT).write_text(model.contract.to_json(), encoding="utf-8")
    return newest + 1


def promote(repository: Path, endpoint: str, variant_ensemble: str) -> None:
    """Make ``endpoint`` (such as ``rank``) serve what ``variant_ensemble`` serves: one rename. Rolls back likewise.

    Raises:
        RepositoryError: no such ensemble is published here.
    """
    manifest = read_manifest(repository)
    if variant_ensemble not in manifest["ensembles"]:
        known = ", ".join(sorted(name for name in manifest["ensembles"] if name.startswith(f"{endpoint}_")))
        raise RepositoryError(f"no ensemble '{variant_ensemble}' in {repository}; there are: {known or 'none'}")
    source = repository / variant_ensemble / CONFIG
    config = pbtxt.read(source)
    config.name = endpoint
    _make_ensemble_version(repository / endpoint)
    contract = Contract.from_json((source.parent / CONTRACT).read_text(encoding="utf-8"))
    write_atomically(repository / endpoint / CONTRACT, dataclasses.replace(contract, name=endpoint).to_json())
    write_atomically(repository / endpoint / CONFIG, pbtxt.render(config))
    manifest["ensembles"][endpoint] = manifest["ensembles"][variant_ensemble]
    _replace(repository / MANIFEST, _manifest_text(manifest))


def tune_machine(repository: Path, machine: str, instances: int, threads: int) -> list[Path]:
    """Write ``<model>/configs/<machine>.pbtxt`` for every scorer; served with ``--model-config-name <machine>``.

    Returns:
        The files written.
    """
    written = []
    for path in sorted(repository.glob(f"*/{CONFIG}")):
        config = pbtxt.read(path)
        if config.platform != "ensemble":
            target = path.parent / "configs" / f"{machine}.pbtxt"
            write_atomically(target, pbtxt.render(model_config.tune(config, instances, threads)))
            written.append(target)
    return written


def served_variant(repository: Path, endpoint: str = "rank") -> str:
    """Name of the scorer that ``endpoint`` ends in, before post-processing.

    Raises:
        RepositoryError: the endpoint was not published here.
    """
    if endpoint not in published_names(repository):
        raise RepositoryError(f"no endpoint '{endpoint}' in {repository}; run 'make repository'")
    return str(_config(repository, endpoint).ensemble_scheduling.step[-2].model_name)


def published_names(repository: Path) -> frozenset[str]:
    """Models and endpoints that builds on this machine published: what the manifest names.

    Git brings configurations of every variant, also of those that fail their gate here: they name versions that this
    repository does not hold.
    """
    manifest = read_manifest(repository)
    return frozenset({*manifest["models"], *manifest["ensembles"]})


def published_rankers(repository: Path) -> frozenset[str]:
    """Names of the rankers whose models the manifest names."""
    built_from = [entry.get("built_from", {}) for entry in read_manifest(repository)["models"].values()]
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


def version_numbers(folder: Path) -> list[int]:
    """Version folders of a model, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdigit())


def _digest(content: Path | str) -> str:
    return sha256(content) if isinstance(content, Path) else hashlib.sha256(content.encode()).hexdigest()


def _holds(folder: Path, wanted: Mapping[str, str], contract: Contract) -> bool:
    names = {path.name for path in folder.iterdir() if path.is_file()}
    if names != {*wanted, CONTRACT} or (folder / CONTRACT).read_text(encoding="utf-8") != contract.to_json():
        return False
    return all(sha256(folder / name) == digest for name, digest in wanted.items())


def _compatible_versions(repository: Path, model: ServedModel) -> set[int]:
    """Versions named by the present configuration that the new one can serve too: it has the same tensors."""
    path = repository / model.name / CONFIG
    if not path.is_file():
        return set()
    present = pbtxt.read(path)
    same = list(present.input) == list(model.config.input) and list(present.output) == list(model.config.output)
    there = set(version_numbers(repository / model.name))
    return set(present.version_policy.specific.versions) & there if same else set()


def _versions_of_others(repository: Path, model: ServedModel, written: Collection[str]) -> set[int]:
    """Versions of the model that published endpoints name which are not written now, as far as they can be loaded."""
    others = {name: steps for name, steps in read_manifest(repository)["ensembles"].items() if name not in written}
    named = {steps[model.name] for steps in others.values() if model.name in steps}
    return named & _compatible_versions(repository, model)


def _write_step(repository: Path, model: ServedModel, versions: Iterable[int]) -> None:
    config = model_config.pin(model.config, versions)
    folder = repository / model.name
    _replace(folder / CONTRACT, model.contract.to_json())
    for path in sorted(folder.glob("configs/*.pbtxt")):
        tuned = pbtxt.read(path)
        _replace(path, pbtxt.render(model_config.with_tuning_of(config, tuned)))
    _replace(folder / CONFIG, pbtxt.render(config))


def _write_ensemble(
    repository: Path, ensemble: Ensemble, configs: Mapping[str, triton.ModelConfig], versions: Mapping[str, int]
) -> None:
    folder = repository / ensemble.name
    _make_ensemble_version(folder)
    steps = [(configs[name], versions[name]) for name in ensemble.steps]
    config = model_config.ensemble_config(ensemble.contract, steps)
    _replace(folder / CONTRACT, ensemble.contract.to_json())
    _replace(folder / CONFIG, pbtxt.render(config))


def _make_ensemble_version(folder: Path) -> None:
    """Triton wants a version folder of an ensemble too; it stays empty."""
    (folder / "1").mkdir(parents=True, exist_ok=True)


def _replace(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)


def _remove_unfinished(folder: Path) -> None:
    """What a killed build left under temporary names, see ``builders/core/files.py``."""
    for pattern in (".new-*", f".{CONFIG}.*", f".{CONTRACT}.*", "configs/.*.pbtxt.*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _drop_old_versions(folder: Path) -> None:
    """All but the newest, and those that the configuration names."""
    named = set(_config(folder.parent, folder.name).version_policy.specific.versions)
    for number in set(version_numbers(folder)[:-KEPT_VERSIONS]) - named:
        shutil.rmtree(folder / str(number))


def _write_manifest(
    repository: Path,
    models: Sequence[ServedModel],
    ensembles: Sequence[Ensemble],
    versions: Mapping[str, int],
    libraries: Mapping[str, str],
) -> None:
    entries = {model.name: _manifest_entry(repository, model, versions[model.name]) for model in models}
    steps = {ensemble.name: {name: versions[name] for name in ensemble.steps} for ensemble in ensembles}
    before = read_manifest(repository)
    manifest = {
        "libraries": dict(libraries),
        "models": _still_there(repository, before["models"]) | entries,
        "ensembles": _still_served(repository, before["ensembles"]) | steps,
    }
    for unfinished in repository.glob(f".{MANIFEST}.*"):
        unfinished.unlink()
    write_atomically(repository / MANIFEST, _manifest_text(manifest))


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2) + "\n"


def read_manifest(repository: Path) -> dict[str, Any]:
    """``models`` and ``ensembles`` by name, and ``libraries``; empty where there is no manifest.

    Raises:
        RepositoryError: it is not JSON, or lacks one of the three.
    """
    path = repository / MANIFEST
    if not path.is_file():
        return {"libraries": {}, "models": {}, "ensembles": {}}
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {name: dict(manifest[name]) for name in ("libraries", "models", "ensembles")}
    except (ValueError, KeyError, TypeError) as error:
        raise RepositoryError(
            f"{path}: not the repository's manifest ({type(error).__name__}: {error}); remove it and run "
            "'make repository'"
        ) from error


def _still_there(repository: Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """What earlier builds of other recipes published."""
    return {name: entry for name, entry in entries.items() if (repository / name / CONFIG).is_file()}


def _still_served(repository: Path, ensembles: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Earlier endpoints all of whose steps can be loaded in the versions that they name."""
    return {
        name: steps
        for name, steps in _still_there(repository, ensembles).items()
        if all(_loads(repository, step, version) for step, version in steps.items())
    }


def _loads(repository: Path, model: str, version: int) -> bool:
    if not (repository / model / CONFIG).is_file() or version not in version_numbers(repository / model):
        return False
    return version in _config(repository, model).version_policy.specific.versions


def _config(repository: Path, model: str) -> triton.ModelConfig:
    return pbtxt.read(repository / model / CONFIG)


def _manifest_entry(repository: Path, model: ServedModel, version: int) -> dict[str, Any]:
    folder = repository / model.name
    in_version = sorted(path for path in (folder / str(version)).iterdir() if path.is_file())  # Triton adds __pycache__
    return {
        "version": version,
        "built_from": dict(model.built_from),
        "sha256": {str(path.relative_to(folder)): sha256(path) for path in (folder / CONFIG, *in_version)},
    }
