"""pybreaker's circuit breaker, opened by a share of the last attempts in place of failures in a row."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ._errors import CircuitOpen, InvalidRequest
from ._extras import extra
from ._observing import count_breaker
from ._options import BreakerPolicy

if TYPE_CHECKING:
    import pybreaker


class Breaker:
    """Of one model, shared by all threads or tasks of a client. Raises: InvalidRequest where pybreaker is missing."""

    def __init__(self, policy: BreakerPolicy, model: str):
        library = extra("pybreaker", "resilience", "breaker")
        self._library = library
        self._policy, self._model = policy, model
        self._breaker: pybreaker.CircuitBreaker = library.CircuitBreaker(
            fail_max=policy.failures,
            reset_timeout=policy.open_s,
            exclude=[InvalidRequest, asyncio.CancelledError],
            state_storage=_rolling_storage(library, policy.of_last, model),
            throw_new_error_on_trip=False,
        )

    @property
    def state(self) -> str:
        """closed, open or half-open."""
        return self._breaker.current_state

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Counts what its block does. Raises: CircuitOpen where nothing may be asked now."""
        start_s = time.monotonic()
        try:
            with self._breaker.calling():
                yield
                if self._policy.slow_s is not None and time.monotonic() - start_s > self._policy.slow_s:
                    raise _Slow
        except _Slow:
            pass
        except self._library.CircuitBreakerError:
            policy = self._policy
            raise CircuitOpen(
                f"model '{self._model}' is not asked: {policy.failures} of its last {policy.of_last} attempts failed; "
                f"it is asked again {policy.open_s:g} s after that"
            ) from None


class _Slow(Exception):
    """An answer that came too late to be a success."""


def _rolling_storage(library: Any, of_last: int, model: str) -> Any:
    class RollingStorage(library.CircuitMemoryStorage):
        """Counts failures among the last attempts; pybreaker asks it to forget them at each success."""

        def __init__(self) -> None:
            self._state = str(library.STATE_CLOSED)
            super().__init__(self._state)
            self._last: deque[bool] = deque(maxlen=of_last)

        def increment_counter(self) -> None:
            self._last.append(True)

        def reset_counter(self) -> None:
            self._last.append(False)

        @property
        def counter(self) -> int:
            return sum(self._last)

        @property
        def state(self) -> str:
            return self._state

        @state.setter
        def state(self, state: str) -> None:
            if state != self._state:
                self._last.clear()  # what was before it opened says nothing of the server that came back
                count_breaker(model, state)
            self._state = state

    return RollingStorage()
