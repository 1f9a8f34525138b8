"""A FAKE of TensorRT and of the CUDA runtime for machines without a GPU: it shows which calls come in which order.

It has the names of `tensorrt` that the drop-in uses and no other, so that one that a version lacks fails here. They
were recorded from the Python packages tensorrt 8.5.3.1 and tensorrt_cu12_bindings 10.0.1, 10.13.3.9 and 11.4.0.106,
and are documented in https://docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-853/api/python_api/infer/Core/
(Engine.html, ExecutionContext.html) and .../deeplearning/tensorrt/11.4.0/_static/python-api/infer/Core/.

A fake plan is a JSON text: {"tensors": [[name, "INPUT" or "OUTPUT", type, shape], ...], "profiles": [{name: [minimum,
optimum, maximum]}, ...]}. For each row `score` is the sum of the row's inputs, `profile` the active profile and
`rows_in_run` the rows of the enqueue. Nothing that is put on the stream happens before the stream is waited for.

The running half; the building half is fake_tensorrt_builder.py. This one is copied as `tensorrt.py` to
where Triton's stub imports it, so it is one file that imports nothing of the project.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

__version__ = "11.4.0.106"
NUMPY = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}


# ---------------------------------------------------------------- the fake of polygraphy.cuda's wrapper
class FakeCudaError(Exception):
    """Stands for polygraphy.exception.PolygraphyException."""


class FakeCuda:
    """Device memory is host memory; `calls` says what was asked for."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.stream: list[Callable[[], object]] = []
        self.calls: list[str] = []
        self.handle = self

    def check(self, status: int) -> None:
        if status != 0:
            raise FakeCudaError(f"CUDA Error: {status}")

    def cudaSetDevice(self, device: ctypes.c_int) -> int:
        self.calls.append(f"device {device.value}")
        return 0 if device.value < 2 else 101  # cudaErrorInvalidDevice

    def cudaMallocHost(self, address: Any, size: ctypes.c_size_t) -> int:
        self.calls.append("malloc host")
        address._obj.value = self._allocate(size.value)
        return 0

    def cudaFreeHost(self, address: ctypes.c_void_p) -> int:
        del self.memory[address.value or 0]
        return 0

    def malloc(self, size: int) -> int:
        self.calls.append("malloc device")
        return self._allocate(size)

    def free(self, address: int) -> None:
        del self.memory[address]

    def create_stream(self) -> int:
        return 7

    def destroy_stream(self, stream: int) -> None:
        self.calls.append("destroy stream")

    def memcpy(self, target: int, source: int, size: int, kind: ctypes.c_int, stream: int) -> None:
        assert max(size, 1) <= min(ctypes.sizeof(self.memory[target]), ctypes.sizeof(self.memory[source]))
        self.calls.append({1: "to device", 2: "to host"}[kind.value])
        self.stream.append(lambda: ctypes.memmove(target, source, size))

    def stream_synchronize(self, stream: int) -> None:
        self.calls.append("synchronize")
        for action in self.stream:
            action()
        self.stream.clear()

    def _allocate(self, size: int) -> int:
        block = (ctypes.c_uint8 * size)(*([255] * min(size, 64)))
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)


class MemcpyKind:
    HostToDevice, DeviceToHost = ctypes.c_int(1), ctypes.c_int(2)


CUDA = FakeCuda()


def wrapper() -> FakeCuda:
    return CUDA


# ---------------------------------------------------------------- the fake of tensorrt
class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64 = range(9)


class ExecutionContextAllocationStrategy(enum.Enum):  # from TensorRT 10 on
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
    return True


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        try:
            return _Engine(json.loads(plan))
        except ValueError:
            self.logger.log(ILogger.ERROR, "the engine plan file is not compatible with this version of TensorRT")
            return None


class _Engine:
    def __init__(self, plan: dict[str, Any]) -> None:
        self._tensors = {name: (mode, kind, tuple(shape)) for name, mode, kind, shape in plan["tensors"]}
        self._profiles = plan["profiles"]
        self._host_tensors = plan.get("shape_tensors", [])

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode[self._tensors[name][0]]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._tensors[name][1]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][2]

    def is_shape_inference_io(self, name: str) -> bool:
        return name in self._host_tensors

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._profiles[profile_index][name]]

    def create_execution_context(self, strategy: Any = None) -> _Context:
        CUDA.calls.append(f"context {strategy.name if strategy else 'STATIC'}")
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine, self._profile = engine, 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        CUDA.calls.append(f"profile {profile_index}")
        self._profile, self._shapes, self._addresses = profile_index, {}, {}
        return profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(shape) != len(low) or any(not a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        rows = next(iter(self._shapes.values()))[0]
        shape = self._engine.get_tensor_shape(name)
        return (rows if shape[0] == -1 else shape[0], *shape[1:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if set(self._addresses) != set(self._engine._tensors):
            return False
        CUDA.calls.append("enqueue")
        profile, addresses = self._profile, dict(self._addresses)
        arrays = {name: self._array(name, addresses[name]) for name in addresses}
        CUDA.stream.append(lambda: _compute(arrays, self._shapes, profile))
        return True

    def _array(self, name: str, address: int) -> np.ndarray:
        shape, dtype = self.get_tensor_shape(name), np.dtype(NUMPY[self._engine.get_tensor_dtype(name).name])
        size = math.prod(shape) * dtype.itemsize
        return np.frombuffer(CUDA.memory[address], np.uint8)[:size].view(dtype).reshape(shape)


def _compute(arrays: dict[str, np.ndarray], inputs: dict[str, tuple[int, ...]], profile: int) -> None:
    rows = len(next(arrays[name] for name in inputs))
    values = {
        "score": sum(arrays[name].reshape(rows, -1).sum(axis=1, keepdims=True) for name in inputs),
        "profile": profile,
        "rows_in_run": rows,
    }
    for name in arrays.keys() - inputs.keys():
        arrays[name][:] = values[name]
