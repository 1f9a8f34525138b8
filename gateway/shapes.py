"""What the interfaces' models have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """Of a request. A field that is not declared is refused: nothing that somebody asks for is passed over."""

    model_config = ConfigDict(extra="forbid")
