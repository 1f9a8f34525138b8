"""The door to the server: with its twin the only module that calls tritonclient and grpc."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Mapping, Sequence

import tritonclient.grpc.aio as triton

from .._contract import ModelSpec
from .._deadline import Deadline
from .._errors import Unavailable
from .._options import Connections
from .._tls import TLS
from .._wire import (
    InferRequest,
    arrays,
    channel_options,
    checked_urls,
    model_spec,
    request_arguments,
    sent_headers,
    target,
    translated_errors,
)
from ._waiting import run_async

import numpy as np  # isort: skip


class AsyncGrpcTransport:
    """A gRPC channel to one Triton or to several; connects when first used, and again after a loss.

    url: host and gRPC port ("localhost:8001"), or another gRPC target ("unix:/run/triton.sock"); several of the first.
    tls: None = in the clear. Of several servers the certificates are for the first one's name.
    token, headers: sent with every request; see `AsyncRankClient`.
    Raises: InvalidRequest for such a url, tls or header.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        tls: TLS | None = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        connections: Connections = Connections(),  # noqa: B008 - frozen
    ):
        self._urls = checked_urls(url)
        if tls is not None:
            tls.check()
        self._tls, self._connections = tls, connections
        self.headers = sent_headers(token, headers)
        self.name = secrets.token_hex(4)  # of this process and its clock, of nobody's person
        self.url = ", ".join(self._urls)
        self._client: triton.InferenceServerClient | None = None
        self._retired: triton.InferenceServerClient | None = None
        self._renewed_at = 0.0
        self._closed = False
        self._lock = threading.Lock()

    async def infer(self, request: InferRequest) -> dict[str, np.ndarray]:
        """See Transport."""
        with translated_errors(self.url, request.timeout_s):
            client = await self.connected(request.timeout_s)
            result = await client.infer(
                request.model, headers={**self.headers, **request.headers}, **request_arguments(request, self.name)
            )
        return arrays(self.url, result, request.outputs)

    async def served_model(self, model: str, timeout_s: float) -> ModelSpec:
        """See Transport."""
        deadline = Deadline(timeout_s)
        with translated_errors(self.url, timeout_s):
            client = await self.connected(timeout_s)
            metadata = await client.get_model_metadata(
                model, headers=self.headers, client_timeout=deadline.remaining_s()
            )
            config = await client.get_model_config(model, headers=self.headers, client_timeout=deadline.remaining_s())
        return model_spec(model, metadata, config.config)

    async def is_ready(self, model: str, timeout_s: float) -> bool:
        """See Transport."""
        with translated_errors(self.url, timeout_s):
            client = await self.connected(timeout_s)
            return bool(await client.is_model_ready(model, headers=self.headers, client_timeout=timeout_s))

    async def close(self) -> None:
        """See Transport."""
        with self._lock:
            self._closed = True
            clients, self._client, self._retired = (self._client, self._retired), None, None
        for client in clients:
            if client is not None:
                await client.close()

    async def connected(self, timeout_s: float) -> triton.InferenceServerClient:
        """Triton's own client, the newest. One that is older than connections may be is kept for what is under way on
        it, until the next one is as old. Raises: Unavailable, DeadlineExceeded where names take too long."""
        if (client := self._young()) is not None:
            return client
        address, several = await run_async(target, self._urls, timeout_s=timeout_s)
        outgoing = None
        with self._lock:
            if self._closed:
                raise Unavailable(f"{self.url}: this client is closed; make a new one")
            if self._client is None or time.monotonic() >= self._renewed_at:
                outgoing, self._retired = self._retired, self._client
                self._client = self._connect(address, several)
                self._renewed_at = time.monotonic() + self._connections.max_age_s * random.uniform(0.9, 1.1)
            client = self._client
        if outgoing is not None:
            await outgoing.close()
        return client

    def _young(self) -> triton.InferenceServerClient | None:
        client = self._client
        return client if time.monotonic() < self._renewed_at else None

    def _connect(self, address: str, several: bool) -> triton.InferenceServerClient:
        authority = None if address == self._urls[0] else self._urls[0]
        options = channel_options(self._connections, several, authority)
        if self._tls is None:
            return triton.InferenceServerClient(address, channel_args=options)
        return triton.InferenceServerClient(
            address,
            ssl=True,
            root_certificates=self._tls.ca,
            certificate_chain=self._tls.certificate,
            private_key=self._tls.key,
            channel_args=options,
        )
