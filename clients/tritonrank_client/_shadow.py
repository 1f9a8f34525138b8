"""Which callers go where, and what is written of a copy. Knows nothing of the network."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ._response import RankedList


def falls_into(key: str, name: str, share: float) -> bool:
    """Whether a caller's key is among the `share` drawn by `name`: for the same two always the same answer."""
    digest = hashlib.sha256(f"{name}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def shadow_line(
    request_id: str, endpoint: str, candidates: Sequence[str], true: RankedList, copy: RankedList
) -> dict[str, Any]:
    """What `Shadow.log` is called with: no query, user or history.

    {"request_id", "unix_s", "endpoint", "candidates": [id, ...] in first-stage order,
     "live": {"model", "ids": [...], "scores": [...]}, "shadow": {"model", "ids", "scores"}}
    """
    return {
        "request_id": request_id,
        "unix_s": round(time.time(), 3),
        "endpoint": endpoint,
        "candidates": list(candidates),
        "live": _shown(true),
        "shadow": _shown(copy),
    }


def append_to(path: str | os.PathLike[str]) -> Callable[[dict[str, Any]], None]:
    """A `Shadow.log` that appends a JSON line for each copy to a file, whole lines from any number of threads."""
    lock = threading.Lock()
    target = Path(path)

    def log(line: dict[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False) + "\n"
        with lock, target.open("a", encoding="utf-8") as file:
            file.write(text)

    return log


def _shown(ranked: RankedList) -> dict[str, Any]:
    return {"model": ranked.model, "ids": list(ranked.ids), "scores": [float(score) for score in ranked.scores]}
