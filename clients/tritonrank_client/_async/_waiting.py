"""Waiting in an event loop; the twin in `_sync` is written by hand, and waits in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .._errors import DeadlineExceeded
from .._wire import AsyncTransport, InferRequest

Result = TypeVar("Result")


class AsyncLock:
    """Held by one task."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def acquire(self, timeout_s: float) -> bool:
        """Whether it was free in time."""
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self._lock.acquire(), timeout_s)
        return False

    def release(self) -> None:
        """Let the next one in."""
        self._lock.release()


async def run_async(function: Callable[..., Result], *arguments: Any, timeout_s: float) -> Result:
    """Call what may block, for so long. Raises: DeadlineExceeded."""
    try:
        return await asyncio.wait_for(asyncio.to_thread(function, *arguments), timeout_s)
    except TimeoutError as error:
        raise DeadlineExceeded(f"timeout_s={timeout_s:.3f} was spent on the names of the servers") from error


async def infer_hedged_async(
    transport: AsyncTransport, request: Callable[[], InferRequest], after_s: float, may_ask_again: Callable[[], bool]
) -> tuple[Any, bool]:
    """The first good answer of one request, or of two where the first takes longer than `after_s`, and whether there
    were two; the other is cancelled. Raises: the error of the one that failed last."""
    first = asyncio.ensure_future(transport.infer(request()))
    flights: set[asyncio.Future[Any]] = {first}
    try:
        done, _ = await asyncio.wait(flights, timeout=after_s)
        if done or not may_ask_again():
            return await first, False
        flights.add(asyncio.ensure_future(transport.infer(request())))
        return await _first_good(flights), True
    finally:
        for flight in flights:
            flight.cancel()


async def _first_good(flights: set[asyncio.Future[Any]]) -> Any:
    pending = set(flights)
    fault: BaseException | None = None
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for flight in done:
            if (fault := flight.exception()) is None:
                return flight.result()
    assert fault is not None
    raise fault


class AsyncBackground:
    """Runs what nobody waits for, at most so many at once."""

    def __init__(self, at_once: int):
        self._at_once = at_once
        self._tasks: set[asyncio.Task[None]] = set()
        self.dropped = 0

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Whether there was room."""
        if len(self._tasks) >= self._at_once:
            self.dropped += 1
            return False
        task = asyncio.ensure_future(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def close(self, timeout_s: float) -> None:
        """Wait for what runs, for so long, and end the rest."""
        end_s = time.monotonic() + timeout_s
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=max(0.0, end_s - time.monotonic()))
        for task in set(self._tasks):
            task.cancel()
