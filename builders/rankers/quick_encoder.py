"""A text encoder compiled by OpenVINO in FP32, for whole catalogues: torch's vectors but for rounding, with less than
half of its processor time on a CPU. Several batches run at once, a thread or two each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from builders.core.runtimes.openvino import openvino_properties
from builders.rankers.base import Sample

Batch = tuple[list[int], Sample]
"""(places in the result, int32 tensors [rows, length] by name)."""
SAME_VECTOR = 1e-4
"""Largest difference of a value of a vector of length 1; rounding in FP32 gives 1e-6."""


class QuickEncoder:
    """A network of two-dimensional int32 inputs.

    Args:
        network: in eval mode; float32 [rows, width] of the inputs in their order.
        inputs: names of its tensors.
    """

    def __init__(self, network: nn.Module, inputs: Sequence[str]) -> None:
        from builders.core.untracked import openvino

        example = tuple(torch.ones((2, 8), dtype=torch.int32) for _ in inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing: checks of shapes become constants, and all shapes are alike
            model = openvino.convert_model(network, example_input=example)
        settings = {**openvino_properties(0, "fp32"), "PERFORMANCE_HINT": "THROUGHPUT"}
        settings.pop("NUM_STREAMS")
        self._queue: Any = openvino.AsyncInferQueue(openvino.Core().compile_model(model, "CPU", settings))
        self._inputs = inputs

    def encode(self, batches: Iterable[Batch], vectors: np.ndarray) -> None:
        """Fill ``vectors`` (float32 [texts, width]) at the places of each batch."""

        def keep(request: Any, places: list[int]) -> None:
            vectors[places] = request.get_output_tensor(0).data

        self._queue.set_callback(keep)
        for places, tokens in batches:
            self._queue.start_async([tokens[name] for name in self._inputs], places)
        self._queue.wait_all()


def quick_encoder(
    network: nn.Module, inputs: Sequence[str], sample: Batch, by_torch: Callable[[Sample], np.ndarray]
) -> QuickEncoder | None:
    """One whose vectors of a sample are torch's; else None, and a warning that says why torch computes all of them."""
    places, tokens = sample
    found = np.zeros_like(wanted := by_torch(tokens))
    try:
        encoder = QuickEncoder(network, inputs)
        encoder.encode([(list(range(len(places))), tokens)], found)
    except Exception as error:  # of any kind, by what the network holds
        _warn(f"OpenVINO cannot convert the network ({type(error).__name__}: {error!s:.200})")
        return None
    difference = float(np.abs(found - wanted).max(initial=0))
    if not difference <= SAME_VECTOR:
        _warn(f"OpenVINO's vectors differ by {difference:.1e}, wanted {SAME_VECTOR:g} at most")
        return None
    return encoder


def _warn(fault: str) -> None:
    warnings.warn(f"items' vectors are computed by torch, at half the speed: {fault}", RuntimeWarning, stacklevel=3)
