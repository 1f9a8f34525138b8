"""What an ONNX file says of its tensors, and whether a model configuration agrees.

Mirrors ValidateInputs and ValidateOutputs of the C++ backend (src/onnxruntime.cc) and CompareDimsSupported
(src/onnxruntime_utils.cc). Knows nothing of running a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from model_configuration import ConfigurationMismatch

ANY = -1  # a dynamic dimension, in Triton's configuration as here

TRITON_TYPES = {  # onnxruntime_utils.cc, OnnxDataTypeToModelConfigDataType
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


@dataclass(frozen=True)
class Signature:
    """The tensors of an ONNX file. Each is an onnxruntime.NodeArg: name, type, shape."""

    inputs: list[Any]
    outputs: list[Any]
    overridable_initializers: list[Any]


def read_signature(path: Path) -> Signature:
    """Read the signature of an ONNX file, without optimizing its graph."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return signature_of(ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))


def signature_of(session: ort.InferenceSession) -> Signature:
    """Return the signature of a session's model."""
    return Signature(session.get_inputs(), session.get_outputs(), session.get_overridable_initializers())


def dims_of(tensor: Any) -> list[int]:
    """Return a tensor's dimensions, -1 for each that is not a number in the ONNX file; [] for a scalar."""
    return [dim if isinstance(dim, int) else ANY for dim in tensor.shape or []]


def is_scalar(tensor: Any) -> bool:
    """Whether a tensor has no dimension in the ONNX file."""
    return not dims_of(tensor)


def triton_type(tensor: Any) -> str:
    """Return Triton's name of a tensor's type. Raises ConfigurationMismatch for one that Triton cannot carry."""
    if tensor.type not in TRITON_TYPES:
        raise ConfigurationMismatch(
            f"ONNX tensor '{tensor.name}' is a {tensor.type}, wanted one of {', '.join(TRITON_TYPES)}; export the "
            "model with one of these types there."
        )
    return TRITON_TYPES[tensor.type]


def check_configuration(config: dict[str, Any], session: ort.InferenceSession) -> None:
    """Raise ConfigurationMismatch with every fault found, where inputs or outputs do not fit the session's model."""
    signature = signature_of(session)
    faults = [*_input_count_faults(config, signature)]
    known_inputs = {tensor.name: tensor for tensor in signature.inputs + signature.overridable_initializers}
    known_outputs = {tensor.name: tensor for tensor in signature.outputs}
    for io in config["input"]:
        faults += _optional_faults(config, io) + _tensor_faults(config, "input", io, known_inputs)
    for io in config["output"]:
        faults += _tensor_faults(config, "output", io, known_outputs)
    if faults:
        raise ConfigurationMismatch(
            "; ".join(faults) + ". Mend config.pbtxt, or write it anew from the contract with 'make repository'."
        )


def _input_count_faults(config: dict[str, Any], signature: Signature) -> list[str]:
    required = [io["name"] for io in config["input"] if not io.get("optional")]
    provided = [tensor.name for tensor in signature.inputs]
    if len(required) == len(provided):
        return []
    return [
        f"configuration expects {len(required)} inputs ({', '.join(required)}), model provides {len(provided)} "
        f"({', '.join(provided)})"
    ]


def _optional_faults(config: dict[str, Any], io: dict[str, Any]) -> list[str]:
    if io.get("optional") and config["max_batch_size"] > 0:
        return [f"optional input '{io['name']}' is not supported for models that support batching"]
    return []


def _tensor_faults(config: dict[str, Any], kind: str, io: dict[str, Any], known: dict[str, Any]) -> list[str]:
    name = io["name"]
    if name not in known:
        return [f"unexpected inference {kind} '{name}', allowed {kind}s are: {', '.join(sorted(known))}"]
    found = triton_type(known[name])
    if found != io["data_type"]:
        return [f"configuration expects datatype {io['data_type']} for {kind} '{name}', model provides {found}"]
    return _dims_faults(config, kind, io, dims_of(known[name]))


def _dims_faults(config: dict[str, Any], kind: str, io: dict[str, Any], model_dims: list[int]) -> list[str]:
    dims = [int(dim) for dim in (io["reshape"]["shape"] if "reshape" in io else io["dims"])]
    if not model_dims:
        return _scalar_faults(io["name"], dims)
    batches = config["max_batch_size"] > 0
    if batches and model_dims[0] != ANY:
        return [
            f"tensor '{io['name']}': for the model to support batching the shape should have at least 1 dimension and "
            f"the first dimension must be -1; but shape expected by the model is {model_dims}"
        ]
    full_dims = [ANY, *dims] if batches else dims
    if _fits(model_dims, full_dims, exact=kind == "output"):
        return []
    batch_note = " (with the batch dimension that max_batch_size > 0 puts first)" if batches else ""
    return [
        f"tensor '{io['name']}': the model expects {len(model_dims)} dimensions (shape {model_dims}) but the model "
        f"configuration specifies {len(full_dims)} dimensions, shape {full_dims}{batch_note}"
    ]


def _scalar_faults(name: str, dims: list[int]) -> list[str]:
    if all(dim == 1 for dim in dims):
        return []
    return [f"scalar tensor '{name}' should only provide 1 in the model configuration, which provides {dims}"]


def _fits(model_dims: list[int], full_dims: list[int], exact: bool) -> bool:
    """Whether configured dims fit: a dynamic dimension of the model takes any input dim, but only -1 for an output."""
    return len(model_dims) == len(full_dims) and all(
        model == configured or (model == ANY and not exact)
        for model, configured in zip(model_dims, full_dims, strict=True)
    )
