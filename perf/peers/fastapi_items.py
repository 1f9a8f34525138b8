"""FastAPI around ONNX Runtime, items looked up by id in memory.

Source: https://fastapi.tiangolo.com/deployment/server-workers/ (a worker a core)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from perf.peers.items import THREADS, ItemScorer
from perf.peers.peer import Environment, Peer, posts_json

PEERS = (
    Peer(
        "FastAPI, ONNX Runtime",
        "perf.peers.fastapi_items",
        Environment("fastapi", base="kit"),
        posts_json("/rank", dict, lambda answer: answer["scores"]),
        note=f"a plain def endpoint in its thread pool, a session of {THREADS} thread",
    ),
)


def main(folder: str, port: str) -> None:
    """Serve ``{"item_ids", "request"}`` => ``{"scores"}``."""
    import fastapi
    import uvicorn
    from pydantic import BaseModel

    scorer = ItemScorer(Path(folder))
    app = fastapi.FastAPI()

    class Question(BaseModel):
        item_ids: list[str]
        request: dict[str, Any]

    def rank(question: Question) -> dict[str, list[float]]:
        return {"scores": scorer.scores(question.item_ids, question.request).tolist()}

    rank.__annotations__["question"] = Question
    app.post("/rank")(rank)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
