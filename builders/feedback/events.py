"""One record of a feedback log: a list that was shown, a click, or a purchase. docs/reference/feedback-log.md is made
from these models.

Knows nothing of files.
"""

from __future__ import annotations

import collections
import json
import re
from typing import Annotated, Any, Literal

import pydantic

from builders.core.contract import MAX_ITEM_ID_BYTES
from builders.data.beir import DatasetError

Team = Literal["baseline", "candidate"]

_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")


def _id(value: str) -> str:
    if not value or not value.isprintable():
        raise DatasetError("wanted a string that is not empty, without tabs and line breaks")
    return value


def _item_id(value: str) -> str:
    if (size := len(value.encode())) > MAX_ITEM_ID_BYTES:
        raise DatasetError(f"{size} bytes, wanted at most {MAX_ITEM_ID_BYTES}")
    return _id(value)


def _iso_time(value: Any) -> Any:
    """pydantic alone would also take seconds since 1970, and a day."""
    if isinstance(value, (int, float)) or (isinstance(value, str) and not _TIME.match(value)):
        raise DatasetError("wanted ISO 8601 with a zone, such as 2026-03-01T09:30:00+01:00")
    return value


def _json_values(features: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    json.dumps(features, allow_nan=False)
    return features


Id = Annotated[str, pydantic.AfterValidator(_id)]
ItemId = Annotated[str, pydantic.AfterValidator(_item_id)]
Time = Annotated[pydantic.AwareDatetime, pydantic.BeforeValidator(_iso_time)]


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    request_id: Id = pydantic.Field(description="joins clicks and purchases to the list; one list each")
    time: Time = pydantic.Field(description="ISO 8601 with a zone")


class Shown(_Record):
    """A list as a user saw it."""

    event: Literal["shown"]
    endpoint: Id = pydantic.Field(description="such as `rank`")
    variant: Id = pydantic.Field(
        description="what answered, such as `two_tower_fp32_onnx@3`, or without `@` and generation"
    )
    user: Id | None = pydantic.Field(None, description="who saw it; absent for a guest")
    query: str | None = pydantic.Field(None, description="what was searched for; this or `history` is needed")
    history: tuple[ItemId, ...] | None = pydantic.Field(
        None, description="items that the user took before, oldest first"
    )
    item_ids: tuple[ItemId, ...] = pydantic.Field(description="in the order shown, the first at the top", min_length=1)
    scores: tuple[pydantic.FiniteFloat, ...] | None = pydantic.Field(
        None, description="one for each item, in that order"
    )
    features: Annotated[dict[str, dict[str, Any]], pydantic.AfterValidator(_json_values)] | None = pydantic.Field(
        None, description="item id => the raw fields that it was ranked by"
    )
    teams: dict[str, Team] | None = pydantic.Field(
        None,
        description='where two variants\' lists were interleaved: item id, or position from "1" => `baseline` or '
        "`candidate`",
    )
    randomised: bool = pydantic.Field(False, description="whether the order was shuffled")

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Shown:
        """Raises: DatasetError: parts of the record contradict each other."""
        twice = [item_id for item_id, count in collections.Counter(self.item_ids).items() if count > 1]
        if twice:
            raise DatasetError(f"'item_ids' holds '{twice[0]}' twice, wanted distinct ids")
        if not (self.query or "").strip() and self.history is None:
            raise DatasetError("neither 'query' nor 'history', wanted one of them")
        if self.scores is not None and len(self.scores) != len(self.item_ids):
            raise DatasetError(f"{len(self.scores)} scores of {len(self.item_ids)} items, wanted one each")
        if strangers := sorted(set(self.features or ()) - set(self.item_ids)):
            raise DatasetError(f"'features' of '{strangers[0]}', which is not in 'item_ids'")
        self.team_of_item()
        return self

    def team_of_item(self) -> dict[str, Team]:
        """Item id => team, of items that have one. Raises: DatasetError: a key is neither an item nor a position."""
        teams = self.teams or {}
        if set(teams) <= set(self.item_ids):
            return teams
        at = {str(position): item_id for position, item_id in enumerate(self.item_ids, start=1)}
        if strangers := [key for key in teams if key not in at]:
            raise DatasetError(
                f"'teams' of '{strangers[0]}', wanted ids of 'item_ids', or positions from '1' to '{len(at)}'"
            )
        return {at[key]: team for key, team in teams.items()}


class Click(_Record):
    """A click on an item of a list."""

    event: Literal["click"]
    item_id: ItemId = pydantic.Field(description="the item")


class Purchase(_Record):
    """An item of a list was bought."""

    event: Literal["purchase"]
    item_id: ItemId = pydantic.Field(description="the item")
    revenue: Annotated[pydantic.FiniteFloat, pydantic.Field(ge=0)] | None = pydantic.Field(
        None, description="what was paid, one currency in all the log"
    )


Event = Annotated[Shown | Click | Purchase, pydantic.Field(discriminator="event")]
EVENTS: tuple[type[_Record], ...] = (Shown, Click, Purchase)
EVENT: pydantic.TypeAdapter[Shown | Click | Purchase] = pydantic.TypeAdapter(Event)
"""Validates one record."""
