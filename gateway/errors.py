"""What can go wrong, before the gateway listens and in a request; an interface says in its own form what a request met.

GatewayError     exit code 2: the settings, or a file that they name, cannot be used
Refusal          a request gets no list; its fault says why
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from tritonrank_client import (
    ContractMismatch,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    TritonRankError,
    Unavailable,
)

RETRY_AFTER_S = 1
SHOWN_FAULTS = 5
"""Of a body that is not as its interface says; the others are counted."""


class GatewayError(Exception):
    """The settings, or a file that they name, cannot be used."""

    exit_code = 2


class Fault(enum.Enum):
    """Why a request gets no list: the HTTP status, unless its interface has another, and what it means."""

    MALFORMED = 422, "The body is not JSON, or not as this interface says."
    INVALID = 422, "The query or what is to be ranked breaks a limit or a rule of the ranker."
    EMPTY = 422, "There is nothing to rank."
    TOO_LARGE = 413, "The body or the list is larger than this gateway takes."
    UNAUTHORIZED = 401, "No key, or one that this gateway does not know."
    NOT_FOUND = 404, "The model is none of this gateway's."
    SLOW = 408, "The body did not come in time."
    OVERLOADED = 429, "The gateway or the ranker has too much to do; try again after Retry-After seconds."
    BUG = 500, "A mistake of the gateway."
    FAILED = 502, "The ranker failed."
    UNAVAILABLE = 503, "The ranker cannot be reached, or its model is not loaded."
    LATE = 504, "The ranker did not answer in time."

    def __init__(self, status: int, meaning: str):
        self.status = status
        self.meaning = meaning


class Refusal(Exception):
    """A request gets no list. The message says what was found and what was wanted; whoever asked reads it."""

    def __init__(self, fault: Fault, message: str):
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class ErrorForm:
    """How an interface tells errors.

    Attributes:
        model: of the body.
        body: fault, HTTP status and message => the body.
        statuses: of faults that have another status than :class:`Fault` says.
    """

    model: type[BaseModel]
    body: Callable[[Fault, int, str], BaseModel]
    statuses: Mapping[Fault, int] = field(default_factory=dict)

    def status(self, fault: Fault) -> int:
        """HTTP status."""
        return self.statuses.get(fault, fault.status)

    def response(self, refusal: Refusal) -> Response:
        """The answer."""
        status = self.status(refusal.fault)
        headers = {}
        if refusal.fault is Fault.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if refusal.fault is Fault.OVERLOADED:
            headers["Retry-After"] = str(RETRY_AFTER_S)
        return JSONResponse(self.body(refusal.fault, status, str(refusal)).model_dump(), status, headers)

    def responses(self) -> dict[int | str, dict[str, Any]]:
        """For the OpenAPI description: every status that this interface answers an error with."""
        meanings: dict[int | str, list[str]] = {}
        for fault in Fault:
            meanings.setdefault(self.status(fault), []).append(fault.meaning)
        found = {status: {"model": self.model, "description": " ".join(told)} for status, told in meanings.items()}
        return {**found, "default": {"model": self.model, "description": "Any other error."}}


# ---------------------------------------------------------------- what an error of a request means
_OF_THE_RANKER: tuple[tuple[type[TritonRankError], Fault, str], ...] = (
    (Overloaded, Fault.OVERLOADED, "the ranker has too much to do; send less, or try again later"),
    (DeadlineExceeded, Fault.LATE, "the ranker did not answer in time; send fewer items, or try again later"),
    (Unavailable, Fault.UNAVAILABLE, "the ranker cannot be reached, or its model is not loaded; try again later"),
    (ContractMismatch, Fault.FAILED, "the ranker's interface is another than this gateway was built for"),
    (TritonRankError, Fault.FAILED, "the ranker failed"),
)
"""What whoever asked is told. The client's own message names the server's address: it goes to the log."""


def refusal_of(error: Exception) -> Refusal:
    """What whoever asked is told of an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        return Refusal(Fault.MALFORMED, _of_body(error))
    if isinstance(error, HTTPException):  # FastAPI's word for a body that no parser takes
        return Refusal(Fault.MALFORMED, f"the body: {error.detail}")
    if isinstance(error, InvalidRequest):
        by_server = error.argument is None  # its words come behind its address
        return Refusal(Fault.INVALID, str(error).partition(": ")[2] if by_server else str(error))
    for kind, fault, message in _OF_THE_RANKER:
        if isinstance(error, kind):
            return Refusal(fault, message)
    return Refusal(Fault.BUG, "the gateway made a mistake; its log has more under this request's id")


def _of_body(error: RequestValidationError) -> str:
    """Each fault's place and what was wanted there; never the value, which may be a whole document."""
    faults = [
        f"the body: not JSON ({fault['ctx']['error']} at character {fault['loc'][-1]})"
        if fault["type"] == "json_invalid"
        else f"{_place(fault['loc'])}: {fault['msg']}"
        for fault in error.errors()
    ]
    more = len(faults) - SHOWN_FAULTS
    return "; ".join(faults[:SHOWN_FAULTS]) + (f"; and {more} more" if more > 0 else "")


def _place(location: tuple[str | int, ...]) -> str:
    """``documents[3].text`` of ``("body", "documents", 3, "text")``."""
    parts = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location[1:])
    return parts.lstrip(".") or str(location[0])
