"""The admin key: whoever shows it may load models, register shared memory and change log and trace settings.

A model can be loaded from the files that a request brings, so without a key whoever reaches a port runs code here.
`python -m server.admin_key` prints the options of tritonserver that ask for it, for a container's entry point.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
import tempfile
from pathlib import Path

from server.errors import AdminKeyError, one_line

RESTRICTED = ("model-repository", "shared-memory", "logging", "trace")
HEADER = "tritonrank-admin-key"  # of HTTP
GRPC_HEADER = f"triton-grpc-protocol-{HEADER}"  # Triton's prefix for gRPC
KEY_FILE_VARIABLE = "TRITONRANK_ADMIN_KEY_FILE"
OPEN_VARIABLE = "TRITONRANK_OPEN_APIS"
DEFAULT_KEY_FILE = Path(__file__).resolve().parent.parent / "admin.key"
_WELL_FORMED = re.compile(r"[A-Za-z0-9_-]{32,}")  # Triton splits its option at ':', ',' and '='


def key_file(named: str | os.PathLike[str] | None = None) -> Path:
    """Return the key's file: `named`, else $TRITONRANK_ADMIN_KEY_FILE, else admin.key of this checkout."""
    return Path(named or os.environ.get(KEY_FILE_VARIABLE) or DEFAULT_KEY_FILE)


def opened_by_variable() -> bool:
    """Whether $TRITONRANK_OPEN_APIS is 1. Raises AdminKeyError for any value but 1, 0 and none."""
    value = os.environ.get(OPEN_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise AdminKeyError(f"{OPEN_VARIABLE}: found '{value}', expected 1 (no admin key is asked for) or 0; unset it.")
    return value == "1"


def new_key() -> str:
    """Return 256 random bits as 64 hex digits."""
    return secrets.token_hex(32)


def read_or_make_key(path: Path) -> str:
    """Return the key in `path`; made there, for its owner only, where there is no such file. Raises AdminKeyError."""
    try:
        if not path.exists():
            _make(path)
        return _read(path)
    except OSError as error:
        raise AdminKeyError(
            f"the admin key cannot be kept in {path} ({error.strerror}); name a file that this user can write with "
            f"--admin-key-file or {KEY_FILE_VARIABLE}."
        ) from error


def key_if_there(path: Path) -> str | None:
    """Return the key in `path`, None where there is no such file. Raises AdminKeyError."""
    try:
        return _read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AdminKeyError(
            f"the admin key in {path} cannot be read ({error.strerror}); be the user who started the server, or name "
            f"another file with --admin-key-file or {KEY_FILE_VARIABLE}."
        ) from error


def _read(path: Path) -> str:
    if path.stat().st_mode & stat.S_IRWXO:
        raise AdminKeyError(
            f"{path} holds the admin key, and everyone on this machine can read it; run 'chmod 600 {path}'."
        )
    key = path.read_text(errors="replace").strip()
    if not _WELL_FORMED.fullmatch(key):
        raise AdminKeyError(
            f"{path} holds no admin key, expected 32 or more letters, digits, '_' and '-'; remove the file, and the "
            "next start makes one."
        )
    return key


def restricting_options(key: str) -> list[str]:
    """Return the options with which tritonserver asks for `key`, over HTTP and over gRPC."""
    rule = f"{','.join(RESTRICTED)}:{HEADER}={key}"
    return [f"--http-restricted-api={rule}", f"--grpc-restricted-protocol={rule}"]


def _make(path: Path) -> None:
    """Written beside and linked, so that of two servers that start at once both read one whole key."""
    file, beside = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(file, "w") as new:
            new.write(new_key() + "\n")
        if not path.exists():
            os.link(beside, path)
    except FileExistsError:
        pass
    finally:
        Path(beside).unlink()


def _main() -> int:
    try:
        options = [] if opened_by_variable() else restricting_options(read_or_make_key(key_file()))
    except AdminKeyError as error:
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    print("\n".join(options))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
