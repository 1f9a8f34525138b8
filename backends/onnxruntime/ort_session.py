"""An ONNX Runtime session from a model configuration: which file, which options, what is refused.

Mirrors the ModelState constructor and LoadModel of the C++ backend (src/onnxruntime.cc).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnxruntime as ort
from batching import RunFailed
from model_configuration import Unsupported, parameter, refuse_unsupported_features

DEFAULT_FILE = "model.onnx"

# optimization.graph.level => ONNX Runtime's level; any other value, and none, is "all"
GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
BOOLEANS = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
INVALID_ARGUMENT = "2"
"""ONNX Runtime's code."""
ARENA_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
DEVICE_ALLOCATOR = "session.use_device_allocator_for_initializers"


class OrtError(RunFailed):
    """A run failed. Its text is what the C++ backend reports: 'onnx runtime error CODE: MESSAGE'."""

    @staticmethod
    def of(error: Exception) -> OrtError:
        """Translate an exception of onnxruntime, whose text starts '[ONNXRuntimeError] : CODE : NAME : '."""
        match = re.match(r"\[ONNXRuntimeError\] : (\d+) : \w+ : (.*)", str(error), re.DOTALL)
        if match is None:
            return OrtError(f"onnx runtime error: {error}")
        kind = OrtInvalidArgument if match[1] == INVALID_ARGUMENT else OrtError
        return kind(f"onnx runtime error {match[1]}: {match[2]}")


class OrtInvalidArgument(OrtError):
    """What the request brings cannot be computed with, such as an index that a table does not have."""


def onnx_file(config: dict[str, Any], version_folder: Path) -> Path:
    """Return a version's ONNX file: default_model_filename, else model.onnx; model.onnx in it where it is a folder."""
    path = version_folder / (config.get("default_model_filename") or DEFAULT_FILE)
    if path.is_dir():
        path = path / DEFAULT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"unable to find '{path}'; export the model there, with 'make export repository'")
    return path


def create_session(config: dict[str, Any], path: Path, instance_kind: str) -> ort.InferenceSession:
    """Create the session that a configuration asks for. Raises Unsupported."""
    _refuse_unsupported(config, instance_kind)
    return ort.InferenceSession(str(path), _session_options(config), providers=["CPUExecutionProvider"])


def create_run_options(config: dict[str, Any]) -> ort.RunOptions:
    """Return the options of each run."""
    options = ort.RunOptions()
    shrinkage = parameter(config, ARENA_SHRINKAGE)
    if shrinkage is not None:
        options.add_run_config_entry(ARENA_SHRINKAGE, shrinkage)
    return options


def _session_options(config: dict[str, Any]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = _graph_level(config)
    options.execution_mode = _execution_mode(config)
    options.intra_op_num_threads = max(_integer(config, "intra_op_thread_count"), 0)
    options.inter_op_num_threads = max(_integer(config, "inter_op_thread_count"), 0)
    options.enable_cpu_mem_arena = _boolean(config, "enable_mem_arena", options.enable_cpu_mem_arena)
    options.enable_mem_pattern = _boolean(config, "enable_mem_pattern", options.enable_mem_pattern)
    # By default its threads go on spinning for milliseconds after a run, on the cores that the next step needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    device_allocator = parameter(config, DEVICE_ALLOCATOR)
    if device_allocator is not None:
        options.add_session_config_entry(DEVICE_ALLOCATOR, device_allocator)
    for library in config.get("model_operations", {}).get("op_library_filename", []):
        options.register_custom_ops_library(library)
    return options


def _graph_level(config: dict[str, Any]) -> ort.GraphOptimizationLevel:
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    return GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def _execution_mode(config: dict[str, Any]) -> ort.ExecutionMode:
    mode = _integer(config, "execution_mode")
    if mode not in (0, 1):
        raise Unsupported(
            f"Invalid configuration value provided. Expected values for execution_mode are 0 or 1 but got {mode}"
        )
    return ort.ExecutionMode.ORT_PARALLEL if mode else ort.ExecutionMode.ORT_SEQUENTIAL


def _refuse_unsupported(config: dict[str, Any], instance_kind: str) -> None:
    if instance_kind == "GPU":
        raise Unsupported(
            "instance kind is KIND_GPU, this drop-in for the C++ backend runs on the CPU only; set instance_group "
            "kind: KIND_CPU, or serve with the Triton container"
        )
    _refuse_accelerators(config.get("optimization", {}).get("execution_accelerators", {}))
    if _boolean(config, "share_session_between_instances", False):
        raise Unsupported(
            "share_session_between_instances is set, each instance of this drop-in is a process with a session of its "
            "own; set it to false and mind the memory, or serve with the Triton container"
        )
    refuse_unsupported_features(config)


def _refuse_accelerators(accelerators: dict[str, Any]) -> None:
    for kind in ("gpu_execution_accelerator", "cpu_execution_accelerator"):
        for accelerator in accelerators.get(kind, []):
            raise Unsupported(
                f"unknown Execution Accelerator '{accelerator['name']}' is requested as {kind}; this drop-in has none, "
                "only ONNX Runtime's CPU kernels: leave execution_accelerators out, or serve with the Triton container"
            )


def _integer(config: dict[str, Any], name: str) -> int:
    """Return an integer parameter, 0 where it is not set."""
    text = parameter(config, name)
    try:
        return int(text or 0)
    except ValueError as error:
        raise Unsupported(f"parameter {name}: failed to convert '{text}' to integral number") from error


def _boolean(config: dict[str, Any], name: str, default: bool) -> bool:
    text = parameter(config, name)
    if text is None:
        return default
    if text.lower() not in BOOLEANS:
        raise Unsupported(
            f"parameter {name}: failed to convert '{text}' to boolean, wanted one of {', '.join(BOOLEANS)}"
        )
    return BOOLEANS[text.lower()]
