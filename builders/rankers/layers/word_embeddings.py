"""Token ids => vectors for small text networks: the packaged backbone's word table, frozen, times a learned projection.

Only the projection and one weight a token are trained and kept in a checkpoint, so it stays small; the table comes
with the backbone's package. :meth:`WordEmbeddings.bake` multiplies them out before export.

Knows nothing of any ranker.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from builders.features.encoder import ABSENT
from builders.rankers.backbone import CheckpointError, packaged_backbone, weight_files

FROZEN = "words.table"
"""Name of the table in the ``state_dict`` of a network that calls its embeddings ``words``: not to be kept."""
_TABLE = "embeddings.word_embeddings.weight"
_ROWS_AT_ONCE = 4096


class WordEmbeddings(nn.Module):
    """Vectors and weights of tokens; those of padding are exactly zero.

    Attributes:
        padding_id: of the tokenizer whose ids it takes.
    """

    table: Tensor

    def __init__(self, table: Tensor, width: int) -> None:
        """Start from the table's principal directions, and equal weights.

        Args:
            table: float32 [vocabulary, columns], frozen.
            width: of the vectors, at most ``columns``.
        """
        super().__init__()
        self.register_buffer("table", table)
        self.projection = nn.Linear(table.shape[1], width, bias=False)
        self.importance = nn.Embedding(table.shape[0], 1)
        self.baked: nn.Embedding | None = None
        self.padding_id = ABSENT
        with torch.no_grad():
            self.projection.weight.copy_(_principal_directions(table, width))
            self.importance.weight.fill_(1.0)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """int32 [rows, length] => float32 [rows, length, width] and weights, >= 0, float32 [rows, length, 1]."""
        own = self.own_tokens(ids)
        vectors = self.projection(self.table[ids]) if self.baked is None else self.baked(ids)
        return vectors * own, self.importance(ids).clamp(min=0) * own

    def own_tokens(self, ids: Tensor) -> Tensor:
        """int32 [rows, length] => float32 [rows, length, 1]: 1 = token, 0 = padding."""
        return (ids != self.padding_id).unsqueeze(-1).float()

    def bake(self) -> None:
        """Replace table and projection by their product: one look-up a token, float32 [vocabulary, width]."""
        with torch.no_grad():
            product = torch.cat([self.projection(rows) for rows in self.table.split(_ROWS_AT_ONCE)])
        self.baked = nn.Embedding.from_pretrained(product)
        del self.table, self.projection


def weighted_mean(vectors: Tensor, weights: Tensor) -> Tensor:
    """float32 [rows, length, width] and [rows, length, 1] => [rows, width]; zeros where every weight is 0."""
    return (vectors * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-6)


def word_table(backbone: Path | None = None) -> Tensor:
    """float32 [vocabulary, columns]: the word embeddings of a Hugging Face checkpoint folder.

    Args:
        backbone: None = the packaged all-MiniLM-L6-v2.

    Raises:
        CheckpointError: the folder holds no safetensors file with word embeddings.
    """
    folder = backbone or packaged_backbone()
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                found = [name for name in file.keys() if name.endswith(_TABLE)]  # noqa: SIM118
                if found:
                    table: Tensor = file.get_tensor(found[0])
                    return table.float()
    raise CheckpointError(f"{folder}: no tensor '...{_TABLE}' in *.safetensors; name a BERT or XLM-R checkpoint folder")


def _principal_directions(table: Tensor, width: int) -> Tensor:
    """float32 [width, columns]: the directions that keep most of the table's inner products."""
    if width > table.shape[1]:
        raise CheckpointError(f"width {width}, wanted at most the {table.shape[1]} columns of the word table")
    return torch.linalg.eigh(table.T @ table).eigenvectors[:, -width:].T
