"""Models that requests may name, as OpenAI's interface lists them:
https://platform.openai.com/docs/api-reference/models/list
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from gateway.own import OWN
from gateway.route import Asking, interface


class ModelCard(BaseModel):
    """One model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "tritonrank"


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


router = interface(OWN, "tritonrank")


@router.get("/v1/models")
async def models(asked: Asking) -> ModelList:
    """Those that the field ``model`` of a request may name."""
    service = asked.service
    return ModelList(data=[ModelCard(id=name, created=service.started_at_s) for name in service.names])
