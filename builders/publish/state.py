"""The one way in which a repository's state changes: from what one manifest says to what another says, by renames.

Between any two steps the repository can be loaded and verified, and what was served before still can: a step's
configuration first serves the versions of before and after side by side, then the endpoints change; the old ones stay
loaded until the next change, since a running server takes up the steps before the endpoint. The one exception: a model
has one configuration, so where its tensors change under the same name, its old version cannot be loaded from the moment
of that rename to the endpoints' own; a build killed between them is mended by the next. Nothing is written before every
endpoint of the new state is known to resolve.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as triton

from builders.core.contract import ENDPOINTS, Contract
from builders.core.files import sha256, write_atomically
from builders.publish import model_config, pbtxt
from builders.publish.manifest import (
    CONFIG,
    CONTRACT,
    Generation,
    Manifest,
    RepositoryError,
    version_hashes,
    write_manifest,
)

Texts = Mapping[str, str]
"""Path in the repository => what stands in the file."""


def change_state(
    repository: Path,
    before: Manifest,
    after: Manifest,
    contracts: Mapping[str, Contract] | None = None,
    *,
    settle: bool = False,
) -> Manifest:
    """Write configurations and contracts so that the repository serves ``after``, and the manifest that says so.

    Version folders that nothing in ``after`` names are removed last.

    Args:
        contracts: of endpoints; those not named are made of their steps' contracts.
        settle: load only what endpoints serve now; else what they served before the change stays loaded until the next.

    Returns:
        ``after`` as written, with the files' hashes.

    Raises:
        RepositoryError: an endpoint of ``after`` names what is not there, or what cannot be loaded together.
    """
    after = after.model_copy(update={"still_loaded": {} if settle else _still_loaded(repository, before, after)})
    wanted = _texts(repository, after, contracts or {})
    after = _with_versions_kept(after)
    files = _hashes(repository, before, after, wanted)
    write_manifest(repository, _allowing(before, files))
    for name in _ensembles(after):
        _make_ensemble_version(repository / name)
    for path, text in wanted.items():  # the steps' first
        _replace(repository / path, text)
    after = after.model_copy(update={"files": files})
    write_manifest(repository, after)
    remove_unnamed(repository, after, before.models)
    return after


def remove_unnamed(repository: Path, manifest: Manifest, models: Iterable[str]) -> list[Path]:
    """Remove these models' version folders that the manifest does not name; returns them."""
    gone = [
        repository / name / str(version)
        for name in sorted({*models, *manifest.models})
        for version in version_numbers(repository / name)
        if version not in manifest.models.get(name, {}) and name not in _ensembles(manifest)
    ]
    for folder in gone:
        shutil.rmtree(folder)
    return gone


def version_numbers(folder: Path) -> list[int]:
    """Version folders of a model, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdigit())


def config_of(repository: Path, model: str, version: int) -> triton.ModelConfig:
    """The configuration that a version was published with, without version policy.

    Raises:
        RepositoryError: no such version is there.
    """
    folder = repository / model / str(version)
    own = folder / CONFIG
    path = own if own.is_file() else repository / model / CONFIG  # builders up to 0.2 kept none in the version folder
    if not folder.is_dir() or not path.is_file():
        raise RepositoryError(f"{folder}: there is no such version; run 'make repository' to build it anew")
    config = pbtxt.read(path)
    config.ClearField("version_policy")
    return config


def loads_beside(config: triton.ModelConfig, other: triton.ModelConfig) -> bool:
    """Whether one configuration can serve both versions: the same tensors, backend and batching."""
    return (
        list(config.input) == list(other.input)
        and list(config.output) == list(other.output)
        and (config.backend, config.max_batch_size) == (other.backend, other.max_batch_size)
    )


def damaged_files(repository: Path, manifest: Manifest, generation: Generation) -> list[str]:
    """Files of the generation's version folders that are not what the manifest says, each with what is wrong."""
    wrong = []
    for model, version in generation.steps.items():
        start = f"{model}/{version}/"
        named = {path: digests for path, digests in manifest.files.items() if path.startswith(start)}
        if not named:
            wrong.append(f"{start} is in no manifest")
        for path, digests in named.items():
            file = repository / path
            if not file.is_file() or file.is_symlink():
                wrong.append(f"{path} is not there")
            elif sha256(file) not in digests:
                wrong.append(f"{path} has another content than was published")
    return wrong


# ---------------------------------------------------------------- what the files shall say
def _texts(repository: Path, manifest: Manifest, contracts: Mapping[str, Contract]) -> dict[str, str]:
    """Of every model that is served, then of every endpoint. Raises: RepositoryError."""
    configs = {name: _model_config(repository, manifest, name) for name in _served_models(manifest)}
    texts: dict[str, str] = {}
    for name, config in configs.items():
        newest = max(manifest.loaded_versions(name))
        texts[f"{name}/{CONTRACT}"] = (repository / name / str(newest) / CONTRACT).read_text(encoding="utf-8")
        for tuned in sorted((repository / name).glob("configs/*.pbtxt")):
            text = pbtxt.render(model_config.with_tuning_of(config, pbtxt.read(tuned)))
            texts[tuned.relative_to(repository).as_posix()] = text
        texts[f"{name}/{CONFIG}"] = pbtxt.render(config)
    for name, generation in _ensembles(manifest).items():
        contract = contracts.get(name) or _endpoint_contract(repository, name, generation)
        steps = [(configs[step], version) for step, version in generation.steps.items()]
        texts[f"{name}/{CONTRACT}"] = contract.to_json()
        texts[f"{name}/{CONFIG}"] = pbtxt.render(model_config.ensemble_config(contract, steps))
    return texts


