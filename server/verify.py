"""Whether a model repository is as it was published: each file that Triton would load against ``manifest.json``.

    off        nothing is checked
    hash       every file has the SHA-256 that the manifest gives, none is missing, none is beside them, none is a link
    signature  and the manifest carries an Ed25519 signature of the given public key

As a program it checks and prints nothing, or ends with 1 and the reason: the container's entry point runs it. Standard
library only, but for signatures (``cryptography``). It reads what lies there at that moment: who can write to the
repository can change it afterwards, so mount it read-only.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MODES = ("off", "hash", "signature")
MANIFEST, SIGNATURES = "manifest.json", "manifest.json.sig"
LISTED = 5
"""Faults that a message names; the rest it counts."""


class NotAsPublished(ValueError):
    """The repository is not as it was published, or that cannot be told; the message says what to do."""


def check_as_published(
    repository: Path,
    models: Sequence[str] | None,
    mode: str = "hash",
    *,
    config_name: str | None = None,
    public_key: Path | None = None,
) -> None:
    """Raise NotAsPublished where what these models (None = all published ones) load is not as it was published.

    Args:
        config_name: of the machine's configurations, which are checked too where a model has one.
        public_key: PEM file, for ``signature``.
    """
    if mode == "off":
        return
    text = _manifest_bytes(repository)
    if mode == "signature":
        _check_signature(repository, text, public_key)
    manifest = _parsed(repository, text)
    faults = list(_faults(repository, manifest, models, config_name))
    if faults:
        more = f" and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        raise NotAsPublished(
            f"model repository {repository} is not as it was published: {'; '.join(faults[:LISTED])}{more}. Find out "
            "who changed it; 'make repository' publishes it anew, --verify off serves it as it is"
        )


# ---------------------------------------------------------------- manifest
def _manifest_bytes(repository: Path) -> bytes:
    path = repository / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise NotAsPublished(
            f"model repository {repository}: no {MANIFEST}, so there is nothing to verify it against; 'make "
            "repository' publishes and writes one, --verify off serves it as it is"
        )
    return path.read_bytes()


def _parsed(repository: Path, text: bytes) -> dict[str, Any]:
    try:
        manifest = dict(json.loads(text))
        return {name: dict(manifest[name]) for name in ("models", "endpoints", "still_loaded", "files")}
    except (ValueError, KeyError, TypeError) as error:
        raise NotAsPublished(
            f"{repository / MANIFEST} is none that can be verified ({type(error).__name__}: {error}); run "
            "'make repository' to write it anew"
        ) from error


def _check_signature(repository: Path, text: bytes, public_key: Path | None) -> None:
    if public_key is None:
        raise NotAsPublished("--verify signature needs --public-key, a PEM file with an Ed25519 public key")
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise NotAsPublished(f"--verify signature needs the package 'cryptography' ({error})") from error
    try:
        key = load_pem_public_key(public_key.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise NotAsPublished(f"{public_key} is no PEM file with an Ed25519 public key ({error})") from error
    if not isinstance(key, Ed25519PublicKey):
        raise NotAsPublished(f"{public_key} holds a key of another kind; wanted Ed25519")
    path = repository / SIGNATURES
    if not path.is_file():
        raise NotAsPublished(f"{path} is not there: the manifest is not signed; run 'builders sign KEY'")
    for line in path.read_bytes().split():
        try:
            key.verify(base64.b64decode(line), text)
            return
        except (InvalidSignature, ValueError):
            continue
    raise NotAsPublished(f"{path} holds no signature of this {MANIFEST} by {public_key}; run 'builders sign KEY'")


# ---------------------------------------------------------------- files
def _faults(
    repository: Path, manifest: Mapping[str, Any], models: Sequence[str] | None, config_name: str | None
) -> Iterator[str]:
    served = {name: generations[-1]["steps"] for name, generations in manifest["endpoints"].items()}
    wanted = list(served) if models is None else list(models)
    for name in wanted:
        if name not in served and name not in manifest["models"]:
            yield f"{name} was not published"
    steps = {step for name in wanted for step in served.get(name, {name: 0})}
    for name in sorted({*wanted, *steps} & {*served, *manifest["models"]}):
        versions = {step[name] for step in served.values() if name in step} | set(
            manifest["still_loaded"].get(name, ())
        )
        yield from _model_faults(repository, name, versions, manifest["files"], config_name)


def _model_faults(
    repository: Path, name: str, versions: Iterable[int], files: Mapping[str, Sequence[str]], config_name: str | None
) -> Iterator[str]:
    """Of a model's folder what Triton reads: its configuration, and the versions that are served."""
    folder = repository / name
    read = [folder / "config.pbtxt"]
    if config_name and (folder / "configs" / f"{config_name}.pbtxt").exists():
        read.append(folder / "configs" / f"{config_name}.pbtxt")
    for path in (folder, folder / "configs"):
        if path.is_symlink():
            yield f"{path.relative_to(repository)} is a link"
    for version in versions:
        inside = folder / str(version)
        if inside.is_symlink():
            yield f"{inside.relative_to(repository)} is a link"
        start = f"{name}/{version}/"
        read += [repository / path for path in files if path.startswith(start)]
        there = {path.relative_to(repository).as_posix() for path in inside.rglob("*") if not path.is_dir()}
        for stranger in sorted(there - set(files)):
            yield f"{stranger} was not published"
    for path in read:
        yield from _file_faults(path, path.relative_to(repository).as_posix(), files)


def _file_faults(path: Path, name: str, files: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if path.is_symlink():
        yield f"{name} is a link"
    elif not path.is_file():
        yield f"{name} is missing"
    elif name not in files:
        yield f"{name} was not published"
    elif _sha256(path) not in files[name]:
        yield f"{name} has another content"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--load", action="append", metavar="MODEL", help="repeatable; none or * = all published")
    parser.add_argument("--verify", choices=MODES, default="hash")
    parser.add_argument("--config-name")
    parser.add_argument("--public-key", type=Path)
    options = parser.parse_args()
    models = None if not options.load or "*" in options.load else options.load
    try:
        check_as_published(
            options.repository,
            models,
            options.verify,
            config_name=options.config_name,
            public_key=options.public_key,
        )
    except NotAsPublished as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
