"""Cohere's rerank, versions 1 and 2, and what has its shape: Jina's, vLLM's, and OpenVINO Model Server's under ``/v3``.

- https://docs.cohere.com/v1/reference/rerank and https://docs.cohere.com/reference/rerank
- https://jina.ai/reranker
- https://docs.vllm.ai/en/stable/serving/openai_compatible_server/
- https://docs.openvino.ai/2025/model-server/ovms_docs_rest_api_rerank.html

``relevance_score`` is the served ranker's own: for an imported checkpoint what ``CrossEncoder.predict`` gives.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from tritonrank_client import Degraded, Reranked

from gateway.errors import ErrorForm, Fault
from gateway.route import Asking, interface
from gateway.service import scores_of
from gateway.shapes import Body


class Document(BaseModel):
    """One to rank. Fields besides its text are not read, as by Cohere without ``rank_fields``."""

    model_config = ConfigDict(extra="allow")
    text: str


def _as_object(document: Any) -> Any:
    return {"text": document} if isinstance(document, str) else document


AnyDocument = Annotated[Document, BeforeValidator(_as_object, json_schema_input_type=str | Document)]


class RerankRequest(Body):
    """Query and documents."""

    query: str
    documents: list[AnyDocument] = Field(description="Texts, or objects with a text.")
    model: str | None = Field(None, description="One of /v1/models; without one, the gateway's first.")
    top_n: int | None = Field(None, ge=1, description="How many results; all without it.")
    return_documents: bool = Field(False, description="Whether each result has its document.")


class Result(BaseModel):
    """One document, without its text unless asked for."""

    index: int = Field(description="Position in the request's documents.")
    relevance_score: float
    document: Document | None = None


class ApiVersion(BaseModel):
    """Of the interface."""

    version: str


class Meta(BaseModel):
    """About the answer."""

    api_version: ApiVersion
    warnings: list[str] | None = None


class RerankAnswer(BaseModel):
    """Results, best first."""

    id: str = Field(description="Of the request: the header x-request-id.")
    model: str
    results: list[Result]
    meta: Meta


class ModelServerAnswer(BaseModel):
    """Results, best first."""

    results: list[Result]


class CohereError(BaseModel):
    """``detail`` is where clients of Jina look."""

    message: str
    detail: str


class ModelServerError(BaseModel):
    """As OpenVINO Model Server tells errors."""

    error: str


_INVALID = {Fault.MALFORMED: 400, Fault.INVALID: 400, Fault.EMPTY: 400}
COHERE = ErrorForm(CohereError, lambda _, __, message: CohereError(message=message, detail=message), _INVALID)
MODEL_SERVER = ErrorForm(ModelServerError, lambda _, __, message: ModelServerError(error=message), _INVALID)
router = interface(COHERE, "Cohere, Jina, vLLM")
model_server_router = interface(MODEL_SERVER, "OpenVINO Model Server")


@router.post("/v1/rerank", response_model_exclude_none=True)
async def rerank_v1(body: RerankRequest, asked: Asking) -> RerankAnswer:
    """Documents for a query, most relevant first."""
    return await _answer(body, asked, "1")


@router.post("/v2/rerank", response_model_exclude_none=True)
async def rerank_v2(body: RerankRequest, asked: Asking) -> RerankAnswer:
    """Documents for a query, most relevant first."""
    return await _answer(body, asked, "2")


@model_server_router.post("/v3/rerank", response_model_exclude_none=True)
async def rerank_v3(body: RerankRequest, asked: Asking) -> ModelServerAnswer:
    """Documents for a query, most relevant first."""
    _, ranked = await _ranked(body, asked)
    return ModelServerAnswer(results=_results(body, ranked))


async def _answer(body: RerankRequest, asked: Asking, version: str) -> RerankAnswer:
    model, ranked = await _ranked(body, asked)
    meta = Meta(api_version=ApiVersion(version=version), warnings=_warnings(ranked.degraded))
    return RerankAnswer(id=asked.request_id, model=model, results=_results(body, ranked), meta=meta)


async def _ranked(body: RerankRequest, asked: Asking) -> tuple[str, Reranked]:
    model = asked.service.model("rank", body.model)
    texts = [document.text for document in body.documents]
    ranked = await asked.service.reranked(model, body.query, texts, body.top_n, asked.request_id, "documents")
    asked.tell(ranked.degraded)
    return model.name, ranked


def _results(body: RerankRequest, ranked: Reranked) -> list[Result]:
    return [
        Result(index=index, relevance_score=score, document=body.documents[index] if body.return_documents else None)
        for index, score in zip(ranked.indices, scores_of(ranked), strict=True)
    ]


def _warnings(degraded: Degraded | None) -> list[str] | None:
    return None if degraded is None else [f"degraded: {degraded.step}"]
