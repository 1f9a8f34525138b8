"""An OpenVINO core and a compiled model from a model configuration: which file, which properties, what is refused.

Mirrors ReadModel, ParseParameters, ParseParameterHelper and LoadModel of the C++ backend (src/openvino.cc).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batching import RunFailed
from model_configuration import Unsupported, parameter, refuse_unsupported_features
from untracked_openvino import ov

DEVICE = "CPU"
DEFAULT_FILE = "model.xml"
PRECISION = "inference_precision_hint"
PERFORMANCE_MODES = ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT")

# Each instance is a process. Those that pin their threads all begin at the first core, and share it.
OWN_PROPERTIES = {"ENABLE_CPU_PINNING": "NO"}


class OpenVinoError(RunFailed):
    """OpenVINO failed. The text is what the C++ backend reports: 'openvino error in STEP : MESSAGE'."""


@contextmanager
def openvino_errors(step: str) -> Iterator[None]:
    """Translate OpenVINO's exceptions, which are RuntimeError, or TypeError and ValueError of its Python binding."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        raise OpenVinoError(f"openvino error in {step} : {error}") from error


def model_file(config: dict[str, Any], version_folder: Path) -> Path:
    """Return a version's model: default_model_filename, else model.xml. A folder where OpenVINO reads one."""
    path = version_folder / (config.get("default_model_filename") or DEFAULT_FILE)
    if not path.exists():
        raise FileNotFoundError(f"unable to find '{path}'; export the model there, with 'make export repository'")
    return path


def create_core(config: dict[str, Any]) -> ov.Core:
    """Return a core with the extensions and the properties that a configuration asks for. Raises Unsupported."""
    properties = _properties(config)
    core = ov.Core()
    extension = parameter(config, "CPU_EXTENSION_PATH")
    if extension:
        with openvino_errors("loading custom CPU extensions"):
            core.add_extension(extension)
    with openvino_errors("configuring openvino core"):
        core.set_property(DEVICE, properties)
    return core


def read_model(core: ov.Core, path: Path) -> ov.Model:
    """Read an OpenVINO IR, or another format that OpenVINO reads, such as ONNX."""
    with openvino_errors("reading model"):
        return core.read_model(path)


def compile_model(core: ov.Core, model: ov.Model) -> ov.CompiledModel:
    """Compile a model for the CPU."""
    with openvino_errors("loading model"):
        return core.compile_model(model, DEVICE)


def refuse_unsupported(config: dict[str, Any], instance_kind: str) -> None:
    """Raise Unsupported where a configuration asks for what cannot be done on the CPU, or by this drop-in."""
    device = parameter(config, "TARGET_DEVICE") or DEVICE
    if device.upper() != DEVICE:
        raise Unsupported(
            f"parameter TARGET_DEVICE is {device}, this drop-in for the C++ backend runs on the CPU only; leave it "
            "out, or serve with the Triton container"
        )
    if instance_kind != "CPU":
        raise Unsupported(
            f"instance kind is KIND_{instance_kind}, Triton openVINO backend supports only CPU device; set "
            "instance_group kind: KIND_CPU"
        )
    flag(config, "SKIP_OV_DYNAMIC_BATCHSIZE")
    refuse_unsupported_features(config)


def flag(config: dict[str, Any], name: str) -> bool:
    """Return a parameter that is YES or NO, in any case; False where it is not set."""
    text = parameter(config, name) or "NO"
    if text.upper() not in ("YES", "NO"):
        raise Unsupported(f"expected the parameter '{name}' to be either YES or NO, got {text}")
    return text.upper() == "YES"


def lacks_asked_bf16(config: dict[str, Any], core: ov.Core) -> bool:
    """Whether bf16 is asked for on a CPU that cannot do it: OpenVINO then computes in f32."""
    return bool(parameter(config, "HINT_BF16")) and "BF16" not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


def _properties(config: dict[str, Any]) -> dict[str, Any]:
    """Return OpenVINO's properties, by name; what is not asked for is left to OpenVINO."""
    if parameter(config, "COMPILATION_NUM_THREADS"):
        raise Unsupported(
            f"parameter COMPILATION_NUM_THREADS is set, which OpenVINO's CPU plugin does not have ({ov.__version__}); "
            "leave it out"
        )
    wanted = {
        "INFERENCE_NUM_THREADS": _count(config, "INFERENCE_NUM_THREADS"),
        "NUM_STREAMS": _streams(config),
        "PERFORMANCE_HINT": _performance_mode(config),
        "INFERENCE_PRECISION_HINT": _precision(config),
    }
    return OWN_PROPERTIES | {name: value for name, value in wanted.items() if value is not None}


def _count(config: dict[str, Any], name: str) -> str | None:
    text = parameter(config, name)
    if text and not text.isdecimal():
        raise Unsupported(f"expected the parameter '{name}' to be a non-negative number, got {text}")
    return text or None


def _streams(config: dict[str, Any]) -> str | None:
    text = (parameter(config, "NUM_STREAMS") or "").upper()
    if text and text not in ("AUTO", "NUMA") and not text.isdecimal():
        raise Unsupported(f"expected the parameter 'NUM_STREAMS' to be either AUTO/NUMA/<int_value>, got {text}")
    return text or None


def _performance_mode(config: dict[str, Any]) -> str | None:
    text = (parameter(config, "PERFORMANCE_HINT") or "").upper()
    if text and text not in PERFORMANCE_MODES:
        raise Unsupported(f"expected the parameter 'PERFORMANCE_HINT' to be {'/'.join(PERFORMANCE_MODES)}, got {text}")
    return text or None


def _precision(config: dict[str, Any]) -> str | None:
    """bf16 as the C++ backend is asked for it, f32 by a parameter of this drop-in's own, else OpenVINO's choice.

    OpenVINO chooses bf16 where the CPU has it, and the C++ backend has no parameter against that.
    """
    bf16, own = parameter(config, "HINT_BF16"), parameter(config, PRECISION)
    if bf16 and bf16.upper() != "YES":
        raise Unsupported(f"expected the parameter 'HINT_BF16' to be YES, got {bf16}")
    if own not in (None, "f32"):
        raise Unsupported(f"parameter {PRECISION} is {own}, wanted f32; bf16 is asked for with HINT_BF16: YES")
    if own and bf16:
        raise Unsupported(f"parameters {PRECISION} (f32) and HINT_BF16 (YES) are both set; leave one of them out")
    return own or ("bf16" if bf16 else None)
