"""ONNX Runtime in the caller's own process: no server at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from perf.peers.items import THREADS, ItemScorer
from perf.peers.peer import Environment, Peer

PEERS = (
    Peer(
        "ONNX Runtime, in process",
        "perf.peers.onnxruntime_in_process",
        Environment(base="kit"),
        None,
        note=f"one session of {THREADS} thread, items' features in a dict of this process",
    ),
)


def opened(folder: Path) -> Callable[[Mapping[str, Any]], list[float]]:
    """A request's body => scores."""
    return ItemScorer(folder).answer
