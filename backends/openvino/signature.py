"""Fits an OpenVINO model to a model configuration, or says why it does not fit.

Mirrors ValidateInputs and ValidateOutputs of the C++ backend (src/openvino.cc) and CompareDimsSupported
(src/openvino_utils.cc). Knows nothing of running a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from model_configuration import ConfigurationMismatch
from ov_core import flag, openvino_errors
from untracked_openvino import ov

ANY = -1  # a dynamic dimension, in Triton's configuration as here

OPENVINO_TYPES = {  # openvino_utils.cc, ModelConfigDataTypeToOpenVINOElement
    "TYPE_BOOL": ov.Type.boolean,
    "TYPE_UINT8": ov.Type.u8,
    "TYPE_UINT16": ov.Type.u16,
    "TYPE_UINT32": ov.Type.u32,
    "TYPE_UINT64": ov.Type.u64,
    "TYPE_INT8": ov.Type.i8,
    "TYPE_INT16": ov.Type.i16,
    "TYPE_INT32": ov.Type.i32,
    "TYPE_INT64": ov.Type.i64,
    "TYPE_FP16": ov.Type.f16,
    "TYPE_FP32": ov.Type.f32,
}


def fixed_rows(config: dict[str, Any]) -> int | None:
    """Return how many rows each request must have: max_batch_size, unless the model does not batch or may be padded.

    The C++ backend gives the model exactly max_batch_size rows. Where it is told to pad what is shorter
    (ENABLE_BATCH_PADDING), this drop-in runs the rows there are: the same answers without the padding's cost.
    """
    padded = flag(config, "ENABLE_BATCH_PADDING")
    return None if padded else config["max_batch_size"] or None


def takes_any_rows(model: ov.Model) -> bool:
    """Whether the first dimension of every tensor is dynamic."""
    return all(dims_of(port)[:1] == [ANY] for port in model.inputs + model.outputs)


def fit_to_configuration(model: ov.Model, config: dict[str, Any]) -> ov.Model:
    """Return the model with the data types, the rows and, by RESHAPE_IO_LAYERS, the shapes of a configuration.

    Raises ConfigurationMismatch with every fault found at the inputs, or else at the outputs.
    """
    reshapes = flag(config, "RESHAPE_IO_LAYERS")
    _refuse([*_input_count_faults(config, model), *_faults(config, "input", model.inputs, not reshapes)])
    model = _fit_inputs(model, config, reshapes)
    _refuse(_faults(config, "output", model.outputs, True))
    return _fit_outputs(model, config)


def dims_of(port: Any) -> list[int]:
    """Return a tensor's dimensions, -1 for each that is dynamic; [] for a scalar."""
    return [ANY if dim.is_dynamic else dim.get_length() for dim in port.get_partial_shape()]


def triton_type(port: Any) -> str:
    """Return Triton's name of a tensor's type. Raises ConfigurationMismatch for one that the C++ backend lacks."""
    names = [name for name, kind in OPENVINO_TYPES.items() if kind == port.get_element_type()]
    if not names:
        raise ConfigurationMismatch(
            f"tensor '{port.get_any_name()}' is a {port.get_element_type()}, wanted one of {', '.join(OPENVINO_TYPES)};"
            " give its input or output in config.pbtxt with one of these."
        )
    return names[0]


def _fit_inputs(model: ov.Model, config: dict[str, Any], reshapes: bool) -> ov.Model:
    batches, rows = config["max_batch_size"] > 0, fixed_rows(config) or ANY
    steps = ov.preprocess.PrePostProcessor(model)
    for io in config["input"]:
        tensor = steps.input(io["name"]).tensor()
        tensor.set_element_type(OPENVINO_TYPES[io["data_type"]])
        if reshapes:
            dims = _configured_dims(io)
            tensor.set_shape(ov.PartialShape([ANY, *dims] if batches else dims))
        if batches:
            tensor.set_layout(ov.Layout("N..."))
    with openvino_errors("apply model input preprocessing"):
        model = steps.build()
    if batches:
        with openvino_errors("setting max batch size"):
            ov.set_batch(model, rows)
    return model


