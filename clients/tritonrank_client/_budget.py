"""How many further attempts are allowed, and after how long a request is late."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

BURST = 10.0
QUANTILE_EVERY = 50  # requests: one more quantile of a thousand latencies takes 30 microseconds


class Budget:
    """Tokens as gRPC's retry throttling has them (gRFC A6): each request adds `share`, each further attempt takes 1."""

    def __init__(self, share: float):
        self._share = share
        self._tokens = BURST
        self._lock = threading.Lock()

    def add(self) -> None:
        """Count a request."""
        with self._lock:
            self._tokens = min(BURST, self._tokens + self._share)

    def take(self) -> bool:
        """Whether one more attempt is allowed, which is then counted."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


class Latencies:
    """Of the last requests, in seconds."""

    def __init__(self, of_last: int, quantile: float):
        self._seconds: deque[float] = deque(maxlen=of_last)
        self._quantile = quantile
        self._wanted = max(1, of_last // 10)
        self._seen = 0
        self._late_after_s: float | None = None
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Count an answer."""
        with self._lock:
            self._seconds.append(seconds)
            self._seen += 1
            if self._seen >= self._wanted and (self._late_after_s is None or self._seen % QUANTILE_EVERY == 0):
                self._late_after_s = float(np.quantile(self._seconds, self._quantile))

    @property
    def late_after_s(self) -> float | None:
        """The quantile; None before there are enough."""
        return self._late_after_s
