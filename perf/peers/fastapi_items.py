"""FastAPI around ONNX Runtime, items looked up by id in memory: as it is often shown, and with all that ours does.

Source: https://fastapi.tiangolo.com/deployment/server-workers/ (a worker a core)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perf.peers.items import THREADS, EncodingScorer, ItemScorer
from perf.peers.peer import Environment, Peer, parts, posts_json

_MODULE, _ENVIRONMENT = "perf.peers.fastapi_items", Environment("fastapi", base="kit")
_SETTINGS = f"a plain def endpoint in its thread pool, a session of {THREADS} thread"


def _in_the_bodys_order(answer: Mapping[str, Any], body: Mapping[str, Any]) -> list[float]:
    scores = dict(zip(answer["ranked_ids"], answer["scores"], strict=True))
    return [scores[item_id] for item_id in body["item_ids"]]


PEERS = (
    Peer(
        "FastAPI, ONNX Runtime",
        _MODULE,
        _ENVIRONMENT,
        posts_json("/rank", parts("item_ids", "request"), lambda answer, _: answer["scores"]),
        ("encoded",),
        note=f"{_SETTINGS}; the request comes encoded",
    ),
    Peer(
        "FastAPI, encodes and orders",
        _MODULE,
        _ENVIRONMENT,
        posts_json("/rank", parts("item_ids", "raw"), _in_the_bodys_order),
        ("raw",),
        note=f"{_SETTINGS}; looks the customer up, encodes with the code that trained the network, and orders",
    ),
)


def main(folder: str, port: str, takes: str) -> None:
    """Serve ``{"item_ids", "request"}`` => ``{"scores"}``, or ``{"item_ids", "raw"}`` => ``{"ranked_ids", "scores"}``.

    Args:
        takes: "encoded" or "raw".
    """
    import fastapi
    import uvicorn
    from pydantic import BaseModel

    app = fastapi.FastAPI()

    class Encoded(BaseModel):
        item_ids: list[str]
        request: dict[str, Any]

    class Raw(BaseModel):
        item_ids: list[str]
        raw: dict[str, Any]

    if takes == "encoded":
        scorer = ItemScorer(Path(folder))

        def scores(question: Encoded) -> dict[str, Any]:
            return {"scores": scorer.scores(question.item_ids, question.request).tolist()}

        scores.__annotations__["question"] = Encoded
        app.post("/rank")(scores)
    else:
        encoding = EncodingScorer(Path(folder))

        def ranked(question: Raw) -> dict[str, Any]:
            return encoding.ranked(question.item_ids, question.raw)

        ranked.__annotations__["question"] = Raw
        app.post("/rank")(ranked)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
