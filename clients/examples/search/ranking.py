"""The ranking server as the page sees it: published endpoints, lists within a deadline, and where the time went."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException
from tritonrank_client import Degradation, RankClient, RankedList

from builders.core.contract import CONTEXT, ENDPOINTS, HISTORY, RANK, RECOMMEND, USER_ID
from builders.core.recipe import Recipe
from builders.data.beir import Request
from clients.examples.search.answers import Degraded, Times
from perf.kit.served import endpoint_inputs, read_manifest, steps_of
from server import ServerError

TIMEOUT_S = 2.0
"""Of one list. Longer than a shop would wait: a cross-encoder in FP32 takes half a second on two cores."""
STATISTICS_TIMEOUT_S = 0.5
COUNTED_WITHIN_S = 0.1
"""The server counts a request just after it has answered."""
DATA = {RANK.name: "judged", RECOMMEND.name: "purchases"}
"""Kind of endpoint => recipes' data that holds what the page asks it for."""
WORDS = {
    "first_stage": "The ranking server gave no answer, so this is the first stage's order.",
    "model": "The ranker that was asked gave no answer, so a smaller one ranked.",
    "fewer_candidates": "There was time for the first candidates only; the others keep their order behind them.",
}
"""Step of the client's degradation => what it means for a reader."""


Kind = Literal["rank", "recommend"]


@dataclasses.dataclass(frozen=True)
class PublishedEndpoint:
    """What the repository's manifest names.

    Attributes:
        model: the scorer, such as ``two_tower_fp32_onnx``.
        recipe: name of the recipe that the scorer was built from; "" where that is not known.
        steps: models that a request passes.
        reads: names of the tensors that it takes.
    """

    name: str
    kind: Kind
    model: str
    recipe: str
    steps: tuple[str, ...]
    reads: frozenset[str]


def published_endpoints(repository: Path, recipes: Mapping[str, Recipe]) -> dict[str, PublishedEndpoint]:
    """Name => endpoint of those that rank what the page shows, ``rank`` and ``recommend`` themselves first.

    Args:
        recipes: by name; a ranker of something else than products or purchases, such as `intent`, is left out by its
            recipe's data. One whose recipe is not among them is taken as it is.
    """
    manifest = read_manifest(repository)
    found = {}
    for name, generation in sorted(manifest.served.items(), key=lambda each: (each[0] not in ENDPOINTS, each[0])):
        kind = name.split("_")[0]
        recipe = Path(str(manifest.built_from(generation).get("recipe", ""))).stem
        if kind in DATA and (recipe not in recipes or recipes[recipe].data == DATA[kind]):
            found[name] = PublishedEndpoint(
                name=name,
                kind=cast(Kind, kind),
                model=generation.variant,
                recipe=recipe,
                steps=tuple(step.config.parent.name for step in steps_of(repository, name)),
                reads=frozenset(endpoint_inputs(repository, name)),
            )
    return found


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A list, and who made it.

    Attributes:
        scores: None for an item that the server could not score.
        call_ms: from the client's call to its answer.
        queue_ms, compute_ms: see :class:`Times`.
    """

    ids: list[str]
    scores: list[float | None]
    call_ms: float
    model: str = ""
    request_id: str = ""
    degraded: Degraded | None = None
    queue_ms: float | None = None
    compute_ms: float | None = None

    def times(self, first_stage_ms: float) -> Times:
        """With those of the first stage."""
        at_server_ms = (self.queue_ms or 0.0) + (self.compute_ms or 0.0)
        return Times(
            first_stage_ms=first_stage_ms,
            client_ms=max(0.0, self.call_ms - at_server_ms),
            queue_ms=self.queue_ms,
            compute_ms=self.compute_ms,
        )


class RankingServer:
    """One Triton. From as many threads as you like.

    Args:
        url: of its gRPC.
        load: makes the server take an endpoint that it may not have loaded yet. Raises: ServerError.
    """

    def __init__(
        self, url: str, endpoints: Mapping[str, PublishedEndpoint], load: Callable[[str], None] = lambda name: None
    ) -> None:
        self.endpoints = endpoints
        self._load = load
        self._clients = {
            name: RankClient(url, model=name, recommend_model=name, timeout_s=TIMEOUT_S, degradation=Degradation())
            for name in endpoints
        }
        self._statistics = StepStatistics(url)

    def ask(self, name: str, request: Request, item_ids: Sequence[str]) -> Ranked:
        """All items, best first; in the order in which they are given where the server does not answer.

        Raises:
            InvalidRequest: such a query would never be answered.
        """
        endpoint = self.endpoints[name]
        try:
            self._load(name)
        except ServerError as error:
            return Ranked(list(item_ids), [None] * len(item_ids), 0.0, degraded=told("first_stage", str(error)))
        before = self._statistics.counted(endpoint)
        started_s = time.perf_counter()
        found = self._ranked(endpoint, request, item_ids)
        call_ms = (time.perf_counter() - started_s) * 1e3
        queue_ms, compute_ms = (None, None) if found.degraded else self._statistics.ms_since(before, endpoint)
        return Ranked(
            ids=list(found.ids),
            scores=[score if scored else None for (_, score), scored in zip(found, found.scored, strict=True)],
            call_ms=call_ms,
            model=endpoint.model if found.model else "",
            request_id=found.request_id,
            degraded=None if found.degraded is None else told(found.degraded.step, found.degraded.reason),
            queue_ms=queue_ms,
            compute_ms=compute_ms,
        )

    def ready(self, name: str) -> bool:
        """Whether the server answers a request for the endpoint."""
        return self._clients[name].ready(TIMEOUT_S, endpoint=self.endpoints[name].kind)

    def close(self) -> None:
        """Give the connections back."""
        for client in self._clients.values():
            client.close()
        self._statistics.close()

    def _ranked(self, endpoint: PublishedEndpoint, request: Request, item_ids: Sequence[str]) -> RankedList:
        client = self._clients[endpoint.name]
        held = {USER_ID.name: request.user_id, CONTEXT.name: request.context, HISTORY.name: request.history}
        further: dict[str, Any] = {name: value for name, value in held.items() if value and name in endpoint.reads}
        if endpoint.kind == RANK.name:
            return client.rank(request.query, item_ids, **further)
        further.pop(HISTORY.name, None)
        return client.recommend(request.history, item_ids, **further)


def told(step: str, reason: str) -> Degraded:
    """A step of the client's degradation for a reader."""
    return Degraded(step=step, words=WORDS[step], reason=reason)


