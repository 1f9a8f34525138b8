"""Rerank of Hugging Face's text-embeddings-inference: https://huggingface.github.io/text-embeddings-inference/

Its server ranks with one model: this one with the gateway's first. ``score`` is the served ranker's own, whose network
has the activation that its checkpoint says, so there is no other ``raw_scores``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from gateway.errors import ErrorForm, Fault
from gateway.route import Asking, interface
from gateway.service import scores_of
from gateway.shapes import Body


class RerankRequest(Body):
    """Query and texts."""

    query: str
    texts: list[str]
    raw_scores: Literal[False] = Field(False, description="The ranker has one kind of scores.")
    return_text: bool = Field(False, description="Whether each rank has its text.")
    truncate: bool = Field(False, description="Of no effect: a text longer than the ranker reads is cut, and counted.")
    truncation_direction: Literal["Right", "right"] = Field("Right", description="Texts are cut at their ends.")


class Rank(BaseModel):
    """One text."""

    index: int = Field(description="Position in the request's texts.")
    text: str | None = None
    score: float


class TeiError(BaseModel):
    """As text-embeddings-inference tells errors."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty", "Unauthorized"]


_TYPES: dict[Fault, Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Empty", "Unauthorized"]] = {
    Fault.EMPTY: "Empty",
    Fault.UNAUTHORIZED: "Unauthorized",
    Fault.OVERLOADED: "Overloaded",
    Fault.UNAVAILABLE: "Unhealthy",
    Fault.FAILED: "Backend",
    Fault.LATE: "Backend",
    Fault.BUG: "Backend",
}
TEI = ErrorForm(
    TeiError,
    lambda fault, _, message: TeiError(error=message, error_type=_TYPES.get(fault, "Validation")),
    {Fault.INVALID: 413, Fault.EMPTY: 400, Fault.FAILED: 424},  # as its router answers
)
router = interface(TEI, "text-embeddings-inference")


@router.post("/rerank", response_model_exclude_none=True)
async def rerank(body: RerankRequest, asked: Asking) -> list[Rank]:
    """Texts for a query, highest score first."""
    model = asked.service.model("rank", None)
    ranked = await asked.service.reranked(model, body.query, body.texts, None, asked.request_id, "texts")
    asked.tell(ranked.degraded)
    return [
        Rank(index=index, score=score, text=body.texts[index] if body.return_text else None)
        for index, score in zip(ranked.indices, scores_of(ranked), strict=True)
    ]