def _fit_outputs(model: ov.Model, config: dict[str, Any]) -> ov.Model:
    steps = ov.preprocess.PrePostProcessor(model)
    for io in config["output"]:
        steps.output(io["name"]).tensor().set_element_type(OPENVINO_TYPES[io["data_type"]])
    with openvino_errors("apply model output preprocessing"):
        return steps.build()


def _refuse(faults: Iterable[str]) -> None:
    found = list(faults)
    if found:
        raise ConfigurationMismatch(
            "; ".join(found) + ". Mend config.pbtxt, or write it anew from the contract with 'make repository'."
        )


def _input_count_faults(config: dict[str, Any], model: ov.Model) -> list[str]:
    if len(config["input"]) == len(model.inputs):
        return []
    return [f"configuration expects {len(config['input'])} inputs, model provides {len(model.inputs)}"]


def _faults(config: dict[str, Any], kind: str, ports: list[Any], checks_dims: bool) -> Iterator[str]:
    known = {name: port for port in ports for name in port.get_names()}
    for io in config[kind]:
        name = io["name"]
        if name not in known:
            yield f"unexpected inference {kind} '{name}', allowed {kind}s are: {', '.join(sorted(known))}"
            continue
        if io["data_type"] not in OPENVINO_TYPES:
            yield f"unsupported datatype {io['data_type']} for {kind} '{name}'"
        check = _dims_faults if checks_dims else _reshape_faults
        yield from check(config, kind, io, dims_of(known[name]))


def _dims_faults(config: dict[str, Any], kind: str, io: dict[str, Any], model_dims: list[int]) -> Iterator[str]:
    dims = _configured_dims(io)
    if config["max_batch_size"] == 0:
        if not _match(model_dims, dims):
            yield _dims_message(io, model_dims, dims, "")
    elif not model_dims:
        yield f"tensor '{io['name']}': for the model to support batching the shape should have at least 1 dimension"
    else:
        full_dims = [config["max_batch_size"], *dims]
        # An input's rows are set later, and its -1 is whatever the model has; an output must have what is configured.
        wildcards = [0, *(i for i, dim in enumerate(full_dims) if dim == ANY)] if kind == "input" else []
        if not _match([ANY if i in wildcards else dim for i, dim in enumerate(model_dims)], full_dims):
            note = " (an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape)"
            yield _dims_message(io, model_dims, full_dims, note)


def _reshape_faults(config: dict[str, Any], kind: str, io: dict[str, Any], model_dims: list[int]) -> Iterator[str]:
    dims = _configured_dims(io)
    if any(dim != ANY and dim < 1 for dim in dims):
        yield f"{kind} '{io['name']}': dims {dims}, wanted -1 or positive integers only"
    full_dims = [ANY, *dims] if config["max_batch_size"] > 0 else dims
    if len(full_dims) != len(model_dims):
        yield _dims_message(io, model_dims, full_dims, ", which RESHAPE_IO_LAYERS cannot change")


def _configured_dims(io: dict[str, Any]) -> list[int]:
    return [int(dim) for dim in (io["reshape"].get("shape", []) if "reshape" in io else io["dims"])]


def _match(model_dims: list[int], dims: list[int]) -> bool:
    """Whether configured dims fit: a dynamic dimension of the model takes any."""
    return len(model_dims) == len(dims) and all(m in (ANY, d) for m, d in zip(model_dims, dims, strict=True))


def _dims_message(io: dict[str, Any], model_dims: list[int], full_dims: list[int], note: str) -> str:
    return (
        f"tensor '{io['name']}': the model expects {len(model_dims)} dimensions (shape {model_dims}) but the model "
        f"configuration specifies {len(full_dims)} dimensions (shape {full_dims}){note}"
    )
