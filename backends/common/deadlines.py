"""Requests whose time is over, or would be over before their answer, are refused before anything is computed for them.

A request brings its timeout (Triton's own ``timeout``, in microseconds) and, as parameters, when its client sent it by
the client's clock (``sent_unix_us``) and which client that is (``client``); Triton hands all three on to an ensemble's
steps, but tells none of them that the client has given up while it waits (2.51). Clocks of two machines differ, so the
shortest delay that was seen of a client counts as no waiting at all.

Shared by the drop-in backends and, copied beside them, by the served models. Standard library and Triton's module only.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

CLIENTS = 1024
"""Whose delays are remembered."""
CLOCK_DRIFT = 50e-6
"""Seconds a second that two clocks without a common time may drift apart: so much the shortest delay ages."""
RELEARNED_AFTER_S, RELEARNED_AFTER = 1.0, 20
"""So long and so many refusals without a request in time: a clock was set anew, and delays are learned again."""
CALLS_NEEDED = 2.0
"""What a request must have left, in recent calls' durations: its own, and as much for the steps behind."""
LEAST_NEEDED = 0.25
"""At least that share of its time: for the way back, and for calls that take longer. Without it every fourth answer of
a flooded server came just too late."""
MOST_NEEDED = 0.75
"""At most that share of its time: one that has waited for less than a quarter of it is computed."""
EXPIRED = "Request timeout expired"
"""As Triton's own queues say it, and as clients know it."""


class Deadlines:
    """What one process knows of its requests' time.

    Args:
        needed: what a request must have left, as a share of its whole time; None = by what recent calls took.
        now: seconds since 1970.
    """

    def __init__(self, needed: float | None = None, now: Callable[[], float] = time.time) -> None:
        self._needed, self._now = needed, now
        self._shortest: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._usual_s = 0.0
        self._refused_since_s, self._refused = 0.0, 0

    def answer(self, requests: Sequence[Any], answer: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
        """One response a request; ``answer`` gives those of the requests that are in time."""
        refusals = [self.refusal(request) for request in requests]
        kept = [request for request, refusal in zip(requests, refusals, strict=True) if not refusal]
        start_s = time.monotonic()
        responses = iter(answer(kept) if kept else ())
        if kept:
            self._usual_s += 0.2 * (time.monotonic() - start_s - self._usual_s)
        return [_refused(refusal) if refusal else next(responses) for refusal in refusals]

    def refusal(self, request: Any) -> str:
        """Why it is too late for the request; empty where it is not, or where the request does not say."""
        timeout_s = request.timeout() / 1e6
        if not timeout_s:
            return ""
        waited_s = self.waited_s(request.parameters())
        if waited_s + self._needed_s(timeout_s) <= timeout_s or self._clock_was_set():
            self._refused = 0
            return ""
        return f"{EXPIRED}, or would before an answer: {waited_s:.3f} s of {timeout_s:.3f} s passed while it waited"

    def waited_s(self, parameters: str) -> float:
        """Seconds since the request was sent, beyond the client's shortest delay; 0 where it does not say.

        Args:
            parameters: of the request, as a JSON object.
        """
        given = json.loads(parameters or "{}")
        sent_us, client = given.get("sent_unix_us"), given.get("client")
        if not isinstance(sent_us, int) or not isinstance(client, str):
            return 0.0
        now_s = self._now()
        delay_s = now_s - sent_us / 1e6
        shortest_s, seen_s = self._shortest.pop(client, (delay_s, now_s))
        shortest_s = min(shortest_s + CLOCK_DRIFT * (now_s - seen_s), delay_s)
        self._shortest[client] = shortest_s, now_s
        if len(self._shortest) > CLIENTS:
            self._shortest.popitem(last=False)
        return delay_s - shortest_s

    def _needed_s(self, timeout_s: float) -> float:
        if self._needed is not None:
            return timeout_s * self._needed
        return min(max(self._usual_s * CALLS_NEEDED, timeout_s * LEAST_NEEDED), timeout_s * MOST_NEEDED)

    def _clock_was_set(self) -> bool:
        """Whether this refusal would be one too many; then delays are learned anew."""
        if not self._refused:
            self._refused_since_s = time.monotonic()
        self._refused += 1
        if self._refused < RELEARNED_AFTER or time.monotonic() - self._refused_since_s < RELEARNED_AFTER_S:
            return False
        self._shortest.clear()
        return True


def _refused(why: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(why, pb_utils.TritonError.UNAVAILABLE))
