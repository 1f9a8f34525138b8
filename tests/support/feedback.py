"""Records of feedback logs, made in memory."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from builders.feedback.events import Click, Purchase, Shown

START = datetime.datetime(2026, 3, 1, 9, tzinfo=datetime.UTC)


def shown(request_id: str, item_ids: Sequence[str], **fields: Any) -> Shown:
    """A list of `rank` by the variant "base", for the query "lamp" unless told otherwise."""
    about = {} if "history" in fields else {"query": "lamp"}
    record = {"event": "shown", "request_id": request_id, "time": START, "endpoint": "rank", "variant": "base"}
    return Shown.model_validate({**record, "item_ids": list(item_ids), **about, **fields})


def click(request_id: str, item_id: str, seconds: float = 1) -> Click:
    """seconds: after :data:`START`."""
    time = START + datetime.timedelta(seconds=seconds)
    return Click(event="click", request_id=request_id, item_id=item_id, time=time)


def purchase(request_id: str, item_id: str, revenue: float | None = None, seconds: float = 60) -> Purchase:
    """seconds: after :data:`START`."""
    time = START + datetime.timedelta(seconds=seconds)
    return Purchase(event="purchase", request_id=request_id, item_id=item_id, time=time, revenue=revenue)