def _model_config(repository: Path, manifest: Manifest, model: str) -> triton.ModelConfig:
    versions = sorted(manifest.loaded_versions(model))
    configs = {version: config_of(repository, model, version) for version in versions}
    newest = configs[versions[-1]]
    for version in versions:
        if not loads_beside(configs[version], newest):
            raise RepositoryError(_cannot_be_together(manifest, model, version, versions[-1]))
    return model_config.pin(newest, [*versions, *manifest.still_loaded.get(model, ())])


def _still_loaded(repository: Path, before: Manifest, after: Manifest) -> dict[str, list[int]]:
    """Of steps that are served now, the versions that were loaded before the change and can be beside what is now."""
    found = {}
    for name in _served_models(after):
        now = after.loaded_versions(name)
        gone = (before.loaded_versions(name) - now) or (set(before.still_loaded.get(name, ())) - now)
        config = config_of(repository, name, max(now))
        there = gone & set(version_numbers(repository / name)) & before.models.get(name, {}).keys()
        beside = [each for each in sorted(there) if loads_beside(config_of(repository, name, each), config)]
        if beside:
            found[name] = beside
    return found


def _cannot_be_together(manifest: Manifest, model: str, version: int, newest: int) -> str:
    def users(number: int) -> str:
        return ", ".join(name for name, each in manifest.served.items() if each.steps.get(model) == number)

    return (
        f"'{model}' has other tensors in version {newest} ({users(newest)}) than in version {version}, which "
        f"{users(version)} names; Triton loads one form at a time. Publish the recipes of all of these together "
        "('builders repository RECIPE RECIPE'), or give up what is not needed ('builders retire ENDPOINT')"
    )


def _endpoint_contract(repository: Path, name: str, generation: Generation) -> Contract:
    """As it is written for an endpoint of these steps."""
    steps = [
        Contract.from_json((repository / step / str(version) / CONTRACT).read_text(encoding="utf-8"))
        for step, version in generation.steps.items()
    ]
    return model_config.endpoint_contract(name, ENDPOINTS[name.split("_")[0]], steps)


def _served_models(manifest: Manifest) -> list[str]:
    return list({name: None for each in manifest.served.values() for name in each.steps})


def _ensembles(manifest: Manifest) -> dict[str, Generation]:
    """Endpoints that are not models themselves."""
    return {name: each for name, each in manifest.served.items() if name not in each.steps}


# ---------------------------------------------------------------- the manifest
def _with_versions_kept(manifest: Manifest) -> Manifest:
    models = {
        name: {number: each for number, each in versions.items() if number in manifest.kept_versions(name)}
        for name, versions in manifest.models.items()
    }
    return manifest.model_copy(update={"models": {name: versions for name, versions in models.items() if versions}})


def _hashes(repository: Path, before: Manifest, after: Manifest, wanted: Texts) -> dict[str, list[str]]:
    """Of a version that is published already what the manifest says: what lies there now may be damaged."""
    files = {path: [digest(text)] for path, text in wanted.items()}
    served = set(_served_models(after))
    for name, versions in after.models.items():
        if name not in served:
            files |= _known(before, f"{name}/{CONFIG}") | _known(before, f"{name}/{CONTRACT}")
        for version in versions:
            published = version in before.models.get(name, {})
            known = _known(before, f"{name}/{version}/") if published else {}
            files |= known or version_hashes(repository, name, version)
    return dict(sorted(files.items()))


def _known(manifest: Manifest, start: str) -> dict[str, list[str]]:
    return {path: digests for path, digests in manifest.files.items() if path.startswith(start)}


def _allowing(before: Manifest, files: Mapping[str, list[str]]) -> Manifest:
    """What was published before, whose files may have the content of before or the one that is coming."""
    both = {path: list(dict.fromkeys([*before.files.get(path, ()), *digests])) for path, digests in files.items()}
    return before.model_copy(update={"files": dict(sorted({**before.files, **both}.items()))})


def digest(content: Path | str) -> str:
    """SHA-256 of a file, or of a text as it is written."""
    return sha256(content) if isinstance(content, Path) else hashlib.sha256(content.encode()).hexdigest()


# ---------------------------------------------------------------- files
def _make_ensemble_version(folder: Path) -> None:
    """Triton wants a version folder of an ensemble too; it stays empty."""
    (folder / "1").mkdir(parents=True, exist_ok=True)


def _replace(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)
