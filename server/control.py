"""`python -m server.control load rank`: makes the server that runs on this machine take up what was published.

It shows the server's admin key. In a container: `docker compose exec triton-cpu python3 -m server.control load rank`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from server import health
from server.admin_key import HEADER, KEY_FILE_VARIABLE, key_file, key_if_there
from server.errors import ControlError, ServerError, one_line

LOAD_TIMEOUT_S = 600.0
DONE = {"load": "loaded", "unload": "unloaded"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Load or unload models; return the exit code."""
    options = _parse(arguments)
    try:
        key = key_if_there(key_file(options.admin_key_file))
        for model in options.models:
            ask(options.action, model, options.http_host, options.http_port, key)
            print(f"{model}: {DONE[options.action]}")
    except ServerError as error:
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    return 0


def ask(action: str, model: str, host: str, port: int, key: str | None) -> None:
    """Have the server whose HTTP listens at host:port `load` or `unload` a model.

    key: the server's admin key; None for one with open APIs. Raises ControlError.
    """
    failed = f"{model} was not {DONE[action]}"
    headers = {} if key is None else {HEADER: key}
    try:
        status, body = health.call(
            host, port, "POST", f"/v2/repository/models/{model}/{action}", headers, timeout_s=LOAD_TIMEOUT_S
        )
    except (OSError, http.client.HTTPException) as error:
        raise ControlError(
            f"{failed}: no answer from {host}:{port} ({error}). Is the server running here, and is this its HTTP port "
            "(--http-port)? In a container, run this in there."
        ) from error
    if status == 403:
        raise ControlError(
            f"{failed}: the server at {host}:{port} asks for its admin key, and "
            f"{'none was found' if key is None else 'the one found is another'}; name the file that it was started "
            f"with by --admin-key-file or {KEY_FILE_VARIABLE}."
        )
    if status != 200:
        raise ControlError(f"{failed}: {_reason(body)}. 'python -m builders status' lists what is published.")


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:500]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m server.control", description=__doc__)
    parser.add_argument("action", choices=DONE, help="load: also what was published since it was loaded")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="such as rank")
    parser.add_argument("--http-host", default="127.0.0.1", help="where the server's HTTP listens (%(default)s)")
    parser.add_argument("--http-port", type=int, default=8000, help="(%(default)s)")
    parser.add_argument("--admin-key-file", type=Path, help=f"(${KEY_FILE_VARIABLE}, admin.key of this checkout)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
