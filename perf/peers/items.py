"""A ranker of interactions on ONNX Runtime as one writes it without a kit: items' features in memory, by their ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

THREADS = 1
"""The recipe's: a run takes a millisecond, so two requests at once gain more than two threads."""


class ItemScorer:
    """``model.onnx``, with ``items.npz`` read whole. The request's own features come encoded with it."""

    def __init__(self, folder: Path) -> None:
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = THREADS
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        self.types = {
            each.name: np.int32 if each.type == "tensor(int32)" else np.float32 for each in self.session.get_inputs()
        }
        with np.load(folder / "items.npz") as stored:
            self.items = {name: stored[name] for name in stored.files if name != "item_ids"}
            self.rows = {item_id: row for row, item_id in enumerate(stored["item_ids"].tolist())}

    def scores(self, item_ids: list[str], request: Mapping[str, Any]) -> Any:
        """float32 [items]. request: input name => array or nested list."""
        import numpy as np

        rows = [self.rows[item_id] for item_id in item_ids]
        tensors = {name: values[rows] for name, values in self.items.items()}
        tensors |= {name: np.asarray(values, self.types[name]) for name, values in request.items()}
        return self.session.run(None, tensors)[0][:, 0]

    def answer(self, body: Mapping[str, Any]) -> list[float]:
        """Of ``{"item_ids", "request"}``."""
        found: list[float] = self.scores(body["item_ids"], body["request"]).tolist()
        return found


class EncodingScorer:
    """An :class:`ItemScorer` that is given what a caller knows, and answers with an ordered list.

    Reads ``features.json`` and ``users.json`` besides: the network's declared features, and customers' raw fields.
    """

    def __init__(self, folder: Path) -> None:
        from perf.kit.encoding import FeatureEncoder

        self.scorer = ItemScorer(folder)
        self.encoder = FeatureEncoder.from_json((folder / "features.json").read_text(encoding="utf-8"))
        users = json.loads((folder / "users.json").read_text(encoding="utf-8"))
        self.users = {user_id: self.encoder.user_record(fields) for user_id, fields in users.items()}

    def ranked(self, item_ids: list[str], raw: Mapping[str, Any]) -> dict[str, Any]:
        """Best first. raw: ``user_id``, ``history`` and ``context``."""
        import numpy as np

        tensors = self.encoder.request_tensors(
            history=raw["history"], user=self.users.get(raw["user_id"]), context=raw["context"]
        )
        scores = self.scorer.scores(item_ids, tensors)
        order = np.argsort(-scores, kind="stable")
        return {"ranked_ids": [item_ids[row] for row in order], "scores": scores[order].tolist()}
