"""fastembed's TextCrossEncoder in process, on our weights as a custom model.

Source: https://qdrant.github.io/fastembed/examples/Supported_Models/ (add_custom_model)
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from perf.peers.peer import Environment, Peer

NAME = "local/checkpoint"
PEERS = (
    Peer(
        "fastembed, in process",
        "perf.peers.fastembed_in_process",
        Environment("fastembed"),
        None,
        note="TextCrossEncoder.rerank, its default batches of 64; it gives logits, the sigmoid is put on them here",
    ),
)


def opened(folder: Path) -> Callable[[Mapping[str, Any]], list[float]]:
    """A request's body => scores."""
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    files = folder / "fastembed"
    shutil.copytree(folder / "checkpoint", files, dirs_exist_ok=True)
    shutil.copyfile(folder / "model.onnx", files / "model.onnx")
    TextCrossEncoder.add_custom_model(NAME, sources=ModelSource(hf=NAME), model_file="model.onnx")
    model = TextCrossEncoder(NAME, specific_model_path=str(files))
    return lambda body: [1 / (1 + math.exp(-logit)) for logit in model.rerank(body["query"], body["documents"])]
