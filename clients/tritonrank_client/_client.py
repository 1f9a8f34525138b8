"""RankClient: a shop's calls to its ranking server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal

import numpy as np

from ._contract import ENDPOINTS, ListRules
from ._deadline import Deadline
from ._endpoint import Endpoint
from ._errors import DeadlineExceeded, InvalidRequest, Overloaded, ServerError, TritonRankError, Unavailable
from ._privacy import check_key, hashed_id
from ._request import (
    Fields,
    check_inputs,
    context_input,
    document_ids,
    document_inputs,
    document_position,
    history_input,
    item_fields_input,
    item_input,
    item_inputs,
    item_texts_input,
    listed,
    query_input,
    similar_top_k_input,
    top_k_input,
    user_input,
)
from ._response import RankedList, Reranked, ranked_list_from_outputs, similar_items_from_outputs
from ._rules import Rules, allowed, rule_inputs
from ._tls import TLS
from ._transport import GrpcTransport, Transport

DEFAULT_TIMEOUT_S = 0.2
READY, READY_ITEM = "ready", "0"
"""Query or text, and item, of the request that `ready` sends."""
EndpointName = Literal["rank", "recommend", "similar"]


class RankClient:
    """Asks one server. Use one a process, made after it forks, from as many threads as you like.

        RankClient("localhost:8001")                            the published rankers, 0.2 s a request
        RankClient("localhost:8001", timeout_s=0.05)            another budget for every request
        RankClient("localhost:8001", model="rank_two_tower")    a variant
        RankClient("ranker:8001", tls=TLS(ca="ca.pem"))         encrypted, and sure to be that server
        RankClient("localhost:8001", id_key=key)                user ids leave as keyed hashes
        RankClient("mock", transport=MockTransport(handler))    no server, for tests

    url: host and port of Triton's gRPC service, without a scheme.
    model, recommend_model, similar_model: what `rank`, `recommend` and `similar` ask.
    timeout_s: seconds for one call, everything included; a call may bring its own.
    id_key: at least 16 secret bytes; `user_id` is sent as `hashed_id(user_id, id_key)`, so the ranker must be trained
        and the store filled with such ids. Item ids and histories are sent as they are.
    tls: for a server whose gRPC port has TLS; None = in the clear.
    Raises: InvalidRequest for such a url, timeout_s, id_key or tls.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "rank",
        recommend_model: str = "recommend",
        similar_model: str = "similar",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        id_key: bytes | None = None,
        tls: TLS | None = None,
        transport: Transport | None = None,
    ):
        _check_url(url)
        Deadline(timeout_s)  # for its check
        if id_key is not None:
            check_key(id_key)
        if tls is not None and transport is not None:
            raise InvalidRequest(
                "tls: a transport of your own is given, which connects by itself; leave one out", "tls"
            )
        self._timeout_s = timeout_s
        self._id_key = id_key
        self._transport = transport if transport is not None else GrpcTransport(url, tls)
        models = {"rank": model, "recommend": recommend_model, "similar": similar_model}
        self._endpoints = {
            name: Endpoint(self._transport, models[name], contract) for name, contract in ENDPOINTS.items()
        }

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

        Returns: K = min(top_k, N) ids with float32 scores, highest first; fewer where only items in stock are wanted
            (`left_out` says how many of the N were not), in another order where items are pinned or a brand is limited,
            by `rules` or by the recipe. Items that the server could not score come last, in first-stage order.
        Raises: a TritonRankError: InvalidRequest before anything is sent, ContractMismatch at first use, Unavailable,
            Overloaded, DeadlineExceeded, ServerError. What the recipe's own rules may do to a list is read from the
            server at first use; a list that is shorter, or in another order, than the rules in force explain is a
            ServerError.
        """
        deadline = self._deadline(timeout_s)
        ids = listed(item_ids)
        inputs = {
            **query_input(query),
            **self._inputs_of_all(ids, top_k, rules, user_id, context, item_fields),
            **history_input(history),
            **item_texts_input(item_texts, ids, item_fields),
        }
        return self._ranked("rank", ids, top_k, inputs, deadline)

    def rerank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, timeout_s: float | None = None
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
        deadline = self._deadline(timeout_s)
        texts = listed(documents, "documents", "")
        inputs = {**query_input(query), **document_inputs(texts), **top_k_input(top_k)}
        ranked = self._ranked("rank", document_ids(len(texts)), top_k, inputs, deadline)
        return Reranked(tuple(map(document_position, ranked.ids)), ranked.scores)

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
    ) -> RankedList:
        """Rank the items for a user, within the time budget or not at all.

            client.recommend(["B07", "B01"], ids, top_k=10)     after these purchases
            client.recommend([], ids, top_k=10)                 nothing known of the user: the popular ones

        Args:
            history: ids of items that the user took, oldest first, at most 10,000; may be empty.

            The others, what is returned and what is raised are as with `rank`.
        """
        deadline = self._deadline(timeout_s)
        ids = listed(item_ids)
        inputs = {
            **history_input(listed(history, "history", "oldest first")),
            **self._inputs_of_all(ids, top_k, rules, user_id, context, item_fields),
        }
        return self._ranked("recommend", ids, top_k, inputs, deadline)

    def similar(self, item_id: str, top_k: int = 10, timeout_s: float | None = None) -> RankedList:
        """The items nearest to one, by the cosine of their stored vectors, without the item itself.

        Args:
            item_id: of an item of the store.
            top_k: items to return, 1 to 1,024.
            timeout_s: as with `rank`.

        Returns: at most top_k ids with float32 cosines, highest first; fewer where the store holds fewer.
        Raises: as `rank`; InvalidRequest also where the store does not know the item.
        """
        deadline = self._deadline(timeout_s)
        inputs = {**item_input(item_id), **similar_top_k_input(top_k)}
        endpoint = self._endpoints["similar"]
        check_inputs(inputs, endpoint.contract)
        outputs, _ = endpoint.infer(inputs, deadline)
        return similar_items_from_outputs(outputs, item_id, top_k, endpoint.contract)

    def check_contract(self, timeout_s: float | None = None, endpoint: EndpointName = "rank") -> None:
        """Compare the server's model with this client's contract now: at start-up, say, before the first user waits.

        Raises: ContractMismatch, Unavailable, Overloaded, DeadlineExceeded, ServerError.
        """
        self._endpoints[endpoint].check_again(self._deadline(timeout_s))

    def ready(self, timeout_s: float | None = None, endpoint: EndpointName = "rank") -> bool:
        """Whether the server answers a real request for the model in time: of an item "0" that it need not know, with a
        text where the model reads texts.

        A server whose model's process has died says for as long as it runs that it is ready; its answers do not.

        Raises: ContractMismatch.
        """
        deadline = self._deadline(timeout_s)
        try:
            if not self._transport.is_ready(self._endpoints[endpoint].model, deadline.remaining_s()):
                return False
            self._ask(endpoint, deadline)
        except InvalidRequest:
            return True  # the model has answered: it does not know the item, say
        except (Unavailable, Overloaded, DeadlineExceeded, ServerError):
            return False
        return True

    def close(self) -> None:
        """Give the connection back; calls then raise Unavailable. Safe to call again."""
        self._transport.close()

    def __enter__(self) -> RankClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, endpoint: EndpointName, deadline: Deadline) -> None:
        """Send a small request and check the answer."""
        if endpoint == "similar":
            inputs = {**item_input(READY_ITEM), **similar_top_k_input(1)}
            outputs, _ = self._endpoints[endpoint].infer(inputs, deadline)
            similar_items_from_outputs(outputs, READY_ITEM, 1, self._endpoints[endpoint].contract)
            return
        reads = {tensor.name for tensor in self._endpoints[endpoint].served(deadline).inputs}
        asked = query_input(READY) if endpoint == "rank" else history_input([])
        text = item_texts_input({READY_ITEM: READY}, [READY_ITEM]) if "item_texts" in reads else {}
        self._ranked(endpoint, [READY_ITEM], None, {**asked, **item_inputs([READY_ITEM]), **text}, deadline)

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._timeout_s if timeout_s is None else timeout_s)

    def _inputs_of_all(
        self,
        ids: list[str],
        top_k: int | None,
        rules: Rules | None,
        user_id: str | None,
        context: Fields | None,
        item_fields: Mapping[str, Fields] | None,
    ) -> dict[str, np.ndarray]:
        """What `rank` and `recommend` have in common."""
        user = user_input(user_id)
        if user_id is not None and self._id_key is not None:
            user = user_input(hashed_id(user_id, self._id_key))
        return {
            **item_inputs(ids),
            **top_k_input(top_k),
            **user,
            **context_input(context),
            **item_fields_input(item_fields, ids),
            **rule_inputs(rules, ids),
        }

    def _ranked(
        self, name: EndpointName, ids: list[str], top_k: int | None, inputs: dict[str, np.ndarray], deadline: Deadline
    ) -> RankedList:
        endpoint = self._endpoints[name]
        check_inputs(inputs, endpoint.contract)
        outputs, served = endpoint.infer(inputs, deadline)
        own = endpoint.own_rules(served)

        def checked(own: ListRules) -> RankedList:
            count = top_k or own.default_top_k
            return ranked_list_from_outputs(outputs, ids, count, endpoint.contract, allowed(inputs, own))

        try:
            return checked(own)
        except ServerError:
            # A variant with other rules may have been published since they were read.
            try:
                endpoint.check_again(deadline)
                renewed = endpoint.own_rules(endpoint.served(deadline))
            except TritonRankError:
                renewed = own
            if renewed == own:
                raise
            return checked(renewed)


def _check_url(url: str) -> None:
    if not url or url.startswith(("http://", "https://", "grpc://", "grpcs://")):
        raise InvalidRequest(
            f"url: found {url!r}, wanted host:port of Triton's gRPC service without a scheme, such as 'localhost:8001'",
            "url",
        )
