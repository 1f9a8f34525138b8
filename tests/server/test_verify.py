"""A repository that is not as it was published is not served: by the launcher, and by the container's entry point."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from builders.core.workspace import REPOSITORY_ROOT
from builders.publish.manifest import sign_manifest
from builders.publish.repository import tune_machine
from builders.publish.signing import KEY_VARIABLE, SigningKeyError
from server import RepositoryError, TritonServer
from server.verify import NotAsPublished, check_as_published
from tests.support.endpoint import rank
from tests.support.tiny_models import publish, tiny_model

ANY_PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
CODE = "tiny/1/model.py"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path / "models", tiny_model(tmp_path / "sources", 1))
    return tmp_path / "models"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def into_a_link(path: Path) -> None:
    """To itself under another name, outside the repository."""
    root = next(parent for parent in path.parents if parent.name == "models")
    path.symlink_to(path.rename(root.parent / "elsewhere"))


def emptied(path: Path) -> None:
    path.write_text(json.dumps({"models": {}, "endpoints": {}, "still_loaded": {}, "files": {}}))


def byte_code(folder: Path) -> None:
    (folder / "__pycache__").unlink()
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"anything")


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "other code": (lambda root: (root / CODE).write_text("raise SystemExit"), f"{CODE} has another content"),
    "one bit": (lambda root: flip_a_bit(root / CODE), f"{CODE} has another content"),
    "a file that is gone": (lambda root: (root / CODE).unlink(), f"{CODE} is missing"),
    "a file beside": (lambda root: (root / "tiny/1/helper.py").write_text(""), "tiny/1/helper.py was not published"),
    "byte code": (lambda root: byte_code(root / "tiny/1"), "model.cpython-311.pyc was not published"),
    "a link to the same": (lambda root: into_a_link(root / CODE), f"{CODE} is a link"),
    "a folder that is a link": (lambda root: into_a_link(root / "tiny/1"), "tiny/1 is a link"),
    "a model that is a link": (lambda root: into_a_link(root / "tiny"), "tiny is a link"),
    "a configuration": (lambda root: flip_a_bit(root / "tiny/config.pbtxt"), "tiny/config.pbtxt has another content"),
    "an endpoint": (lambda root: flip_a_bit(root / "rank/config.pbtxt"), "rank/config.pbtxt has another content"),
    "an empty manifest": (lambda root: emptied(root / "manifest.json"), "rank was not published"),
    "a manifest that is none": (lambda root: (root / "manifest.json").write_text("{}"), "is none that can be verified"),
    "no manifest": (lambda root: (root / "manifest.json").unlink(), "nothing to verify it against"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_is_not_as_it_was_published_is_refused(repository: Path, how: str) -> None:
    change, complaint = TAMPERED[how]
    check_as_published(repository, ["rank"])
    change(repository)
    with pytest.raises(NotAsPublished, match=complaint.replace(".", r"\.")):
        check_as_published(repository, ["rank"])
    check_as_published(repository, ["rank"], "off")


def test_what_nothing_asked_for_names_is_not_looked_at(repository: Path) -> None:
    flip_a_bit(repository / "rank_tiny/config.pbtxt")
    check_as_published(repository, ["rank"])
    with pytest.raises(NotAsPublished, match=r"rank_tiny/config\.pbtxt has another content"):
        check_as_published(repository, None)


def test_a_machines_configuration_is_checked_where_it_is_used(repository: Path) -> None:
    [tuned] = tune_machine(repository, "lab", instances=2, threads=1)
    check_as_published(repository, None, config_name="lab")
    flip_a_bit(tuned)
    check_as_published(repository, None)
    with pytest.raises(NotAsPublished, match=r"tiny/configs/lab\.pbtxt has another content"):
        check_as_published(repository, None, config_name="lab")


# ---------------------------------------------------------------- signatures
@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """Private, public."""
    return write_keys(tmp_path, "ours")


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    private = Ed25519PrivateKey.generate()
    paths = folder / f"{name}.pem", folder / f"{name}.pub"
    pem, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    paths[0].write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password))
    subject = serialization.PublicFormat.SubjectPublicKeyInfo
    paths[1].write_bytes(private.public_key().public_bytes(pem, subject))
    return paths


def test_a_signed_repository_is_served_and_one_signed_by_others_is_not(
    repository: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(NotAsPublished, match="is not signed; run 'builders sign KEY'"):
        check_as_published(repository, ["rank"], "signature", public_key=keys[1])
    sign_manifest(repository, keys[0])
    check_as_published(repository, ["rank"], "signature", public_key=keys[1])
    strangers = write_keys(tmp_path, "theirs")
    with pytest.raises(NotAsPublished, match="holds no signature of this manifest"):
        check_as_published(repository, ["rank"], "signature", public_key=strangers[1])
    publish(repository, tiny_model(tmp_path / "sources", 2))
    with pytest.raises(NotAsPublished, match="holds no signature of this manifest"):
        check_as_published(repository, ["rank"], "signature", public_key=keys[1])


def test_every_publication_is_signed_where_a_key_is_named(
    repository: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, str(keys[0]))
    publish(repository, tiny_model(tmp_path / "sources", 2))
    check_as_published(repository, ["rank"], "signature", public_key=keys[1])
    assert len((repository / "manifest.json.sig").read_text().splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_is_no_key_is_refused_on_both_sides(repository: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(SigningKeyError, match=r"no Ed25519 private key in PEM .*openssl genpkey"):
        sign_manifest(repository, tmp_path / "key.pem")
    with pytest.raises(NotAsPublished, match="is no PEM file with an Ed25519 public key"):
        check_as_published(repository, ["rank"], "signature", public_key=tmp_path / "key.pem")
    with pytest.raises(NotAsPublished, match="needs --public-key"):
        check_as_published(repository, ["rank"], "signature")


# ---------------------------------------------------------------- who asks
@pytest.mark.server
def test_a_verified_repository_is_served_and_stays_as_it_was(repository: Path) -> None:
    files = {path for path in repository.rglob("*") if path.is_file()}
    with (
        TritonServer(repository, ["rank"], verify="hash", **ANY_PORTS) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        assert rank(client, "rank", "mug", ["a"])[1] == [1]
    assert {path for path in repository.rglob("*") if path.is_file()} == files  # no byte code of Python's
    check_as_published(repository, None)


@pytest.mark.server
def test_the_launcher_verifies_unless_told_otherwise(repository: Path) -> None:
    flip_a_bit(repository / CODE)
    command = [sys.executable, "-m", "server", "--repository", str(repository)]
    found = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, "")
    assert f"is not as it was published: {CODE} has another content" in found.stderr
    with pytest.raises(RepositoryError, match="has another content"):
        TritonServer(repository, ["rank"], verify="hash", **ANY_PORTS).start()


def test_the_containers_entry_point_verifies_before_it_becomes_tritonserver(repository: Path, tmp_path: Path) -> None:
    """With a ``tritonserver`` that says that it was started, in the place of the container's."""
    fake = tmp_path / "bin" / "tritonserver"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "started $@"\n')
    fake.chmod(0o755)

    def serve(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, REPOSITORY_ROOT / "deploy" / "serve.py", str(repository), "--load-model=rank"],
            env={"PATH": f"{fake.parent}:/usr/bin:/bin", **variables},
            capture_output=True,
            text=True,
        )

    assert "started --load-model=rank" in serve().stdout
    flip_a_bit(repository / CODE)
    refused = serve()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "has another content" in refused.stderr
    assert "started" in serve(TRITONRANK_VERIFY="off").stdout
    assert "needs --public-key" in serve(TRITONRANK_VERIFY="signature").stderr
    shutil.rmtree(repository / "tiny")
    assert serve().returncode == 1
