"""FlashRank in process, on our weights: its list of models takes one more name.

Source: https://github.com/PrithivirajDamodaran/FlashRank
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from perf.peers.pairs import MAX_LENGTH
from perf.peers.peer import Environment, Peer

NAME = "flashrank"
PEERS = (
    Peer(
        "FlashRank, in process",
        "perf.peers.flashrank_in_process",
        Environment("flashrank"),
        None,
        note=f"Ranker(max_length={MAX_LENGTH}).rerank",
    ),
)


def opened(folder: Path) -> Callable[[Mapping[str, Any]], list[float]]:
    """A request's body => scores."""
    from flashrank import Ranker, RerankRequest
    from flashrank.Config import model_file_map

    files = folder / NAME
    shutil.copytree(folder / "checkpoint", files, dirs_exist_ok=True)
    shutil.copyfile(folder / "model.onnx", files / "model.onnx")
    for name, content in _of_old_transformers(files).items():  # files that transformers wrote before its version 5
        (files / name).write_text(json.dumps(content), encoding="utf-8")
    model_file_map[NAME] = "model.onnx"
    ranker = Ranker(NAME, cache_dir=str(folder), max_length=MAX_LENGTH)

    def score(body: Mapping[str, Any]) -> list[float]:
        passages = [{"id": place, "text": text} for place, text in enumerate(body["documents"])]
        found = ranker.rerank(RerankRequest(query=body["query"], passages=passages))
        return [float(each["score"]) for each in sorted(found, key=lambda each: each["id"])]

    return score


def _of_old_transformers(files: Path) -> dict[str, dict[str, Any]]:
    tokens = json.loads((files / "tokenizer_config.json").read_text(encoding="utf-8"))
    return {"special_tokens_map.json": {name: value for name, value in tokens.items() if name.endswith("_token")}}
