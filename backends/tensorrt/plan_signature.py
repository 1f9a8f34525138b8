"""What a plan says of its tensors, and whether a model configuration agrees and asks for nothing impossible.

Mirrors ValidateIO and InitializeExecuteInputBinding of the C++ backend (src/instance_state.cc) and
CompareDimsSupported (src/tensorrt_utils.cc). Knows nothing of running a plan; imports neither TensorRT nor CUDA.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_configuration import ROW_INPUTS, ConfigurationMismatch, Unsupported, parameter, refuse_unsupported_features

ANY = -1  # a dynamic dimension, in Triton's configuration as in a plan
DEFAULT_FILE = "model.plan"
STRATEGY = "execution_context_allocation_strategy"
STRATEGIES = ("STATIC", "ON_PROFILE_CHANGE")

# TensorRT's name of a type => Triton's, numpy's
TYPES = {
    "FLOAT": ("TYPE_FP32", "float32"),
    "HALF": ("TYPE_FP16", "float16"),
    "INT8": ("TYPE_INT8", "int8"),
    "UINT8": ("TYPE_UINT8", "uint8"),
    "INT32": ("TYPE_INT32", "int32"),
    "INT64": ("TYPE_INT64", "int64"),
    "BOOL": ("TYPE_BOOL", "bool"),
}


@dataclass(frozen=True)
class PlanTensor:
    """An input or output of a plan: TensorRT's type name, dimensions with -1 for a dynamic one."""

    name: str
    is_input: bool
    type: str
    shape: tuple[int, ...]
    on_host: bool = False  # a shape tensor: its values, not its bytes on the GPU, are read

    @property
    def kind(self) -> str:
        return "input" if self.is_input else "output"


def plan_file(config: dict[str, Any], version_folder: Path) -> Path:
    """Return a version's plan: default_model_filename, else model.plan."""
    path = version_folder / (config.get("default_model_filename") or DEFAULT_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"unable to find '{path}'; build it there, with 'make build-engines repository'")
    return path


def check_supported(config: dict[str, Any], instance_kind: str) -> None:
    """Raise Unsupported where the configuration asks for what this drop-in does not do."""
    if instance_kind != "GPU":
        raise Unsupported(
            f"TensorRT backend supports only GPU device, instance kind is KIND_{instance_kind}; set instance_group "
            "kind: KIND_GPU, or serve the ONNX variant on this machine"
        )
    if not config["input"] or not config["output"]:
        raise Unsupported("'input' or 'output' is missing, which this drop-in does not complete; run 'make repository'")
    refuse_unsupported_features(config)
    if parameter(config, ROW_INPUTS):
        raise Unsupported(f"parameter {ROW_INPUTS} is set, which this drop-in does not do; leave it out")
    if config.get("cc_model_filenames"):
        raise Unsupported("cc_model_filenames is set, which this drop-in does not read; name the plan model.plan")
    for io in config["input"] + config["output"]:
        for feature in ("is_shape_tensor", "optional", "is_non_linear_format_io"):
            if io.get(feature):
                raise Unsupported(
                    f"'{io['name']}' has {feature}, which this drop-in does not do; serve with the Triton container"
                )
    for group in config.get("instance_group", []):
        if group.get("secondary_devices"):
            raise Unsupported("instance_group has secondary_devices (DLA), which this drop-in does not do; remove them")


def allocation_strategy(config: dict[str, Any]) -> str:
    """Return what TensorRT shall call its way to allocate a context's memory."""
    strategy = parameter(config, STRATEGY) or STRATEGIES[0]
    if strategy not in STRATEGIES:
        raise Unsupported(f"parameter {STRATEGY} is '{strategy}', wanted one of {', '.join(STRATEGIES)}")
    return strategy


def hints_not_followed(config: dict[str, Any]) -> list[str]:
    """Return the settings that only promise speed in the C++ backend, and that this drop-in does not follow."""
    optimization = config.get("optimization", {})
    cuda = optimization.get("cuda", {})
    hints = [
        f"optimization.cuda.{name}" for name in ("graphs", "busy_wait_events", "output_copy_stream") if cuda.get(name)
    ]
    hints += [f"optimization.{n}" for n in ("eager_batching", "gather_kernel_buffer_threshold") if optimization.get(n)]
    if optimization.get("priority", "PRIORITY_DEFAULT") != "PRIORITY_DEFAULT":
        hints.append("optimization.priority")
    return hints


def check_configuration(config: dict[str, Any], tensors: Sequence[PlanTensor]) -> None:
    """Raise ConfigurationMismatch with every fault found, where inputs or outputs do not fit the plan's."""
    faults = [*_plan_faults(tensors)]
    for kind in ("input", "output"):
        known = {tensor.name: tensor for tensor in tensors if tensor.kind == kind}
        faults += [fault for io in config[kind] for fault in _tensor_faults(config, kind, io, known)]
        missing = sorted(set(known) - {io["name"] for io in config[kind]})
        faults += [f"expected configuration for {kind} '{name}'" for name in missing]
    if faults:
        raise ConfigurationMismatch(
            "; ".join(faults) + ". Mend config.pbtxt, or write plan and configuration anew with 'make build-engines "
            "repository'."
        )


def _plan_faults(tensors: Iterable[PlanTensor]) -> Iterable[str]:
    for tensor in tensors:
        if tensor.on_host:
            yield f"{tensor.kind} '{tensor.name}' of the plan is a shape tensor, which this drop-in does not do"
        if tensor.type not in TYPES:
            yield f"{tensor.kind} '{tensor.name}' of the plan is {tensor.type}, wanted one of {', '.join(TYPES)}"


def _tensor_faults(config: dict[str, Any], kind: str, io: dict[str, Any], known: dict[str, PlanTensor]) -> list[str]:
    name = io["name"]
    if name not in known:
        return [f"unexpected inference {kind} '{name}', allowed {kind}s are: {', '.join(sorted(known))}"]
    found = TYPES.get(known[name].type, (known[name].type,))[0]
    if found != io["data_type"]:
        return [f"configuration expects datatype {io['data_type']} for {kind} '{name}', model provides {found}"]
    return _dims_faults(config, io, list(known[name].shape))


def _dims_faults(config: dict[str, Any], io: dict[str, Any], plan_dims: list[int]) -> list[str]:
    dims = [int(dim) for dim in (io["reshape"]["shape"] if "reshape" in io else io["dims"])]
    batches = config["max_batch_size"] > 0
    full_dims = [ANY, *dims] if batches else dims
    if len(plan_dims) == len(full_dims) and all(
        ANY in (plan, configured) or plan == configured for plan, configured in zip(plan_dims, full_dims, strict=True)
    ):
        return []
    note = " (with the batch dimension that max_batch_size > 0 puts first)" if batches else ""
    return [
        f"tensor '{io['name']}': the model expects {len(plan_dims)} dimensions (shape {plan_dims}) but the model "
        f"configuration specifies {len(full_dims)} dimensions, shape {full_dims}{note}"
    ]
