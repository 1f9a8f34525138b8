"""The gateway behind its port."""

from __future__ import annotations

import uvicorn

from gateway.app import create_app
from gateway.auth import Keys
from gateway.service import Service
from gateway.settings import Settings

DRAIN_S = 10
"""Requests under way may take so long after SIGTERM."""


def server_of(settings: Settings) -> uvicorn.Server:
    """To be served in the event loop that runs now.

    Raises: GatewayError: the key file; InvalidRequest: the client's, for a server's address or its TLS files.
    """
    keys = Keys.read(settings.key_file) if settings.key_file else None
    app = create_app()
    app.state.service = Service(settings, keys)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            access_log=False,  # /metrics counts
            server_header=False,
            timeout_graceful_shutdown=DRAIN_S,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
        )
    )
