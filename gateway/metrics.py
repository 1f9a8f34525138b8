"""What Prometheus scrapes from ``/metrics``: the gateway's own, the client's, and the process's. No query, no user."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """Of one gateway.

    Attributes:
        requests: by interface and HTTP status.
        seconds: of a request by interface, from its headers to its answer.
        degraded: answers of which the ranker gave less than was asked, by interface and step.
        in_flight: requests that wait for their answers.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "tritonrank_gateway_requests",
            "Requests by interface and HTTP status.",
            ["interface", "status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "tritonrank_gateway_request_seconds",
            "Time of a request, from its headers to its answer.",
            ["interface"],
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self.degraded = Counter(
            "tritonrank_gateway_degraded",
            "Answers for which a step took the ranker's place.",
            ["interface", "step"],
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "tritonrank_gateway_requests_in_flight", "Requests that wait for their answers.", registry=self._registry
        )

    def page(self) -> bytes:
        """In the text format 0.0.4."""
        return generate_latest(self._registry) + generate_latest(REGISTRY)  # the client's are in the default one
