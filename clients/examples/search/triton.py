"""The Triton under the page: takes an endpoint when it is first asked for, and is started again when it has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable

from server import TritonServer, control


class LoadedOnce:
    """Makes a server load an endpoint that it was not started with, once; a restart loads it, too.

    All at start would take a process a step of every published variant.
    """

    def __init__(self, server: TritonServer) -> None:
        self._server = server
        self._lock = threading.Lock()

    def __call__(self, endpoint: str) -> None:
        """Return when the server has the endpoint. Raises: ControlError."""
        models = self._server.models
        if models is None or endpoint in models:
            return
        with self._lock:
            if endpoint in models:
                return
            control.ask("load", endpoint, self._server.http_host, self._server.http_port, self._server.admin_key)
            models.append(endpoint)


def keep_up(server: TritonServer, say: Callable[[str], None]) -> None:
    """Start the server again whenever it ends, until Ctrl-C. Raises: ServerError: it does not start any more."""
    try:
        while True:
            server.wait()
            say("tritonserver has ended, and is started again; the page shows first-stage orders meanwhile")
            server.restart()
            say("tritonserver is up again")
    except KeyboardInterrupt:
        say("stopping")
