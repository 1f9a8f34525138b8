"""What every interface shares: the clients of the ranker by model, keys, limits and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritonrank_client import AsyncRankClient, Degradation, InvalidRequest, Reranked, RetryPolicy, TritonRankError

from gateway.auth import Keys
from gateway.errors import Fault, Refusal
from gateway.metrics import Metrics
from gateway.settings import Kind, Settings, kind_of, option

READY_FOR_S = 1.0
"""How long an answer to "ready?" holds: whoever asks has no key and must not be able to keep the ranker busy."""


@dataclass(frozen=True)
class Model:
    """One that requests may name."""

    name: str
    kind: Kind
    client: AsyncRankClient


class Service:
    """Made in the event loop that it is used in; :meth:`close` it there, too."""

    def __init__(self, settings: Settings, keys: Keys | None):
        self.settings = settings
        self.metrics = Metrics()
        self.started_at_s = int(time.time())
        self._keys = keys
        self._in_flight = 0
        self._models = {name: Model(name, kind_of(to), _client(to, settings)) for name, to in settings.named.items()}
        self._readiness = Readiness(list(self._models.values()), settings.timeout_s)

    @property
    def names(self) -> list[str]:
        """Of the models that requests may name."""
        return list(self._models)

    def check_key(self, authorization: str | None) -> None:
        """Raises: Refusal."""
        if self._keys is not None:
            self._keys.check(authorization)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of those for requests at once. Raises: Refusal where none is free."""
        if self._in_flight >= self.settings.max_in_flight:
            raise Refusal(Fault.OVERLOADED, "the gateway has too much to do; send less, or try again later")
        self._in_flight += 1
        self.metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self.metrics.in_flight.set(self._in_flight)

    def model(self, kind: Kind, name: str | None) -> Model:
        """The named one, or the first of the kind. Raises: Refusal."""
        of_kind = {model.name: model for model in self._models.values() if model.kind == kind}
        if not of_kind:
            raise Refusal(Fault.NOT_FOUND, f"this gateway serves no {kind}; start it with --model NAME={kind}")
        if name is None:
            return next(iter(of_kind.values()))
        if name not in of_kind:
            known = ", ".join(f"'{other}'" for other in of_kind)
            raise Refusal(Fault.NOT_FOUND, f"model: found '{name}', wanted one of {known}")
        return of_kind[name]

    async def reranked(
        self, model: Model, query: str, texts: Sequence[str], top_k: int | None, request_id: str, field: str
    ) -> Reranked:
        """The texts in the ranker's order.

        field: of the request that has the texts, for messages.
        Raises: Refusal, TritonRankError.
        """
        most = self.settings.max_documents
        if not texts:
            raise Refusal(Fault.EMPTY, f"{field}: found none, wanted 1 to {most}")
        if len(texts) > most:
            raise Refusal(
                Fault.TOO_LARGE, f"{field}: found {len(texts)}, wanted at most {most} ({option('max_documents')})"
            )
        try:
            return await model.client.rerank(query, texts, top_k, request_id=request_id)
        except InvalidRequest as error:
            if error.argument == "documents":
                raise InvalidRequest(str(error).replace("documents", field, 1), field) from error
            raise

    async def ready(self) -> dict[str, bool]:
        """Whether the ranker answers a real request for each model."""
        return await self._readiness.now()

    async def close(self) -> None:
        """Give the connections back."""
        await asyncio.gather(*(model.client.close() for model in self._models.values()))


@dataclass
class Readiness:
    """Asked at most once in :data:`READY_FOR_S`, however many want to know."""

    models: Sequence[Model]
    timeout_s: float
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _known: dict[str, bool] = field(default_factory=dict)
    _until_s: float = 0.0

    async def now(self) -> dict[str, bool]:
        """Model => whether it answers."""
        async with self._lock:
            if time.monotonic() >= self._until_s:
                answers = await asyncio.gather(*(self._answers(model) for model in self.models))
                self._known = {model.name: answer for model, answer in zip(self.models, answers, strict=True)}
                self._until_s = time.monotonic() + READY_FOR_S
            return self._known

    async def _answers(self, model: Model) -> bool:
        try:
            return await model.client.ready(self.timeout_s, model.kind)
        except TritonRankError:
            return False


def scores_of(ranked: Reranked) -> list[float]:
    """float32 each; 0 for all where none is scored: the list is in the request's own order."""
    return ranked.scores.tolist() if ranked.scored.any() else [0.0] * len(ranked)


def _client(endpoint: str, settings: Settings) -> AsyncRankClient:
    models: dict[str, Any] = {
        "rank": {"model": endpoint},
        "recommend": {"recommend_model": endpoint},
        "similar": {"similar_model": endpoint},
    }[kind_of(endpoint)]
    return AsyncRankClient(
        list(settings.servers),
        timeout_s=settings.timeout_s,
        tls=settings.tls,
        retry=RetryPolicy(),
        degradation=Degradation() if settings.first_stage else None,
        **models,
    )
