"""What a call asks, as a value: its arrays, the same of fewer candidates, and the answer that its arrays hold.

Knows nothing of the network, nor of what is done where nothing answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ._contract import ENDPOINTS, LIMITS, ListRules, ModelSpec
from ._privacy import hashed_id
from ._request import (
    Fields,
    check_inputs,
    context_input,
    document_ids,
    document_inputs,
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
from ._response import RankedList, ranked_list_from_outputs, similar_items_from_outputs
from ._rules import Rules, allowed, rule_inputs

READY, READY_ITEM = "ready", "0"
"""Query or text, and item, of the request that `ready` sends."""


@dataclass(frozen=True, eq=False)
class Asked:
    """One call's arguments; see `RankClient`. `ids`: its candidates, in first-stage order; of `similar`, none.

    What callers give may be of any type until `inputs` has looked at it.
    """

    endpoint: str
    ids: list[str]
    top_k: Any = None
    query: Any = None
    documents: list[str] | None = None
    item_id: Any = None
    rules: Rules | None = None
    user_id: str | None = None
    history: Sequence[str] | None = None
    context: Fields | None = None
    item_fields: Mapping[str, Fields] | None = None
    item_texts: Mapping[str, str] | None = None
    id_key: bytes | None = field(default=None, repr=False)

    @property
    def contract(self) -> ModelSpec:
        """This client's, of the endpoint."""
        return ENDPOINTS[self.endpoint]

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """Arrays by name. Raises: InvalidRequest."""
        inputs = self._similar_inputs() if self.endpoint == "similar" else self._list_inputs()
        check_inputs(inputs, self.contract)
        return inputs

    def first(self, count: int) -> Asked:
        """The same of the first `count` candidates, and of what is said of them."""
        kept = self.ids[:count]
        return replace(
            self,
            ids=kept,
            documents=None if self.documents is None else self.documents[:count],
            rules=_rules_of(self.rules, kept),
            item_fields=_of(self.item_fields, kept),
            item_texts=_of(self.item_texts, kept),
        )

    def answer(self, outputs: Mapping[str, np.ndarray], own: ListRules) -> RankedList:
        """What the server's arrays say, each checked. Raises: ServerError."""
        if self.endpoint == "similar":
            return similar_items_from_outputs(outputs, self.item_id, self.top_k, self.contract)
        count = self.top_k or own.default_top_k
        return ranked_list_from_outputs(outputs, self.ids, count, self.contract, allowed(self.inputs, own))

    def may_leave_out(self, own: ListRules) -> bool:
        """Whether a filter is in force."""
        return allowed(self.inputs, own).may_leave_out

    def in_first_stage_order(self) -> RankedList:
        """The request's own candidates, without scores."""
        ids = self.ids[: self.top_k or None]
        return RankedList(tuple(ids), _unscored(len(ids)))

    def completed(self, head: RankedList) -> RankedList:
        """`head`, of the first candidates, with the others behind it in first-stage order, without scores."""
        ranked = set(head.ids)
        rest = [item_id for item_id in self.ids if item_id not in ranked]
        ids = (*head.ids, *rest)[: self.top_k or None]
        scores = np.concatenate([head.scores, _unscored(len(rest))])[: len(ids)]
        scores.flags.writeable = False
        return replace(head, ids=ids, scores=scores)

    def _similar_inputs(self) -> dict[str, np.ndarray]:
        return {**item_input(self.item_id), **similar_top_k_input(self.top_k)}

    def _list_inputs(self) -> dict[str, np.ndarray]:
        documents = {} if self.documents is None else document_inputs(self.documents)
        return {
            **(query_input(self.query) if self.endpoint == "rank" else {}),
            **history_input(self.history),
            **(documents or item_inputs(self.ids)),
            **top_k_input(self.top_k),
            **self._user(),
            **context_input(self.context),
            **item_fields_input(self.item_fields, self.ids),
            **item_texts_input(self.item_texts, self.ids, self.item_fields),
            **rule_inputs(self.rules, self.ids),
        }

    def _user(self) -> dict[str, np.ndarray]:
        user = user_input(self.user_id)
        if self.user_id is None or self.id_key is None:
            return user
        return user_input(hashed_id(self.user_id, self.id_key))


def asked_documents(query: str, documents: Sequence[str], top_k: int | None) -> Asked:
    """Of `rerank`: the texts under ids made of their positions. Raises: InvalidRequest."""
    texts = listed(documents, "documents", "")
    return Asked("rank", document_ids(len(texts)), top_k, query=query, documents=texts)


def asked_whether_ready(endpoint: str, served: ModelSpec) -> Asked:
    """A small request: of an item "0" that the server need not know, with a text where the model reads texts."""
    if endpoint == "similar":
        return Asked(endpoint, [], 1, item_id=READY_ITEM)
    reads_texts = "item_texts" in {tensor.name for tensor in served.inputs}
    return Asked(
        endpoint,
        [READY_ITEM],
        query=READY if endpoint == "rank" else None,
        history=None if endpoint == "rank" else [],
        item_texts={READY_ITEM: READY} if reads_texts else None,
    )


def _unscored(count: int) -> np.ndarray:
    scores = np.full(count, LIMITS.unscored, np.float32)
    scores.flags.writeable = False
    return scores


def _of(given: Mapping[str, Any] | None, ids: list[str]) -> dict[str, Any] | None:
    if given is None:
        return None
    kept = set(ids)
    return {item_id: value for item_id, value in given.items() if item_id in kept}


def _rules_of(rules: Rules | None, ids: list[str]) -> Rules | None:
    """Pins of the candidates left, to positions that there are."""
    if rules is None or rules.pins is None:
        return rules
    kept = set(ids)
    pins = {item: position for item, position in rules.pins.items() if item in kept and position <= len(ids)}
    return replace(rules, pins=pins)
