"""What happens around every request of an interface: key, place, body, error form, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable, Coroutine, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from opentelemetry import context, propagate, trace
from starlette.requests import ClientDisconnect
from starlette.types import Message
from tritonrank_client import Degraded, ServerError

from gateway.errors import ErrorForm, Fault, Refusal, refusal_of
from gateway.service import Service

REQUEST_ID, DEGRADED = "x-request-id", "x-tritonrank-degraded"
"""Headers: of the request and its answer; of an answer for which a step took the ranker's place."""
BODY_WITHIN_S = 10.0
log = logging.getLogger("gateway")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_BEARER = HTTPBearer(auto_error=False, description="One of the keys in the gateway's key file, where it has one.")
_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def interface(form: ErrorForm, tag: str) -> APIRouter:
    """A router whose every error is told in the form. It checks the key before it reads the body."""

    class InterfaceRoute(APIRoute):
        def get_route_handler(self) -> _Handler:
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                return await _answer(request, self.path, handle, form)

            return answer

    security = [Security(_BEARER)]  # for the OpenAPI description: the route checks it before
    return APIRouter(route_class=InterfaceRoute, tags=[tag], responses=form.responses(), dependencies=security)


async def _answer(request: Request, path: str, handle: _Handler, form: ErrorForm) -> Response:
    service: Service = request.app.state.service
    request.state.request_id = _request_id(request)
    start_s = time.perf_counter()
    try:
        service.check_key(request.headers.get("authorization"))
        with service.place(), _trace_of(request):
            response = await handle(await _read(request, service.settings.max_body_bytes))
    except Exception as error:
        refusal = refusal_of(error)
        _log(refusal, error, path, request.state.request_id)
        response = form.response(refusal)
    response.headers[REQUEST_ID] = request.state.request_id
    service.metrics.requests.labels(path, response.status_code).inc()
    service.metrics.seconds.labels(path).observe(time.perf_counter() - start_s)
    return response


@contextlib.contextmanager
def _trace_of(request: Request) -> Iterator[None]:
    """The caller's W3C trace context, where it sent one: the client hands it on to the server."""
    if trace.get_current_span().get_span_context().is_valid:  # FastAPI's own, where a program has set OpenTelemetry up
        yield
        return
    token = context.attach(propagate.extract(request.headers))
    try:
        yield
    finally:
        context.detach(token)


async def _read(request: Request, most: int) -> Request:
    """The same request with its body in memory. Raises: Refusal: too large, or too slow.

    FastAPI's ``max_body_size`` would refuse in plain text, whatever the interface.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise _too_large(f"{int(announced):,}", most)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise _too_large(f"more than {most:,}", most)
    except TimeoutError:
        raise Refusal(Fault.SLOW, f"the body did not come within {BODY_WITHIN_S:g} s") from None
    except ClientDisconnect:
        raise Refusal(Fault.SLOW, "the connection ended before the body did") from None

    async def receive() -> Message:
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return Request(request.scope, receive)


def _too_large(found: str, most: int) -> Refusal:
    return Refusal(Fault.TOO_LARGE, f"the body: found {found} bytes, wanted at most {most:,} (--max-body-bytes)")


def _request_id(request: Request) -> str:
    """The caller's own, where it is one that a log can hold."""
    given = request.headers.get(REQUEST_ID, "")
    return given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())


def _log(refusal: Refusal, error: Exception, path: str, request_id: str) -> None:
    """What the ranker or the gateway is to blame for, or suffers from; what callers do wrong they are told.

    The text of a failure that nobody foresaw, here or in the server, may quote the request: it is left out.
    """
    kind = type(error).__name__
    if refusal.fault is Fault.BUG:
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s: request %s: %s at\n%s", path, request_id, kind, where)
    elif isinstance(error, ServerError):
        log.warning("%s: request %s: %s; the server's log has more", path, request_id, kind)
    elif refusal.fault.status >= 500 or refusal.fault is Fault.OVERLOADED:
        log.warning("%s: request %s: %s: %s", path, request_id, kind, error)


# ---------------------------------------------------------------- what an interface's function is given
class Asked:
    """One request, for the function that answers it."""

    def __init__(self, request: Request, response: Response):
        self.service: Service = request.app.state.service
        self.request_id: str = request.state.request_id
        self._path: str = request.scope["route"].path
        self._response = response

    def tell(self, degraded: Degraded | None) -> None:
        """Say in a header, and count, that a step took the ranker's place."""
        if degraded is not None:
            self._response.headers[DEGRADED] = degraded.step
            self.service.metrics.degraded.labels(self._path, degraded.step).inc()


Asking = Annotated[Asked, Depends(Asked)]
