"""The gateway on a free port of this machine, in a thread; what it is asked goes through its port."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import uvicorn

from gateway.serve import server_of
from gateway.settings import Settings
from tests.support.waiting import wait_until

PATIENT_S = 20.0
"""Of a request, on a machine with other work."""


@contextlib.contextmanager
def gateway(triton: str, **settings: Any) -> Iterator[httpx2.Client]:
    """A client of it. triton: host and port of the gRPC service."""
    made = Settings(servers=(triton,), port=0, **{"timeout_s": PATIENT_S, **settings})
    with listening(made) as url, httpx2.Client(base_url=url, timeout=2 * PATIENT_S) as client:
        yield client


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[str]:
    """Its URL."""
    servers: list[uvicorn.Server] = []
    failed: list[BaseException] = []

    async def serve() -> None:
        servers.append(server_of(settings))
        await servers[0].serve()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until(lambda: bool(failed) or (bool(servers) and servers[0].started))
    if failed:
        raise failed[0]
    try:
        yield f"http://127.0.0.1:{servers[0].servers[0].sockets[0].getsockname()[1]}"
    finally:
        servers[0].should_exit = True
        thread.join()
