"""Ed25519 signatures of ``manifest.json``, which names every file of a repository by its hash.

``manifest.json.sig`` holds signatures in base64, a line each; one of the manifest that is there is enough. Both that of
the manifest in place and that of the one to come are there while it is replaced, so that a server which starts at that
moment finds one. ``server/verify.py`` reads it. Make a key with ``openssl genpkey -algorithm ed25519 -out key.pem``.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from builders.core.errors import BuilderError
from builders.core.files import write_atomically

SIGNATURES = "manifest.json.sig"
KEY_VARIABLE = "TRITONRANK_SIGNING_KEY"
"""Environment variable: a private key's PEM file, by which every publication signs its manifest."""


class SigningKeyError(BuilderError):
    """The file holds no private key that can sign."""


def key_of_environment() -> Path | None:
    """The file that $TRITONRANK_SIGNING_KEY names; None where it names none."""
    name = os.environ.get(KEY_VARIABLE)
    return Path(name) if name else None


def signature(text: bytes, key: Path) -> str:
    """Base64. Raises: SigningKeyError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(
            f"{key}: no Ed25519 private key in PEM without a password ({error}); make one with "
            "'openssl genpkey -algorithm ed25519 -out key.pem'"
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise SigningKeyError(f"{key}: a key of another kind; wanted Ed25519, 'openssl genpkey -algorithm ed25519'")
    return base64.b64encode(private.sign(text)).decode("ascii")


def write_signatures(repository: Path, *signatures: str) -> None:
    """Replace the file by rename."""
    write_atomically(repository / SIGNATURES, "".join(f"{line}\n" for line in signatures))


def read_signatures(repository: Path) -> list[str]:
    """The lines of the file; empty where there is none."""
    path = repository / SIGNATURES
    return path.read_text(encoding="ascii", errors="replace").split() if path.is_file() else []
