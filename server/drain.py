"""Makes a running tritonserver say that it is not ready, while it goes on answering.

Triton has no such command. It is unready, on every ready endpoint, as long as a model that was to be loaded could not
be: so it is told to load one that cannot, from a repository that holds nothing else. What is loaded is not touched.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Sequence
from pathlib import Path

from server import health

MODEL = "draining"
CONFIG = 'backend: "draining"\nmax_batch_size: 0\n'  # of which there is none
CONNECT_S = 0.2
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def report_unready(command: Sequence[str], repository: Path) -> str | None:
    """Make the server that `command` has started say that it is not ready; return why it does not, None where it does.

    Args:
        command: tritonserver's, which says where HTTP listens and which key control of models asks for.
        repository: an empty folder, one of the command's ``--model-repository``.
    """
    (repository / MODEL / "1").mkdir(parents=True, exist_ok=True)
    (repository / MODEL / "config.pbtxt").write_text(CONFIG)
    host, port = http_address(command)
    try:
        health.call(host, port, "POST", f"/v2/repository/models/{MODEL}/load", _admin_header(command))
        status, _ = health.call(host, port, "GET", "/v2/health/ready")
    except (OSError, http.client.HTTPException) as error:
        return f"no answer at {host}:{port} ({error})"
    return None if status != 200 else f"control of models is refused at {host}:{port}"


def http_address(command: Sequence[str]) -> tuple[str, int]:
    """Where the HTTP of the server that `command` has started can be reached on this machine."""
    address = option(command, "http-address", "127.0.0.1")
    return ANY_ADDRESS.get(address, address), int(option(command, "http-port", "8000"))


def listens(command: Sequence[str]) -> bool:
    """Whether the server that `command` has started listens by HTTP: Triton does once its first models are loaded."""
    with contextlib.suppress(OSError), socket.create_connection(http_address(command), CONNECT_S):
        return True
    return False


def option(command: Sequence[str], name: str, default: str) -> str:
    """The value of ``--name=value`` in a command, the first one where there are several."""
    return next((word.partition("=")[2] for word in command if word.startswith(f"--{name}=")), default)


def _admin_header(command: Sequence[str]) -> dict[str, str]:
    """Of ``--http-restricted-api=<apis>:<header>=<key>``, where it names the repository's API."""
    for word in command:
        apis, _, header = word.removeprefix("--http-restricted-api=").partition(":")
        if word.startswith("--http-restricted-api=") and "model-repository" in apis.split(","):
            name, _, key = header.partition("=")
            return {name: key}
    return {}
