"""A text ranker that reads query and item with a bidirectional LSTM (Hochreiter & Schmidhuber, 1997).

Max pooling over the states of both directions, shared between query and item, after InferSent (Conneau et al., 2017,
arXiv:1705.02364); small enough for a CPU: embeddings of 96, 2 x 64 states.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from builders.rankers.layers.text_matcher import TextMatcher


class BiLstm(TextMatcher):
    """Embedding, bidirectional LSTM, dense.

    The LSTM has no biases, but a further input that is 1 at tokens and 0 at padding, whose weights act as them. So
    padding is all zeros, leaves a zero state zero, and the backward direction comes to the last token as if nothing
    stood behind it. Packed sequences would do the same, but do not export.
    """

    name = "bilstm"

    def __init__(
        self, table: Tensor, *, width: int = 96, hidden: int = 64, vector: int = 128, dropout: float = 0.2
    ) -> None:
        """hidden: width of the state in each direction; the others as :class:`TextMatcher`."""
        super().__init__(table, width=width, channels=2 * hidden, vector=vector, dropout=dropout)
        self.lstm = nn.LSTM(width + 1, hidden, batch_first=True, bidirectional=True, bias=False)

    def read(self, embedded: Tensor, own: Tensor) -> Tensor:
        """The states of both directions; see :meth:`TextMatcher.read`."""
        inputs = torch.cat([embedded, own], dim=-1)
        if torch.onnx.is_in_onnx_export():
            return _onnx_lstm(self.lstm, inputs)
        states: Tensor = self.lstm(inputs)[0]
        return states


def _onnx_lstm(lstm: nn.LSTM, inputs: Tensor) -> Tensor:
    """ONNX's own LSTM, float32 [rows, length, inputs] => [rows, length, 2 x hidden].

    torch's exporter would unroll ``nn.LSTM`` token by token, which freezes the length.
    """
    rows, length, _ = inputs.shape
    (from_input, from_state), (from_input_back, from_state_back) = lstm.all_weights
    states = torch.onnx.ops.symbolic(
        "LSTM",
        (
            inputs.transpose(0, 1),  # [length, rows, inputs]
            torch.stack([_onnx_gates(from_input), _onnx_gates(from_input_back)]),
            torch.stack([_onnx_gates(from_state), _onnx_gates(from_state_back)]),
        ),
        {"direction": "bidirectional", "hidden_size": lstm.hidden_size},
        dtype=inputs.dtype,
        shape=(length, 2, rows, lstm.hidden_size),
    )
    return states.permute(2, 0, 1, 3).flatten(start_dim=2)


def _onnx_gates(weights: Tensor) -> Tensor:
    """[4 x hidden, ...] in torch's order (input, forget, cell, output) => in ONNX's (input, output, forget, cell)."""
    input_gate, forget_gate, cell, output_gate = weights.chunk(4)
    return torch.cat([input_gate, output_gate, forget_gate, cell])
