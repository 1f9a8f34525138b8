"""RankClient: a shop's calls to its ranking server."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Literal

from .._arguments import Asked, asked_documents, asked_whether_ready
from .._deadline import Deadline
from .._errors import DeadlineExceeded, InvalidRequest, Overloaded, ServerError, TritonRankError, Unavailable
from .._observing import LOG, Observation, observed, shadow_dropped
from .._options import BreakerPolicy, Connections, Degradation, Experiment, HedgePolicy, RetryPolicy, Shadow
from .._privacy import check_key
from .._request import Fields, document_position, listed
from .._response import Degraded, RankedList, Reranked
from .._rules import Rules
from .._shadow import falls_into, shadow_line
from .._tls import TLS
from .._wire import Transport
from ._caller import Caller, Policies
from ._transport import GrpcTransport
from ._waiting import Background

DEFAULT_TIMEOUT_S = 0.2
EndpointName = Literal["rank", "recommend", "similar"]


class RankClient:
    """Asks one server, or several that serve the same. Use one a process, made after it forks,
    from as many threads as you like.

        RankClient("localhost:8001")                            the published rankers, 0.2 s a request
        RankClient("localhost:8001", timeout_s=0.05)            another budget for every request
        RankClient("localhost:8001", model="rank_two_tower")    a variant
        RankClient(["ranker-0:8001", "ranker-1:8001"])          several, in turns; or a name that stands for them
        RankClient("ranker:8001", degradation=Degradation())    the first-stage order where nothing answers
        RankClient("ranker:8001", tls=TLS(ca="ca.pem"))         encrypted, and sure to be that server
        RankClient("localhost:8001", id_key=key)                user ids leave as keyed hashes

    url: host and port of Triton's gRPC service, without a scheme; or several.
    model, recommend_model, similar_model: what `rank`, `recommend` and `similar` ask.
    timeout_s: seconds for one call, everything included; a call may bring its own.
    id_key: at least 16 secret bytes; `user_id` is sent as `hashed_id(user_id, id_key)`, so the ranker must be trained
        and the store filled with such ids. Item ids and histories are sent as they are.
    tls: for a server whose gRPC port has TLS; None = in the clear.
    token: sent as ``authorization: Bearer``; needs tls, unless the server is this machine.
    headers: sent with every request: of Triton's restricted protocols, say.
    retry, hedge, breaker, degradation: what is done where no answer comes, or none soon; None = the error is raised.
    connections: to several servers.
    experiment: which share of the callers another model answers.
    shadow: which share of the requests a candidate sees too.
    transport: in place of url's.
    Raises: InvalidRequest for what of these does not fit, or needs a package that is not installed.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        model: str = "rank",
        recommend_model: str = "recommend",
        similar_model: str = "similar",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        id_key: bytes | None = None,
        tls: TLS | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry: RetryPolicy | None = None,
        hedge: HedgePolicy | None = None,
        breaker: BreakerPolicy | None = None,
        degradation: Degradation | None = None,
        connections: Connections = Connections(),  # noqa: B008 - frozen
        experiment: Experiment | None = None,
        shadow: Shadow | None = None,
        transport: Transport | None = None,
    ):
        Deadline(timeout_s)  # for its check
        if id_key is not None:
            check_key(id_key)
        if transport is not None and (tls is not None or token is not None or headers is not None):
            raise InvalidRequest(
                "tls, token, headers: a transport of your own is given, which connects by itself; leave one out", "tls"
            )
        self._timeout_s = timeout_s
        self._id_key = id_key
        self._degradation = degradation
        self._experiment, self._shadow = experiment, shadow
        over_grpc = GrpcTransport(url, tls, token=token, headers=headers, connections=connections)
        self._transport = over_grpc if transport is None else transport
        self._models: dict[str, str] = {"rank": model, "recommend": recommend_model, "similar": similar_model}
        self._policies = Policies(retry, hedge, breaker)
        self._callers: dict[tuple[str, str], Caller] = {}
        self._plain_callers: dict[tuple[str, str], Caller] = {}
        for endpoint in self._models:
            self._caller(endpoint)
        self._copies = None if shadow is None else Background(shadow.at_once)
        self._made_in = os.getpid()

    def rank(
        self,
        query: str,
        item_ids: Sequence[str],
        top_k: int | None = None,
        timeout_s: float | None = None,
        *,
        rules: Rules | None = None,
        user_id: str | None = None,
        history: Sequence[str] | None = None,
        context: Fields | None = None,
        item_fields: Mapping[str, Fields] | None = None,
        item_texts: Mapping[str, str] | None = None,
        key: str | None = None,
        request_id: str | None = None,
    ) -> RankedList:
        """Rank the items for the query, within the time budget or not at all.

            client.rank("red shoes", ids)                     all of them, best first
            client.rank("red shoes", ids, top_k=10)           the best 10
            client.rank("red shoes", ids, timeout_s=0.05)     within 50 ms
            client.rank("red shoes", ids, rules=Rules(in_stock_only=True))

        Args:
            query: not blank, at most 2,048 bytes of UTF-8.
            item_ids: N = 1 to 1,024 distinct ids of 1 to 511 bytes of UTF-8, in first-stage order.
            top_k: items to return, at least 0; None or 0 = all; more than N = N.
            timeout_s: seconds for this call, the connection and the check of the contract at first use included.
            rules: in place of the recipe's own.

            The rest is for a ranker that reads it; what the served model does not read is refused.

            user_id: whose stored features to use; None = an unknown user's.
            history: ids of items that the user took, oldest first, at most 10,000; may be empty.
            context: raw fields of this request, at most 4,096 bytes of JSON.
            item_fields: item id => raw fields in place of its stored features, as `context`; for a fresh item, say.
                Rules go by the stored attributes.
            item_texts: item id => text in place of what is stored of it, 1 to 32,768 bytes of UTF-8; an item has a text
                or fields, not both. What the ranker does not read to its end is counted by the server.

            key: of the caller, by which an experiment draws; None = user_id. It is not sent.
            request_id: of your own, printable ASCII, for the server's log and the result; None = a random one.

        Returns: K = min(top_k, N) ids with float32 scores, highest first; fewer where only items in stock are wanted
            (`left_out` says how many of the N were not), in another order where items are pinned or a brand is limited,
            by `rules` or by the recipe. Items that the server could not score come last, in first-stage order.
        Raises: a TritonRankError: InvalidRequest before anything is sent, ContractMismatch at first use, Unavailable,
            Overloaded, DeadlineExceeded, ServerError. What the recipe's own rules may do to a list is read from the
            server at first use; a list that is shorter, or in another order, than the rules in force explain is a
            ServerError.
        """
        asked = Asked(
            "rank", listed(item_ids), top_k, query, None, None, rules, user_id, history, context, item_fields,
            item_texts, self._id_key,
        )  # fmt: skip
        return self._answer(asked, timeout_s, request_id, key or user_id)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        timeout_s: float | None = None,
        *,
        request_id: str | None = None,
    ) -> Reranked:
        """Rank texts for the query that no item store needs to know, within the time budget or not at all.

            for position, score in client.rerank("red shoes", ["a red shoe", "a blue mug"]):
                ...

        Args:
            query: as with `rank`.
            documents: N = 1 to 1,024 texts of 1 to 32,768 bytes of UTF-8; the same text may stand there twice.
            top_k, timeout_s: as with `rank`.

        Returns: K = min(top_k, N) positions of documents with float32 scores, highest first; equal ones in the order of
            the documents.
        Raises: as `rank`; InvalidRequest also where the served model takes no texts.
        """
        ranked = self._answer(asked_documents(query, documents, top_k), timeout_s, request_id)
        positions = tuple(map(document_position, ranked.ids))
        return Reranked(positions, ranked.scores, ranked.model, ranked.request_id, ranked.degraded)

    def recommend(
        self,
        history: Sequence[str],
        item_ids: Sequence[str],
        top_k: int | None = None,
        timeout_s: float | None = None,
        *,
        rules: Rules | None = None,
        user_id: str | None = None,
        context: Fields | None = None,
        item_fields: Mapping[str, Fields] | None = None,
        key: str | None = None,
        request_id: str | None = None,
    ) -> RankedList:
        """Rank the items for a user, within the time budget or not at all.

            client.recommend(["B07", "B01"], ids, top_k=10)     after these purchases
            client.recommend([], ids, top_k=10)                 nothing known of the user: the popular ones

        Args:
            history: ids of items that the user took, oldest first, at most 10,000; may be empty.

            The others, what is returned and what is raised are as with `rank`.
        """
        asked = Asked(
            "recommend", listed(item_ids), top_k, None, None, None, rules, user_id,
            listed(history, "history", "oldest first"), context, item_fields, None, self._id_key,
        )  # fmt: skip
        return self._answer(asked, timeout_s, request_id, key or user_id)

    def similar(
        self, item_id: str, top_k: int = 10, timeout_s: float | None = None, *, request_id: str | None = None
    ) -> RankedList:
        """The items nearest to one, by the cosine of their stored vectors, without the item itself.

        Args:
            item_id: of an item of the store.
            top_k: items to return, 1 to 1,024.
            timeout_s: as with `rank`.

        Returns: at most top_k ids with float32 cosines, highest first; fewer where the store holds fewer.
        Raises: as `rank`; InvalidRequest also where the store does not know the item.
        """
        return self._answer(Asked("similar", [], top_k, item_id=item_id), timeout_s, request_id)

    def check_contract(self, timeout_s: float | None = None, endpoint: EndpointName = "rank") -> None:
        """Compare the server's model with this client's contract now: at start-up, say, before the first user waits.

        Raises: ContractMismatch, Unavailable, Overloaded, DeadlineExceeded, ServerError.
        """
        self._caller(endpoint).endpoint.check_again(self._deadline(timeout_s))

    def ready(self, timeout_s: float | None = None, endpoint: EndpointName = "rank") -> bool:
        """Whether the server answers a real request for the model in time: of an item "0" that it need not know, with a
        text where the model reads texts.

        A server whose model's process has died says for as long as it runs that it is ready; its answers do not.

        Raises: ContractMismatch.
        """
        deadline = self._deadline(timeout_s)
        caller = self._plain_caller(endpoint, self._models[endpoint])
        try:
            if not self._transport.is_ready(caller.endpoint.model, deadline.remaining_s()):
                return False
            asked = asked_whether_ready(endpoint, caller.endpoint.served(deadline))
            caller.ask(asked, deadline, Observation(_request_id(None)))
        except InvalidRequest:
            return True  # the model has answered: it does not know the item, say
        except (Unavailable, Overloaded, DeadlineExceeded, ServerError):
            return False
        return True

    def warm_up(self, timeout_s: float = 5.0, endpoints: Sequence[EndpointName] = ("rank",)) -> None:
        """Connect, compare the contracts and send each endpoint a real request, before the first user waits.

        Raises: ContractMismatch; Unavailable for an endpoint that does not answer in time.
        """
        deadline = self._deadline(timeout_s)
        for endpoint in endpoints:
            self.check_contract(deadline.remaining_s(), endpoint)
            if not self.ready(deadline.remaining_s(), endpoint):
                raise Unavailable(f"'{self._models[endpoint]}' has not answered a first request; see the server's log")

    def close(self) -> None:
        """Give the connection back; calls then raise Unavailable. Safe to call again."""
        if self._copies is not None and self._shadow is not None:
            self._copies.close(self._shadow.timeout_s)
        self._transport.close()

    def __enter__(self) -> RankClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(
        self, asked: Asked, timeout_s: float | None, request_id: str | None, key: str | None = None
    ) -> RankedList:
        deadline = self._deadline(timeout_s)
        name = _request_id(request_id)
        _ = asked.inputs  # a fault of the caller is raised before anything is sent
        with observed(asked.endpoint, len(asked.ids), name) as observation:
            ranked = self._ladder(asked, deadline, observation, key)
            if ranked.degraded is not None:
                observation.degraded(ranked.degraded)
        self._copy(asked, ranked, key)
        return ranked

    def _ladder(self, asked: Asked, deadline: Deadline, observation: Observation, key: str | None) -> RankedList:
        """What is asked for, or the first step of the degradation that gives a list."""
        model = self._model(asked.endpoint, key)
        steps = self._steps(asked, model)
        try:
            own = deadline.first(1 - self._degradation.keep) if steps and self._degradation else deadline
            ranked, _ = self._caller(asked.endpoint, model).ask(asked, own, observation)
            return replace(ranked, model=model, request_id=observation.request_id)
        except InvalidRequest:
            raise
        except TritonRankError as error:
            fault = error
        for number, (step, ask) in enumerate(steps):
            try:
                ranked = ask(deadline.first(1 / (len(steps) - number)), observation)
            except TritonRankError:
                continue
            why = Degraded(step, str(fault), type(fault))
            return replace(ranked, request_id=observation.request_id, degraded=why)
        if self._degradation is None or not self._degradation.first_stage or not asked.ids:
            raise fault
        why = Degraded("first_stage", str(fault), type(fault))
        return replace(asked.in_first_stage_order(), request_id=observation.request_id, degraded=why)

    def _steps(self, asked: Asked, model: str) -> list[tuple[str, Step]]:
        """The steps that ask a server, with what each asks."""
        plan = self._degradation
        steps: list[tuple[str, Step]] = []
        if plan is None or not asked.ids:
            return []
        if plan.candidates is not None and plan.candidates < len(asked.ids):
            fewer = asked.first(plan.candidates)

            def ask_fewer(deadline: Deadline, observation: Observation) -> RankedList:
                caller = self._caller(asked.endpoint, model)
                ranked, served = caller.ask(fewer, deadline, observation)
                ranked = replace(ranked, model=model)
                # Whether a filter would take one of the others away is not known.
                filtered = asked.may_leave_out(caller.endpoint.own_rules(served))
                return ranked if filtered else asked.completed(ranked)

            steps.append(("fewer_candidates", ask_fewer))
        if plan.model is not None and plan.model != model:
            other = plan.model

            def ask_other(deadline: Deadline, observation: Observation) -> RankedList:
                ranked, _ = self._caller(asked.endpoint, other).ask(asked, deadline, observation)
                return replace(ranked, model=other)

            steps.append(("model", ask_other))
        return steps

    def _model(self, endpoint: str, key: str | None) -> str:
        experiment = self._experiment
        if experiment is None or experiment.endpoint != endpoint or key is None:
            return self._models[endpoint]
        return experiment.model if falls_into(key, experiment.name, experiment.share) else self._models[endpoint]

    def _copy(self, asked: Asked, ranked: RankedList, key: str | None) -> None:
        """Show the request to the candidate too, unless it was degraded: then the servers have enough to do."""
        shadow = self._shadow
        if shadow is None or self._copies is None or shadow.endpoint != asked.endpoint or ranked.degraded is not None:
            return
        if ranked.model == shadow.model or random.random() >= shadow.share:
            return

        def ask() -> None:
            caller = self._plain_caller(asked.endpoint, shadow.model)
            try:
                copy, _ = caller.ask(asked, Deadline(shadow.timeout_s), Observation(ranked.request_id))
            except TritonRankError as error:
                shadow_dropped(asked.endpoint, type(error).__name__)
                return
            line = shadow_line(ranked.request_id, asked.endpoint, asked.ids, ranked, replace(copy, model=shadow.model))
            try:
                shadow.log(line)
            except Exception as error:  # of the caller's own function, with nobody above to see it
                LOG.warning("a copy of request %s was not logged: %s", ranked.request_id, type(error).__name__)
                shadow_dropped(asked.endpoint, "not logged")

        if not self._copies.start(ask):
            shadow_dropped(asked.endpoint, "no room")

    def _caller(self, endpoint: str, model: str | None = None) -> Caller:
        """Of a model's calls: one, though several threads make the first of them at once."""
        name = (endpoint, model or self._models[endpoint])
        if name not in self._callers:
            self._callers.setdefault(name, Caller(self._transport, name[1], endpoint, self._policies))
        return self._callers[name]

    def _plain_caller(self, endpoint: str, model: str) -> Caller:
        """Without policies: for what no caller waits for, which is not to be repeated nor to open a breaker."""
        if (endpoint, model) not in self._plain_callers:
            own = Caller(self._transport, model, endpoint, Policies())
            self._plain_callers.setdefault((endpoint, model), own)
        return self._plain_callers[endpoint, model]

    def _deadline(self, timeout_s: float | None) -> Deadline:
        if os.getpid() != self._made_in:
            raise InvalidRequest(
                f"this client was made in process {self._made_in}, which then forked; make one in each process"
            )
        return Deadline(self._timeout_s if timeout_s is None else timeout_s)


Step = Callable[[Deadline, Observation], RankedList]


def _request_id(given: str | None) -> str:
    if given is None:
        return secrets.token_hex(8)
    if not isinstance(given, str) or not given or len(given) > 128 or not (given.isascii() and given.isprintable()):
        raise InvalidRequest(
            f"request_id: found {str(given)[:60]!r}, wanted 1 to 128 printable ASCII letters", "request_id"
        )
    return given
