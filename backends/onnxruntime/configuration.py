"""Completes a model configuration from an ONNX file's signature.

Mirrors AutoCompleteConfig, AutoCompleteMaxBatch and AutoCompleteIO of the C++ backend (src/onnxruntime.cc).
"""

from __future__ import annotations

from typing import Any

from model_configuration import ConfigurationMismatch
from signature import ANY, Signature, dims_of, triton_type

# Triton's --backend-config=onnxruntime,default-max-batch-size; a Python-based backend cannot read the option.
DEFAULT_MAX_BATCH_SIZE = 4


def needs_completion(config: dict[str, Any]) -> bool:
    """Whether inputs or outputs are missing. Where both are given, nothing is completed, max_batch_size neither."""
    return not config["input"] or not config["output"]


def complete_configuration(config: dict[str, Any], signature: Signature) -> None:
    """Fill in max_batch_size, dynamic_batching, input and output where they are missing, in place."""
    _complete_max_batch_size(config, signature)
    if not config["input"]:
        config["input"] = [_entry(tensor, config["max_batch_size"]) for tensor in signature.inputs]
    if not config["output"]:
        config["output"] = [_entry(tensor, config["max_batch_size"]) for tensor in signature.outputs]


def _complete_max_batch_size(config: dict[str, Any], signature: Signature) -> None:
    if not _can_batch(signature):
        if config["max_batch_size"] > 0:
            raise ConfigurationMismatch(
                "autofill failed: the model does not support batching while "
                f"max_batch_size {config['max_batch_size']} is specified; export it with a dynamic first dimension, or "
                "set max_batch_size: 0"
            )
        return
    config["max_batch_size"] = config["max_batch_size"] or DEFAULT_MAX_BATCH_SIZE
    if config["max_batch_size"] > 1 and "sequence_batching" not in config:
        config.setdefault("dynamic_batching", {})


def _can_batch(signature: Signature) -> bool:
    """Whether every input and output has a dynamic first dimension."""
    return all(dims_of(tensor)[:1] == [ANY] for tensor in signature.inputs + signature.outputs)


def _entry(tensor: Any, max_batch_size: int) -> dict[str, Any]:
    """An entry of `input` or `output`: dims without the batch dimension, [1] with a reshape where none is left."""
    dims = dims_of(tensor)[1 if max_batch_size > 0 else 0 :]
    entry: dict[str, Any] = {"name": tensor.name, "data_type": triton_type(tensor), "dims": dims or [1]}
    if not dims and max_batch_size > 0:
        entry["reshape"] = {"shape": []}
    return entry
