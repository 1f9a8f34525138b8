"""Completes a model configuration from an OpenVINO model.

Mirrors AutoCompleteConfig, AutoCompleteBatching and AutoCompleteInputOrOutput of the C++ backend (src/openvino.cc).
"""

from __future__ import annotations

from typing import Any

from signature import dims_of, triton_type
from untracked_openvino import ov

# Triton's --backend-config=openvino,default-max-batch-size; a Python-based backend cannot read the option.
DEFAULT_MAX_BATCH_SIZE = 4


def complete_configuration(config: dict[str, Any], model: ov.Model) -> None:
    """Fill in max_batch_size, dynamic_batching, input and output where they are missing, in place."""
    if _says_it_batches(model):
        config["max_batch_size"] = config["max_batch_size"] or DEFAULT_MAX_BATCH_SIZE
        if config["max_batch_size"] > 1 and "sequence_batching" not in config:
            config.setdefault("dynamic_batching", {})
    if not config["input"]:
        config["input"] = [_entry(port, config["max_batch_size"]) for port in model.inputs]
    if not config["output"]:
        config["output"] = [_entry(port, config["max_batch_size"]) for port in model.outputs]


def _says_it_batches(model: ov.Model) -> bool:
    """Whether the layout of every input and output names a batch dimension. Dynamic dimensions alone say nothing."""
    return all(ov.layout_helpers.has_batch(ov.layout_helpers.get_layout(port)) for port in model.inputs + model.outputs)


def _entry(port: Any, max_batch_size: int) -> dict[str, Any]:
    """An entry of `input` or `output`: dims without the batch dimension."""
    dims = dims_of(port)[1 if max_batch_size > 0 else 0 :]
    return {"name": port.get_any_name(), "data_type": triton_type(port), "dims": dims}
