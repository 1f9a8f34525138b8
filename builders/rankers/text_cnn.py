"""A text ranker that reads query and item with convolutions over neighbouring words (Kim, 2014, arXiv:1408.5882).

Kim's widths are 3, 4 and 5, with 100 channels each, for sentences; queries of three words get widths 2 and 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from builders.rankers.layers.text_matcher import TextMatcher


class TextCnn(TextMatcher):
    """Embedding, two 1-D convolutions side by side with max pooling over the tokens, dense."""

    name = "text_cnn"

    def __init__(
        self,
        table: Tensor,
        *,
        width: int = 96,
        channels: int = 96,
        windows: tuple[int, int] = (2, 3),
        vector: int = 128,
        dropout: float = 0.2,
    ) -> None:
        """Build.

        Args:
            table, width, vector, dropout: as :class:`TextMatcher`.
            channels: of each convolution.
            windows: words that each sees: the token and those before it.
        """
        super().__init__(table, width=width, channels=len(windows) * channels, vector=vector, dropout=dropout)
        self.windows = tuple(windows)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, channels, window) for window in windows)

    def read(self, embedded: Tensor, own: Tensor) -> Tensor:
        """The convolutions' channels, >= 0; a window never sees what follows. See :meth:`TextMatcher.read`."""
        columns = embedded.transpose(1, 2)  # [rows, width, length]
        seen = [
            functional.relu(convolution(functional.pad(columns, (window - 1, 0))))
            for window, convolution in zip(self.windows, self.convolutions, strict=True)
        ]
        return torch.cat(seen, dim=1).transpose(1, 2)
