"""Ranking of NVIDIA NeMo Retriever's reranking NIM:
https://docs.nvidia.com/nim/nemo-retriever/text-reranking/latest/reference.html

``logit`` is the served ranker's own score: a logit where its checkpoint has no activation behind it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from gateway.errors import ErrorForm, Fault
from gateway.route import Asking, interface
from gateway.service import scores_of
from gateway.shapes import Body


class Text(Body):
    """A query or a passage."""

    text: str


class RankingRequest(Body):
    """Query and passages."""

    query: Text
    passages: list[Text]
    model: str | None = Field(None, description="One of /v1/models; without one, the gateway's first.")
    truncate: Literal["END"] = Field(
        "END",
        description="A text longer than the ranker reads is cut at its end, and counted. NONE, which would refuse "
        "such a text, is refused: the gateway does not know how many tokens a text has.",
    )


class Ranking(BaseModel):
    """One passage."""

    index: int = Field(description="Position in the request's passages.")
    logit: float


class RankingAnswer(BaseModel):
    """Highest first."""

    rankings: list[Ranking]


class NimError(BaseModel):
    """As a NIM tells errors."""

    object: Literal["error"] = "error"
    message: str
    detail: dict[str, str] = {}
    type: str


def _error(_: Fault, status: int, message: str) -> NimError:
    return NimError(message=message, type="invalid_request_error" if status < 500 else "internal_server_error")


NIM = ErrorForm(NimError, _error, {Fault.INVALID: 400, Fault.EMPTY: 400})
router = interface(NIM, "NeMo Retriever")


@router.post("/v1/ranking")
async def ranking(body: RankingRequest, asked: Asking) -> RankingAnswer:
    """Passages for a query, highest logit first."""
    model = asked.service.model("rank", body.model)
    texts = [passage.text for passage in body.passages]
    ranked = await asked.service.reranked(model, body.query.text, texts, None, asked.request_id, "passages")
    asked.tell(ranked.degraded)
    found = zip(ranked.indices, scores_of(ranked), strict=True)
    return RankingAnswer(rankings=[Ranking(index=index, logit=score) for index, score in found])
