"""A cross-encoder on ONNX Runtime as one writes it without a kit: tokenizers, padding to the longest, one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_LENGTH = 128
"""As the checkpoint's tokenizer_config.json says."""


class PairScorer:
    """``model.onnx`` and the checkpoint's tokenizer."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        self.session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_file(str(folder / "checkpoint" / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_LENGTH)
        self.tokenizer.enable_padding()

    def scores(self, pairs: Sequence[tuple[str, str]]) -> Any:
        """float32 [pairs]: probabilities, as the library's ``predict`` gives them."""
        import numpy as np

        rows = self.tokenizer.encode_batch(list(pairs))
        tensors = {
            "input_ids": np.array([row.ids for row in rows], np.int64),
            "attention_mask": np.array([row.attention_mask for row in rows], np.int64),
            "token_type_ids": np.array([row.type_ids for row in rows], np.int64),
        }
        return 1 / (1 + np.exp(-self.session.run(None, tensors)[0][:, 0]))

    def answer(self, body: Mapping[str, Any]) -> list[float]:
        """Of ``{"query", "documents"}``."""
        found: list[float] = self.scores([(body["query"], document) for document in body["documents"]]).tolist()
        return found
