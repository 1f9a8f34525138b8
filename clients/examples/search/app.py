"""The search page over HTTP."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from tritonrank_client import InvalidRequest

from builders.core.errors import BuilderError
from clients.examples.search.answers import Answer, Start, Why
from clients.examples.search.service import SearchService
from server.ports import port_to_bind

HOST = "127.0.0.1"
PAGE = Path(__file__).parent / "page"


def search_app(service: SearchService) -> FastAPI:
    """The page at ``/``, what it asks for below ``/api``. A refused request is 422 with the reason as ``detail``."""
    app = FastAPI(title="tritonrank search", docs_url=None, redoc_url=None)  # their pages fetch from elsewhere

    @app.get("/api/start")
    def start() -> Start:
        return service.start()

    @app.get("/api/search")
    def search(query: str, endpoint: str) -> Answer:
        return service.search(query, endpoint)

    @app.get("/api/recommend")
    def recommend(customer: str, endpoint: str) -> Answer:
        return service.recommend(customer, endpoint)

    @app.get("/api/why")
    def why(endpoint: str, item: str, query: str = "", customer: str = "") -> Why:
        return service.why(endpoint, item, query=query, customer=customer)

    @app.get("/api/ready")
    def ready(endpoint: str) -> bool:
        return service.ready(endpoint)

    for kind in (InvalidRequest, BuilderError):
        app.add_exception_handler(kind, _refused)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _refused(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=422)


@contextlib.contextmanager
def served(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The address of the app, which a thread serves to this machine until the block ends.

    Args:
        port: 0 = a free one.

    Raises:
        PortInUse: something else listens there.
    """
    listening = socket.create_server((HOST, port_to_bind(HOST, port, "--port")))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
