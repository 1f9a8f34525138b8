"""A certificate for a server on this machine, for as long as something is measured on it."""

from __future__ import annotations

from pathlib import Path

import trustme

from server.triton import LOOPBACK


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Files of the certificate, which is its own authority's too, and of its key."""
    authority = trustme.CA()
    issued = authority.issue_cert(LOOPBACK)
    certificate, key = folder / "server.pem", folder / "server.key"
    for part in (*issued.cert_chain_pems, authority.cert_pem):
        part.write_to_path(certificate, append=True)
    issued.private_key_pem.write_to_path(key)
    return certificate, key
