"""Keys that callers show as ``Authorization: Bearer KEY``."""

from __future__ import annotations

import hmac
import re
import stat
from pathlib import Path

from gateway.errors import Fault, GatewayError, Refusal

_WELL_FORMED = re.compile(rb"[!-~]{32,}")
_SCHEME = re.compile(r"Bearer +(\S+)", re.IGNORECASE)


class Keys:
    """Those that the gateway knows; their values are in no repr and no message."""

    def __init__(self, keys: tuple[bytes, ...]):
        self._keys = keys

    @classmethod
    def read(cls, path: Path) -> Keys:
        """One key a line; empty lines and lines that start with ``#`` are passed over.

        Raises: GatewayError: the file cannot be read, everyone can read it, or it holds no key or something else.
        """
        try:
            if path.stat().st_mode & stat.S_IRWXO:
                raise GatewayError(
                    f"{path} holds keys, and everyone on this machine can read it; run 'chmod 600 {path}'"
                )
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise GatewayError(
                f"{path}: {error.strerror}; name a file with one key a line, such as 'openssl rand -hex 32' makes"
            ) from error
        keys = {
            number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()[:1] not in (b"", b"#")
        }
        for number, key in keys.items():
            if not _WELL_FORMED.fullmatch(key):
                raise GatewayError(
                    f"{path}:{number}: found no key, wanted 32 or more printable characters without a space; "
                    "'openssl rand -hex 32' makes one"
                )
        if not keys:
            raise GatewayError(f"{path}: found no key, wanted one a line; 'openssl rand -hex 32' makes one")
        return cls(tuple(keys.values()))

    def check(self, authorization: str | None) -> None:
        """Of the header ``Authorization``. Takes as long for a wrong key as for a right one. Raises: Refusal."""
        found = _SCHEME.fullmatch(authorization or "")
        if found is None:
            raise Refusal(Fault.UNAUTHORIZED, "no key found, wanted the header 'Authorization: Bearer KEY'")
        shown = found[1].encode("utf-8", "replace")
        if not sum(hmac.compare_digest(shown, key) for key in self._keys):  # not any(): each is compared
            raise Refusal(Fault.UNAUTHORIZED, "this key is not known here")
