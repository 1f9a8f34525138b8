"""How a client asks: options that are values, each checked when it is made. Knows nothing of the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._errors import InvalidRequest


@dataclass(frozen=True)
class RetryPolicy:
    """Asks again where nothing answered (`Unavailable`), inside the call's deadline; never what a server refused.

        RetryPolicy()                   a second attempt after 1 to 10 ms, for at most a tenth of the requests
        RetryPolicy(attempts=3)         up to two more

    Attributes:
        attempts: of one call in all, 2 to 10.
        first_wait_s, longest_wait_s: before the second and any later attempt: random, exponentially longer.
        budget: retries a request on average, above 0 and at most 1: a service that fails as a whole is not asked twice
            as often. A burst of ten is free.
    Needs ``tritonrank-client[resilience]``.
    """

    attempts: int = 2
    first_wait_s: float = 0.01
    longest_wait_s: float = 0.1
    budget: float = 0.1

    def __post_init__(self) -> None:
        _check_number("retry.attempts", self.attempts, 2, 10, whole=True)
        _check_number("retry.first_wait_s", self.first_wait_s, 0, 60)
        _check_number("retry.longest_wait_s", self.longest_wait_s, self.first_wait_s, 60)
        _check_share("retry.budget", self.budget)


@dataclass(frozen=True)
class HedgePolicy:
    """Asks a second time, without waiting for the first answer to fail, where it takes longer than most did: the first
    good answer counts and the other is cancelled. For several servers, or one that is idle enough.

    Attributes:
        quantile: of the latencies of the last `of_last` requests after which the second is sent.
        at_least_s: never earlier.
        budget: second requests a request on average, above 0 and at most 1.
        of_last: requests whose latencies are kept; none is hedged before a tenth of them has been answered.
    """

    quantile: float = 0.95
    at_least_s: float = 0.002
    budget: float = 0.1
    of_last: int = 1000

    def __post_init__(self) -> None:
        _check_share("hedge.quantile", self.quantile)
        _check_number("hedge.at_least_s", self.at_least_s, 0, 60)
        _check_share("hedge.budget", self.budget)
        _check_number("hedge.of_last", self.of_last, 10, 100_000, whole=True)


@dataclass(frozen=True)
class BreakerPolicy:
    """Stops asking a model that fails, and asks again, to see whether it still does, after a while.

    Attributes:
        failures, of_last: it opens when so many of the last so many attempts have failed: anything but an answer or an
            `InvalidRequest`.
        slow_s: an answer that takes longer is a failure too; None = as long as the deadline allows.
        open_s: how long nothing is asked; then calls go through, and the first result opens or closes it.
    Needs ``tritonrank-client[resilience]``.
    """

    failures: int = 10
    of_last: int = 20
    slow_s: float | None = None
    open_s: float = 1.0

    def __post_init__(self) -> None:
        _check_number("breaker.of_last", self.of_last, 1, 100_000, whole=True)
        _check_number("breaker.failures", self.failures, 1, self.of_last, whole=True)
        _check_number("breaker.open_s", self.open_s, 0, 3600)
        if self.slow_s is not None:
            _check_number("breaker.slow_s", self.slow_s, 0, 3600)


@dataclass(frozen=True)
class Degradation:
    """What a call does when its ranker does not answer, in this order; the result says which and why.

        Degradation()                                   the first-stage order
        Degradation(candidates=50)                      the first 50 ranked and the rest behind, else the first stage's
        Degradation(model="rank_small_fp32_onnx")       another published ranker, else the first stage's order
        Degradation(model=..., first_stage=False)       another ranker, else the error

    Attributes:
        candidates: of the first stage that the same ranker is asked to rank; the others follow in their order.
        model: another endpoint's, asked for all candidates.
        first_stage: the request's own order, without scores, where nothing else has answered.
        keep: share of the deadline that is kept for `candidates` and `model` together, above 0 and below 1.
    `InvalidRequest` is never degraded. `similar` has no first stage: there the error is raised.
    """

    candidates: int | None = None
    model: str | None = None
    first_stage: bool = True
    keep: float = 0.4

    def __post_init__(self) -> None:
        if self.candidates is not None:
            _check_number("degradation.candidates", self.candidates, 1, 1024, whole=True)
        if self.model is not None and (not isinstance(self.model, str) or not self.model):
            raise _fault("degradation.model", self.model, "the name of a model, or None")
        if not (isinstance(self.keep, float) and 0 < self.keep < 1):
            raise _fault("degradation.keep", self.keep, "a number above 0 and below 1")


@dataclass(frozen=True)
class Connections:
    """Connections to several servers, of a list or of a name that resolves to several: requests take turns.

    Attributes:
        max_age_s: after which they are made anew and names are resolved again, a tenth earlier or later, so that a new
            replica gets its share; those under way end on the old ones.
        eject_above: share of a server's requests that may fail in `eject_every_s`, a deadline passed among them; above
            it the server gets none for `ejected_s`, longer each time, but never more than half of the servers. (Shorter
            than a server takes to start again: in a rolling restart the first one is wanted when the next one stops.)
        eject_every_s: how often that is looked at, where a server had three requests since.
    """

    max_age_s: float = 300.0
    eject_above: float = 0.5
    eject_every_s: float = 0.5
    ejected_s: float = 5.0

    def __post_init__(self) -> None:
        _check_number("connections.max_age_s", self.max_age_s, 0.1, 86_400)
        _check_share("connections.eject_above", self.eject_above)
        _check_number("connections.eject_every_s", self.eject_every_s, 0.01, 3600)
        _check_number("connections.ejected_s", self.ejected_s, 0.01, 3600)


@dataclass(frozen=True)
class Experiment:
    """Sends a share of callers to another model: always the same callers, by a hash of their key (A/B).

    Attributes:
        model: what they are sent to in place of the endpoint's, such as ``rank_candidate``.
        share: of the keys, above 0 and at most 1.
        name: of the experiment; another name draws other callers.
        endpoint: whose callers, ``rank`` or ``recommend``.
    A call brings its `key`, else its `user_id`; one without either is never sent there.
    """

    model: str
    share: float
    name: str
    endpoint: str = "rank"

    def __post_init__(self) -> None:
        _check_share("experiment.share", self.share)
        _check_endpoint("experiment.endpoint", self.endpoint)


@dataclass(frozen=True)
class Shadow:
    """Sends a copy of a share of the requests to a candidate, whose answers are logged beside the true ones and never
    waited for. Of two at once that do not fit into `at_once`, the later is dropped, and counted.

    Attributes:
        model: the candidate, such as ``rank_candidate``.
        share: of the requests, above 0 and at most 1.
        log: called with a dictionary for each copy (``shadow_line`` in the documentation), from another thread or task;
            ``append_to(path)`` writes JSON lines for ``builders shadow-report``.
        at_once: copies under way.
        endpoint: whose requests, ``rank`` or ``recommend``.
        timeout_s: of a copy.
    """

    model: str
    share: float
    log: Callable[[dict[str, Any]], None]
    at_once: int = 4
    endpoint: str = "rank"
    timeout_s: float = 1.0

    def __post_init__(self) -> None:
        _check_share("shadow.share", self.share)
        _check_number("shadow.at_once", self.at_once, 1, 1000, whole=True)
        _check_endpoint("shadow.endpoint", self.endpoint)
        _check_number("shadow.timeout_s", self.timeout_s, 0.001, 3600)


def _check_number(name: str, value: Any, lowest: float, highest: float, *, whole: bool = False) -> None:
    kind = int if whole else (int, float)
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not lowest <= value <= highest:
        raise _fault(name, value, f"{'a whole number' if whole else 'a number'} from {lowest:g} to {highest:g}")


def _check_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise _fault(name, value, "a number above 0 and at most 1")


def _check_endpoint(name: str, value: Any) -> None:
    if value not in ("rank", "recommend"):
        raise _fault(name, value, "'rank' or 'recommend'")


def _fault(name: str, value: Any, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: found {value!r}, wanted {wanted}", name.partition(".")[0])
