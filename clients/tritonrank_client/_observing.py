"""What a call leaves behind: a span, figures and a line of the log, each only where its package is installed.

    opentelemetry-api    a span a call, whose W3C context goes to Triton with the request (its tracing reads it)
    prometheus-client    figures in its default registry
    logging              logger ``tritonrank_client``: a warning for each degraded call, with its request id

No query, user or history is in any of them.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

from ._errors import TritonRankError
from ._response import Degraded

LOG = logging.getLogger("tritonrank_client")
LOG.addHandler(logging.NullHandler())  # what a library does: silent until the service says otherwise
_ONCE = threading.Lock()
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
CANDIDATES = (1, 10, 20, 40, 80, 160, 320, 640, 1024)
ANSWERED = "answered"


@dataclass
class Observation:
    """One call, filled while it runs.

    Attributes:
        headers: that carry the span's context to the server.
        retries, hedges: further attempts.
        outcome: ``answered``, a step of the degradation, or the class of the error.
    """

    request_id: str
    headers: dict[str, str] = field(default_factory=dict)
    retries: int = 0
    hedges: int = 0
    model: str = ""
    outcome: str = ANSWERED

    def degraded(self, degraded: Degraded) -> None:
        """Count and log it."""
        self.outcome = degraded.step
        LOG.warning(
            "degraded to %s: %s",
            degraded.step,
            degraded.error.__name__,
            extra={"request_id": self.request_id, "step": degraded.step, "reason": degraded.reason},
        )


@contextlib.contextmanager
def observed(endpoint: str, candidates: int, request_id: str) -> Iterator[Observation]:
    """One call, from its beginning to its end."""
    observation = Observation(request_id)
    start_s = time.perf_counter()
    try:
        with _span(endpoint, candidates, observation):
            yield observation
    except BaseException as error:
        observation.outcome = type(error).__name__ if isinstance(error, TritonRankError) else "cancelled"
        raise
    finally:
        _count(endpoint, candidates, observation, time.perf_counter() - start_s)


def shadow_dropped(endpoint: str, why: str) -> None:
    """Count a copy that found no room, or was not answered."""
    if (figures := _figures()) is not None:
        figures.shadows_dropped.labels(endpoint, why).inc()


@contextlib.contextmanager
def _span(endpoint: str, candidates: int, observation: Observation) -> Iterator[None]:
    tracing = _tracing()
    if tracing is None:
        yield
        return
    with tracing.tracer.start_as_current_span(
        f"tritonrank {endpoint}", kind=tracing.client, attributes={"tritonrank.candidates": candidates}
    ) as span:
        tracing.inject(observation.headers)
        try:
            yield
        finally:
            span.set_attributes(
                {
                    "tritonrank.request_id": observation.request_id,
                    "tritonrank.model": observation.model,
                    "tritonrank.outcome": observation.outcome,
                    "tritonrank.retries": observation.retries,
                    "tritonrank.hedges": observation.hedges,
                }
            )


def _count(endpoint: str, candidates: int, observation: Observation, seconds: float) -> None:
    if (figures := _figures()) is None:
        return
    figures.seconds.labels(endpoint, observation.outcome).observe(seconds)
    figures.candidates.labels(endpoint).observe(candidates)
    if observation.retries:
        figures.attempts.labels(endpoint, "retry").inc(observation.retries)
    if observation.hedges:
        figures.attempts.labels(endpoint, "hedge").inc(observation.hedges)


def count_breaker(model: str, state: str) -> None:
    """Count a breaker that opened, closed or lets a call through."""
    LOG.warning("breaker of %s: %s", model, state)
    if (figures := _figures()) is not None:
        figures.breaker.labels(model, state).inc()


@cache
def _tracing() -> Any:
    with contextlib.suppress(ModuleNotFoundError):
        trace = importlib.import_module("opentelemetry.trace")
        propagate = importlib.import_module("opentelemetry.propagate")
        return SimpleNamespace(
            tracer=trace.get_tracer("tritonrank_client"), client=trace.SpanKind.CLIENT, inject=propagate.inject
        )
    return None


def _figures() -> Any:
    """One at a time: a service's threads make their first calls at once, and a figure is registered once a process."""
    with _ONCE:
        return _registered()


@cache
def _registered() -> Any:
    with contextlib.suppress(ModuleNotFoundError):
        prometheus = importlib.import_module("prometheus_client")
        return SimpleNamespace(
            seconds=prometheus.Histogram(
                "tritonrank_client_seconds", "Of a call, by how it ended.", ["endpoint", "outcome"], buckets=SECONDS
            ),
            candidates=prometheus.Histogram(
                "tritonrank_client_candidates", "Of a call.", ["endpoint"], buckets=CANDIDATES
            ),
            attempts=prometheus.Counter(
                "tritonrank_client_further_attempts", "Beside the first of a call.", ["endpoint", "kind"]
            ),
            breaker=prometheus.Counter(
                "tritonrank_client_breaker_changes", "Of a model's circuit breaker.", ["model", "state"]
            ),
            shadows_dropped=prometheus.Counter(
                "tritonrank_client_shadows_dropped", "Copies without a line.", ["endpoint", "why"]
            ),
        )
    return None
