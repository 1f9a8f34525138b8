"""Waiting in a thread; the twin in `_async` waits in an event loop."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from .._errors import DeadlineExceeded, TritonRankError
from .._wire import InferRequest, Transport, arrays, request_arguments, translated_errors

Result = TypeVar("Result")


class Lock:
    """Held by one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, timeout_s: float) -> bool:
        """Whether it was free in time."""
        return self._lock.acquire(timeout=timeout_s)

    def release(self) -> None:
        """Let the next one in."""
        self._lock.release()


def run(function: Callable[..., Result], *arguments: Any, timeout_s: float) -> Result:
    """Call what may block, for so long: in a thread, which ends by itself. Raises: DeadlineExceeded."""
    done: Future[Result] = Future()

    def work() -> None:
        try:
            done.set_result(function(*arguments))
        except TritonRankError as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return done.result(timeout_s)
    except TimeoutError as error:
        raise DeadlineExceeded(f"timeout_s={timeout_s:.3f} was spent on the names of the servers") from error


def infer_hedged(
    transport: Transport, request: Callable[[], InferRequest], after_s: float, may_ask_again: Callable[[], bool]
) -> tuple[Any, bool]:
    """The first good answer of one request, or of two where the first takes longer than `after_s`, and whether there
    were two; the other is cancelled. Raises: the error of the one that failed last."""
    landed: queue.SimpleQueue[tuple[Any, TritonRankError | None]] = queue.SimpleQueue()

    def land(outputs: Any, error: TritonRankError | None) -> None:
        landed.put((outputs, error))

    flights = [_started(transport, request(), land)]
    try:
        try:
            outputs, error = landed.get(timeout=after_s)
        except queue.Empty:
            if may_ask_again():
                flights.append(_started(transport, request(), land))
            outputs, error = landed.get()
            if error is not None and len(flights) > 1:
                outputs, error = landed.get()
        if error is not None:
            raise error
        return outputs, len(flights) > 1
    finally:
        for cancel in flights:
            cancel()


Landed = Callable[[Any, TritonRankError | None], None]


def _started(transport: Transport, request: InferRequest, landed: Landed) -> Callable[[], Any]:
    """Send it, have `landed` called with its outputs or its error by another thread; return what gives it up."""
    if isinstance(transport, OverChannel):
        return _over_channel(transport, request, landed)
    flight = threading.Thread(target=_flown, args=(transport, request, landed), daemon=True)
    flight.start()
    return lambda: None  # a transport of the caller's own cannot be told


def _flown(transport: Transport, request: InferRequest, landed: Landed) -> None:
    try:
        outputs = transport.infer(request)
    except TritonRankError as error:
        landed(None, error)
    else:
        landed(outputs, None)


@runtime_checkable
class OverChannel(Protocol):
    """The part of GrpcTransport that sends requests of which one thread has two under way."""

    url: str
    name: str
    headers: Mapping[str, str]

    def connected(self, timeout_s: float) -> triton.InferenceServerClient:
        """Triton's own client."""


def _over_channel(transport: OverChannel, request: InferRequest, landed: Landed) -> Callable[[], Any]:
    def land(result: Any, error: InferenceServerException | None) -> None:
        try:
            with translated_errors(transport.url, request.timeout_s):
                if error is not None:
                    raise error
                outputs = arrays(transport.url, result, request.outputs)
        except TritonRankError as fault:
            landed(None, fault)
        else:
            landed(outputs, None)

    with translated_errors(transport.url, request.timeout_s):
        call = transport.connected(request.timeout_s).async_infer(
            request.model,
            callback=land,
            headers={**transport.headers, **request.headers},
            **request_arguments(request, transport.name),
        )
    return cast(Callable[[], Any], call.cancel)


class Background:
    """Runs what nobody waits for, at most so many at once."""

    def __init__(self, at_once: int):
        self._pool = ThreadPoolExecutor(at_once, "tritonrank_shadow")
        self._at_once = at_once
        self._running: set[Any] = set()
        self._lock = threading.Lock()
        self.dropped = 0

    def start(self, work: Callable[[], None]) -> bool:
        """Whether there was room."""
        with self._lock:
            if len(self._running) >= self._at_once:
                self.dropped += 1
                return False
            future = self._pool.submit(work)
            self._running.add(future)
        future.add_done_callback(self._ended)
        return True

    def close(self, timeout_s: float) -> None:
        """Wait for what runs, for so long."""
        end_s = time.monotonic() + timeout_s
        with self._lock:
            running = set(self._running)
        wait(running, timeout=max(0.0, end_s - time.monotonic()))
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ended(self, future: Any) -> None:
        with self._lock:
            self._running.discard(future)
