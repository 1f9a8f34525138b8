"""What becomes of what is published: pointed at, rolled back, tried beside, given up, tidied away, told.

Every change is one of :mod:`builders.publish.state`; a running server takes it up when it loads the endpoint anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from builders.core.contract import ENDPOINTS
from builders.core.errors import GATE_FAILED
from builders.publish.manifest import CONTRACT, KEPT_GENERATIONS, Generation, Manifest, RepositoryError, read_manifest
from builders.publish.repository import writing
from builders.publish.state import change_state, damaged_files, remove_unnamed

CANDIDATE = "candidate"


class GateNotPassed(RepositoryError):
    """What is published failed its gate, and nobody said that it shall be served nevertheless."""

    exit_code = GATE_FAILED


def promote(repository: Path, endpoint: str, variant_endpoint: str, *, force: bool = False) -> Generation:
    """Make ``endpoint`` (such as ``rank``) serve what ``variant_endpoint`` (such as ``rank_dcn_v2_fp32_onnx``) serves.

    Raises:
        GateNotPassed: it failed its gate and is not forced.
        RepositoryError: it is not published here, or its files are damaged.
    """
    with writing(repository) as manifest:
        if variant_endpoint not in manifest.served:
            kind = endpoint.split("_")[0]
            known = ", ".join(sorted(name for name in manifest.served if name.startswith(f"{kind}_")))
            raise RepositoryError(f"no ensemble '{variant_endpoint}' in {repository}; there are: {known or 'none'}")
        return _serve(repository, manifest, endpoint, manifest.served[variant_endpoint], force=force)


def rollback(repository: Path, endpoint: str, to: str | None = None) -> Generation:
    """Make ``endpoint`` serve again what it served before, or another kept generation.

    Args:
        to: a generation as ``status`` names it, such as ``two_tower_fp32_onnx@2``, or a variant: its newest one that
            ``endpoint`` does not serve now. None = what the endpoint served before.

    Raises:
        RepositoryError: there is none, or its files are damaged, or it cannot be loaded beside what others serve.
    """
    with writing(repository) as manifest:
        if endpoint not in manifest.served:
            known = ", ".join(sorted(manifest.endpoints)) or "none"
            raise RepositoryError(f"no endpoint '{endpoint}' in {repository}; there are: {known}")
        target = _earlier(manifest, endpoint, to)
        return _serve(repository, manifest, endpoint, target, force=True)


def retire(repository: Path, endpoint: str) -> None:
    """Publish an endpoint no more; the versions that only it named go with it.

    Raises:
        RepositoryError: there is no such endpoint, or it is one that search services call.
    """
    with writing(repository) as manifest:
        if endpoint in ENDPOINTS:
            raise RepositoryError(
                f"'{endpoint}' is what search services call; point it at another variant instead: "
                "'builders publish VARIANT'"
            )
        if endpoint not in manifest.served:
            known = ", ".join(sorted(set(manifest.endpoints) - set(ENDPOINTS))) or "none"
            raise RepositoryError(f"no endpoint '{endpoint}' in {repository}; there are: {known}")
        change_state(repository, manifest, manifest.without([endpoint]))


def prune(repository: Path, keep: int = KEPT_GENERATIONS) -> tuple[list[str], int]:
    """Keep only so many generations of every endpoint, and remove version folders that none names. Safe while serving:
    what an endpoint serves stays.

    Returns:
        Names of the generations given up, as ``rank: two_tower_fp32_onnx@1``, and bytes freed.
    """
    with writing(repository) as manifest:
        kept = {name: generations[-keep:] for name, generations in manifest.endpoints.items()}
        gone = [
            f"{name}: {each.name}" for name, generations in manifest.endpoints.items() for each in generations[:-keep]
        ]
        before = size_bytes(repository)
        after = change_state(repository, manifest, manifest.model_copy(update={"endpoints": kept}), settle=True)
        remove_unnamed(repository, after, _models_there(repository))
        return gone, before - size_bytes(repository)


# ---------------------------------------------------------------- what there is
@dataclasses.dataclass(frozen=True)
class PublishedGeneration:
    """A line of ``builders status``.

    Attributes:
        served: whether the endpoint serves it now; else it can be rolled back to.
        recipe, data, gate: as the manifest has them of its scorer; empty where it does not say.
        size_bytes: of the version folders that it names; those of several generations count for each.
    """

    endpoint: str
    generation: Generation
    served: bool
    recipe: str
    data: str
    gate: str
    size_bytes: int


def published_generations(repository: Path) -> Iterator[PublishedGeneration]:
    """Of every endpoint what it serves, then what is kept, newest first. Raises: RepositoryError."""
    manifest = read_manifest(repository)
    for endpoint, generations in sorted(manifest.endpoints.items()):
        for generation in reversed(generations):
            built_from = manifest.built_from(generation)
            folders = [repository / model / str(version) for model, version in generation.steps.items()]
            yield PublishedGeneration(
                endpoint,
                generation,
                generation is generations[-1],
                str(built_from.get("recipe", "")),
                str(built_from.get("data", "")),
                str(built_from.get("gate", "")),
                sum(map(size_bytes, folders)),
            )


def size_bytes(folder: Path) -> int:
    """Of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- how
def _serve(repository: Path, manifest: Manifest, endpoint: str, generation: Generation, *, force: bool) -> Generation:
    built_from = manifest.built_from(generation)
    failed = built_from.get("passed") is False
    if failed and not force and not generation.forced:
        raise GateNotPassed(
            f"{generation.name} failed its gate ({built_from.get('gate')}); --force publishes it anyway, and the "
            "manifest says so"
        )
    if damaged := damaged_files(repository, manifest, generation):
        raise RepositoryError(
            f"{generation.name} cannot be served: {'; '.join(damaged)}. Run 'make repository' to publish it anew"
        )
    chosen = generation.model_copy(update={"forced": generation.forced or failed})
    change_state(repository, manifest, manifest.serving(endpoint, chosen))
    return chosen


def _earlier(manifest: Manifest, endpoint: str, to: str | None) -> Generation:
    own = manifest.endpoints[endpoint]
    if to is None:
        if len(own) < 2:
            raise RepositoryError(
                f"'{endpoint}' served nothing before {own[-1].name} that is kept; 'builders status' lists what is"
            )
        return own[-2]
    kind = endpoint.split("_")[0]
    others = [each for name, kept in manifest.endpoints.items() if name.split("_")[0] == kind for each in kept]
    kept = {each.name: each for each in [*others, *own]}
    wanted = [each for each in kept.values() if to in (each.name, each.variant) and each.name != own[-1].name]
    if not wanted:
        known = ", ".join(sorted(set(kept) - {own[-1].name})) or "none"
        raise RepositoryError(f"'{to}' is not kept for '{endpoint}', which serves {own[-1].name}; kept are: {known}")
    return max(wanted, key=lambda each: each.number)


def _models_there(repository: Path) -> list[str]:
    """Those that were published here at some time: their version folders hold a contract."""
    return sorted({path.parent.parent.name for path in repository.glob(f"*/[0-9]*/{CONTRACT}")})
