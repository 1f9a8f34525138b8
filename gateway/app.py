"""The application: every interface, and one form of errors for what is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from tritonrank_client import __version__

from gateway import cohere, health, models, nemo, own, tei
from gateway.errors import Fault, Refusal
from gateway.service import Service

ROUTERS = (cohere.router, cohere.model_server_router, tei.router, nemo.router, own.router, models.router, health.router)


def create_app() -> FastAPI:
    """Asks what ``app.state.service``, a :class:`Service`, holds when the first request comes; closes it at the end."""
    app = FastAPI(
        title="tritonrank gateway",
        version=__version__,
        description=__doc__,
        lifespan=_closing,
        docs_url=None,  # their pages load code from another network
        redoc_url=None,
    )
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(HTTPException, _of_no_interface)
    return app


@asynccontextmanager
async def _closing(app: FastAPI) -> AsyncIterator[None]:
    yield
    service: Service = app.state.service
    await service.close()


async def _of_no_interface(request: Request, error: Exception) -> Response:
    """No such path, or another method."""
    assert isinstance(error, HTTPException)
    found = f"{request.method} {request.url.path}"
    response = own.OWN.response(Refusal(Fault.NOT_FOUND, f"{found}: not here; /openapi.json lists what is"))
    response.status_code = error.status_code
    response.headers.update(error.headers or {})
    return response
