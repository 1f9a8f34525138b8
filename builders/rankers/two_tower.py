"""A two-tower ranker: query and item encoded apart, cosine as score (Sentence-BERT, arXiv:1908.10084)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from builders.rankers.cross_encoder import MASKED, load_backbone, packaged_backbone
from builders.text import encode_texts

BATCH = 64


class TwoTower(nn.Module):
    """The encoder of both towers: mean of the token states, L2-normalised."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.width = width

    @classmethod
    def from_checkpoint(cls, folder: Path | None = None) -> TwoTower:
        """In eval mode. folder: Hugging Face checkpoint, None = the packaged all-MiniLM-L6-v2. Raises: CheckpointError."""
        network = load_backbone(folder or packaged_backbone())
        return cls(network, network.config.hidden_size).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int32 [rows, length] twice => float32 [rows, width]."""
        own = attention_mask.float()
        additive = (1.0 - own[:, None, None, :]) * MASKED
        states = self.backbone(input_ids=input_ids, attention_mask=additive).last_hidden_state.float()
        mean = (states * own.unsqueeze(-1)).sum(dim=1) / own.sum(dim=1, keepdim=True).clamp(min=1)
        return functional.normalize(mean, dim=-1)

    def encode_texts(self, tokenizer: Tokenizer, texts: Sequence[str], batch: int = BATCH) -> np.ndarray:
        """float32 [texts, width], in their order; encoded shortest first, so that little is padding."""
        order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), batch):
                chosen = order[start : start + batch]
                tokens = encode_texts(tokenizer, [texts[position] for position in chosen])
                vectors[chosen] = self(*(torch.from_numpy(array) for array in tokens.values())).numpy()
        return vectors


class CosineHead(nn.Module):
    """Cosine of one query vector with each candidate's, both L2-normalised."""

    def forward(self, query_vector: Tensor, item_vectors: Tensor) -> Tensor:
        """float32 [1, width], [candidates, width] => float32 [candidates, 1]."""
        return item_vectors @ query_vector.T
