"""LitServe around ONNX Runtime.

Source: https://lightning.ai/docs/litserve/features
"""

from __future__ import annotations

import sys
from pathlib import Path

from perf.peers.items import ItemScorer
from perf.peers.pairs import PairScorer
from perf.peers.peer import Environment, Peer, parts, posts_json

_SCORERS = {"cross_encoder": (PairScorer, 1), "interactions": (ItemScorer, 2)}
"""Kind => what scores, and how many workers: as many threads as cores in one, or a thread in each of two."""
_SENT = {"cross_encoder": dict, "interactions": parts("item_ids", "request")}


def _peer(kind: str, note: str) -> Peer:
    return Peer(
        "LitServe, ONNX Runtime FP32",
        "perf.peers.litserve_onnx",
        Environment("litserve"),
        posts_json("/predict", _SENT[kind], lambda answer, _: answer["scores"]),
        (kind,),
        note=note,
    )


PEERS = (_peer("cross_encoder", "one worker, a session with all cores; a request is a batch already"),)
PEERS_OF_ITEMS = (_peer("interactions", "two workers, a session of one thread in each"),)


def main(folder: str, port: str, kind: str) -> None:
    """Serve a request's body => ``{"scores"}``."""
    import litserve

    from perf.peers.litserve_api import Ranker

    opens, workers = _SCORERS[kind]

    server = litserve.LitServer(Ranker(Path(folder), opens), accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
