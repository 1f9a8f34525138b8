"""The containers' health check: exits with 0 if the server here takes requests and each endpoint that it loaded answers
a real one as it should; else with 1, and says on stderr what is wrong.

Usage: ready.py [HTTP_PORT [REPOSITORY]]

The requests are those that the build wrote into the repository's manifest, see ``server/canary.py``. Scores are
compared while the store ($TRITONRANK_ITEM_STORE, /item_store) holds what the build scored.
"""

from __future__ import annotations

import http.client
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from server import canary, health

DEFAULT_HTTP_PORT = 8000
DEFAULT_REPOSITORY = "/models"
HOST = "127.0.0.1"
TIMEOUT_S = 2.0


def main(port: int = DEFAULT_HTTP_PORT, repository: str = DEFAULT_REPOSITORY) -> int:
    """The code to exit with."""
    if not is_ready(port):
        print(f"not ready: http://{HOST}:{port}/v2/health/ready", file=sys.stderr)
        return 1
    try:
        faults = list(canary.faults(HOST, port, Path(repository), item_store(), TIMEOUT_S))
    except (OSError, ValueError, KeyError, TypeError) as error:
        faults = [f"{repository}: no canary can be read ({type(error).__name__}: {error})"]
    for fault in faults:
        print(f"not ready: {fault}", file=sys.stderr)
    return 1 if faults else 0


def is_ready(port: int) -> bool:
    """Whether GET /v2/health/ready on this machine is answered with 200."""
    try:
        status, _ = health.call(HOST, port, "GET", "/v2/health/ready", timeout_s=TIMEOUT_S)
    except (OSError, http.client.HTTPException):
        return False
    return status == http.client.OK


def item_store() -> Path | None:
    """The store to compare with; None, and said so, where this Python cannot read it."""
    folder = Path(os.environ.get("TRITONRANK_ITEM_STORE") or "/item_store")
    if not (folder / "data.mdb").is_file():
        return None
    try:
        import lmdb  # noqa: F401 - whether it is there
    except ImportError as error:
        print(f"scores are not compared: {error}", file=sys.stderr)
        return None
    return folder


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(*(int(argument) if place == 0 else argument for place, argument in enumerate(arguments))))