# ---------------------------------------------------------------- the server's own times
class Counted(NamedTuple):
    """Since the server started: requests to the endpoint, and nanoseconds in its steps."""

    requests: int
    queue_ns: int
    compute_ns: int


class StepStatistics:
    """Queue and compute of an endpoint's steps, from Triton's statistics."""

    def __init__(self, url: str) -> None:
        # After an outage gRPC would wait longer and longer before it connects again.
        self._client = triton.InferenceServerClient(url, channel_args=[("grpc.max_reconnect_backoff_ms", 500)])

    def counted(self, endpoint: PublishedEndpoint) -> Counted | None:
        """None where the server does not say."""
        try:
            stats = self._client.get_inference_statistics(client_timeout=STATISTICS_TIMEOUT_S).model_stats
        except InferenceServerException:
            return None
        own = [model.inference_stats for model in stats if model.name == endpoint.name]
        steps = [model.inference_stats for model in stats if model.name in endpoint.steps]
        return Counted(
            requests=sum(each.success.count for each in own),
            queue_ns=sum(each.queue.ns for each in steps),
            compute_ns=sum(each.compute_input.ns + each.compute_infer.ns + each.compute_output.ns for each in steps),
        )

    def ms_since(self, before: Counted | None, endpoint: PublishedEndpoint) -> tuple[float | None, float | None]:
        """(queue, compute), the mean over the requests since ``before``; None where none was counted in time."""
        end_s = time.monotonic() + COUNTED_WITHIN_S
        while before is not None and time.monotonic() < end_s:
            now = self.counted(endpoint)
            if now is not None and now.requests > before.requests:
                requests = now.requests - before.requests
                return (
                    (now.queue_ns - before.queue_ns) / requests / 1e6,
                    (now.compute_ns - before.compute_ns) / requests / 1e6,
                )
            time.sleep(0.001)
        return None, None

    def close(self) -> None:
        """Give the connection back."""
        self._client.close()
