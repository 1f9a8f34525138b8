"""infinity-emb's server and its ``/rerank``, with the engine that its documentation names for a CPU.

Source: https://michaelfeil.eu/infinity/
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from perf.peers.peer import Environment, Peer, posts_json


def _in_order(answer: Any, _: object) -> list[float]:
    return [each["relevance_score"] for each in sorted(answer["results"], key=lambda each: each["index"])]


PEERS = tuple(
    Peer(
        f"infinity-emb {engine}",
        "perf.peers.infinity_server",
        Environment("infinity", torch=True),
        posts_json("/rerank", lambda body: {"model": "checkpoint", **body}, _in_order),
        (engine,),
        note=note,
    )
    for engine, note in (
        (
            "torch",
            "infinity_emb v2 --engine torch --device cpu, no bettertransformer; dynamic batches of its default 32",
        ),
    )
)


def main(folder: str, port: str, engine: str) -> None:
    """As ``infinity_emb v2`` starts."""
    from infinity_emb.cli import cli

    given = {
        "model-id": str(Path(folder) / "checkpoint"), "served-model-name": "checkpoint", "engine": engine,
        "device": "cpu", "host": "127.0.0.1", "port": port, "log-level": "warning",
    }  # fmt: skip
    sys.argv = ["infinity_emb", "v2", *(f"--{name}={value}" for name, value in given.items()), "--no-bettertransformer"]
    cli()


if __name__ == "__main__":
    main(*sys.argv[1:])
