"""For orchestrators and Prometheus; asks for no key."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response, status
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from gateway.service import Service

router = APIRouter(tags=["health"])


class Live(BaseModel):
    """The gateway answers."""

    status: str = "live"


class Ready(BaseModel):
    """Whether the ranker does."""

    ready: bool
    models: dict[str, bool] = Field(description="Model => whether the ranker answered a real request for it.")


@router.get("/healthz")
async def live() -> Live:
    """Whether this process answers. Start it again where it does not."""
    return Live()


@router.get("/readyz", responses={status.HTTP_503_SERVICE_UNAVAILABLE: {"model": Ready}})
async def ready(request: Request, response: Response) -> Ready:
    """Whether the ranker answers for every model; an answer holds for a second."""
    service: Service = request.app.state.service
    models = await service.ready()
    if not all(models.values()):
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return Ready(ready=all(models.values()), models=models)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """In Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)
