"""Our own interface: ranking, recommending and similar items by item ids, with all that the client can ask."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field
from tritonrank_client import Boost, InvalidRequest, RankedList, Rules

from gateway.errors import ErrorForm
from gateway.route import Asking, interface
from gateway.shapes import Body

Fields = dict[str, Any]
"""Raw field => text, number, boolean, list of them, or null."""


class BoostBody(Body):
    """Adds to the score of each item whose stored attribute has the value."""

    attribute: str
    value: str
    amount: float


class RulesBody(Body):
    """Business rules of one request. Of each, null leaves what the recipe says, and an empty one switches it off."""

    in_stock_only: bool | None = None
    boosts: dict[str, float] | list[BoostBody] | None = Field(
        None, description='"attribute=value" => amount, or a list where a name holds "=".'
    )
    pins: dict[str, int] | None = Field(None, description="Item of the request => its position, 1 = first.")
    max_per_brand: int | None = None

    def as_rules(self) -> Rules:
        """For the client."""
        boosts = self.boosts
        if isinstance(boosts, list):
            listed = [Boost(boost.attribute, boost.value, boost.amount) for boost in boosts]
            return Rules(self.in_stock_only, listed, self.pins, self.max_per_brand)
        return Rules(self.in_stock_only, boosts, self.pins, self.max_per_brand)


class ListBody(Body):
    """What every request has."""

    model: str | None = Field(None, description="One of /v1/models; without one, the gateway's first of the kind.")
    timeout_s: float | None = Field(None, gt=0, description="At most the gateway's own, which holds without it.")


class ItemsBody(ListBody):
    """What requests have that bring items."""

    item_ids: list[str] = Field(description="Distinct, in first-stage order.")
    top_k: int | None = Field(None, ge=0, description="Items to return; null or 0 = all.")
    rules: RulesBody | None = None
    user_id: str | None = None
    context: Fields | None = Field(None, description="Raw fields of the request.")
    item_fields: dict[str, Fields] | None = Field(None, description="Item => raw fields in place of the stored ones.")

    def arguments(self) -> dict[str, Any]:
        """Of the client's ``rank`` and ``recommend``."""
        return {
            "rules": None if self.rules is None else self.rules.as_rules(),
            "user_id": self.user_id,
            "context": self.context,
            "item_fields": self.item_fields,
        }


class RankRequest(ItemsBody):
    """Items for a query."""

    query: str
    history: list[str] | None = Field(None, description="Items that the user took, oldest first.")
    item_texts: dict[str, str] | None = Field(None, description="Item => text in place of what is stored of it.")


class RecommendRequest(ItemsBody):
    """Items for a user."""

    history: list[str] = Field(description="Items that the user took, oldest first; may be empty.")


class SimilarRequest(ListBody):
    """Items like one."""

    item_id: str
    top_k: int = Field(10, description="Items to return at most.")


class Item(BaseModel):
    """One of a list."""

    id: str
    score: float | None = Field(description="null: the ranker could not score it.")


class DegradedBody(BaseModel):
    """That a step took the ranker's place, and why."""

    step: str = Field(description='"first_stage": the order of the request, without scores.')
    reason: str = Field(description="The error that the ranker gave.")


class ListAnswer(BaseModel):
    """Items, best first."""

    items: list[Item]
    model: str = Field(description="The endpoint of the server that has ranked them; empty where none has.")
    request_id: str = Field(description="The header x-request-id; in the server's log, too.")
    left_out: int | None = Field(description="Items of the request that a filter took; null where that is not known.")
    degraded: DegradedBody | None


class Problem(BaseModel):
    """What a request met."""

    fault: str = Field(description="Such as invalid, overloaded, late.")
    message: str


class OwnError(BaseModel):
    """As this interface tells errors."""

    error: Problem


OWN = ErrorForm(OwnError, lambda fault, _, message: OwnError(error=Problem(fault=fault.name.lower(), message=message)))
router = interface(OWN, "tritonrank")


@router.post("/v1/rank")
async def rank(body: RankRequest, asked: Asking) -> ListAnswer:
    """Items of the store, or with texts of the request, for a query."""
    model = asked.service.model("rank", body.model)
    further = {**body.arguments(), "history": body.history, "item_texts": body.item_texts}
    return _answer(
        await model.client.rank(
            body.query, body.item_ids, body.top_k, _timeout_s(body, asked), request_id=asked.request_id, **further
        ),
        asked,
    )


@router.post("/v1/recommend")
async def recommend(body: RecommendRequest, asked: Asking) -> ListAnswer:
    """Items of the store for a user."""
    model = asked.service.model("recommend", body.model)
    timeout_s = _timeout_s(body, asked)
    return _answer(
        await model.client.recommend(
            body.history, body.item_ids, body.top_k, timeout_s, request_id=asked.request_id, **body.arguments()
        ),
        asked,
    )


@router.post("/v1/similar")
async def similar(body: SimilarRequest, asked: Asking) -> ListAnswer:
    """Items of the store that are nearest to one of them."""
    model = asked.service.model("similar", body.model)
    timeout_s = _timeout_s(body, asked)
    return _answer(await model.client.similar(body.item_id, body.top_k, timeout_s, request_id=asked.request_id), asked)


def _timeout_s(body: ListBody, asked: Asking) -> float | None:
    most = asked.service.settings.timeout_s
    if body.timeout_s is not None and body.timeout_s > most:
        raise InvalidRequest(f"timeout_s: found {body.timeout_s:g}, wanted at most {most:g} (--timeout-s)", "timeout_s")
    return body.timeout_s


def _answer(ranked: RankedList, asked: Asking) -> ListAnswer:
    asked.tell(ranked.degraded)
    degraded = ranked.degraded
    return ListAnswer(
        items=[
            Item(id=item_id, score=score if scored else None)
            for (item_id, score), scored in zip(ranked, ranked.scored, strict=True)
        ],
        model=ranked.model,
        request_id=asked.request_id,
        left_out=ranked.left_out,
        degraded=None if degraded is None else DegradedBody(step=degraded.step, reason=degraded.error.__name__),
    )
