"""A plan on a GPU: the thin layer that calls TensorRT and the CUDA runtime, and nothing else does.

Every name of `tensorrt` used here is in the Python packages of TensorRT 8.5.3, 10.0, 10.13 and 11.4 but for
ExecutionContextAllocationStrategy, which came with 10. The CUDA runtime is called through Polygraphy's ctypes wrapper,
since that needs no package of a certain Python or CUDA version.

Sources: https://docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-853/api/python_api/infer/Core/Engine.html,
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/ExecutionContext.html.
Knows nothing of Triton.
"""

from __future__ import annotations

import ctypes
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
from batching import Arrays, RunFailed
from numpy.typing import NDArray
from plan_signature import TYPES, PlanTensor
from polygraphy.cuda import MemcpyKind, wrapper
from polygraphy.exception import PolygraphyException
from profiles import Profile, Range, buffer_bytes


class EngineError(RunFailed):
    """TensorRT or CUDA refused; says what they said."""


class CudaEngine:
    """A deserialized plan with one execution context, one stream, and buffers for the largest shapes of its profiles.

    plan       the file
    device     number of the GPU
    strategy   STATIC or ON_PROFILE_CHANGE: when the context's memory is allocated

    Not for use by several threads at once. Raises EngineError.
    """

    def __init__(self, plan: Path, device: int, strategy: str = "STATIC"):
        self._log = _Log()
        self._cuda = wrapper()
        self._call("cudaSetDevice", ctypes.c_int(device))
        trt.init_libnvinfer_plugins(self._log, "")
        self._runtime = trt.Runtime(self._log)
        self._engine = self._checked(
            self._runtime.deserialize_cuda_engine(plan.read_bytes()),
            f"cannot read {plan}; if it was built for another TensorRT or GPU, build it here with 'make build-engines'",
        )
        self._context = self._checked(_create_context(self._engine, strategy), "cannot create an execution context")
        self._stream = self._cuda.create_stream()
        self._active = 0  # the profile of a first context
        self._buffers: dict[str, _Buffers] = {}

    @property
    def runtime_version(self) -> str:
        return str(trt.__version__)

    @property
    def tensors(self) -> list[PlanTensor]:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        return [self._tensor(name) for name in names]

    @property
    def profile_count(self) -> int:
        return int(self._engine.num_optimization_profiles)

    def profile(self, index: int) -> Profile:
        """Return a profile's ranges."""
        ranges = {
            tensor.name: Range(*(tuple(shape) for shape in self._engine.get_tensor_profile_shape(tensor.name, index)))
            for tensor in self.tensors
            if tensor.is_input
        }
        return Profile(index, ranges)

    def allocate(self, profiles: Sequence[Profile]) -> None:
        """Allocate for each tensor one device and one pinned host buffer, as large as the largest profile needs."""
        shapes = [self._shapes_at(profile) for profile in profiles]
        for tensor in self.tensors:
            dtype = np.dtype(TYPES[tensor.type][1])
            size = buffer_bytes([each[tensor.name] for each in shapes], dtype.itemsize)
            self._buffers[tensor.name] = _Buffers(self._cuda.malloc(size), self._pinned(size), size, dtype)
        self._bind()

    def run(self, profile: Profile, inputs: Arrays) -> Arrays:
        """Copy in, enqueue once, copy out, wait; return every output, as arrays of their own."""
        try:
            self._select(profile.index)
            for name, array in inputs.items():
                self._send(name, array)
            self._checked(self._context.execute_async_v3(self._stream), "the enqueue was refused")
            shapes = {name: self._receive(name) for name in self._buffers if name not in inputs}
            self._cuda.stream_synchronize(self._stream)
        except PolygraphyException as error:
            raise EngineError(f"CUDA: {error}; {self._log.text()}") from error
        return {name: self._buffers[name].view(shape).copy() for name, shape in shapes.items()}

    def free(self) -> None:
        """Give back the buffers, the context and the stream."""
        for buffers in self._buffers.values():
            self._cuda.free(buffers.device)
            self._call("cudaFreeHost", ctypes.c_void_p(buffers.host))
        self._buffers.clear()
        self._context = self._engine = self._runtime = None  # in this order
        self._cuda.destroy_stream(self._stream)

    def _tensor(self, name: str) -> PlanTensor:
        return PlanTensor(
            name=name,
            is_input=self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            type=self._engine.get_tensor_dtype(name).name,
            shape=tuple(self._engine.get_tensor_shape(name)),
            on_host=bool(self._engine.is_shape_inference_io(name)),
        )

    def _shapes_at(self, profile: Profile) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape when the inputs have the profile's largest."""
        self._select(profile.index)
        for name, shape in profile.maximum.items():
            self._set_shape(name, shape)
        shapes = {tensor.name: tuple(self._context.get_tensor_shape(tensor.name)) for tensor in self.tensors}
        open_ended = [name for name, shape in shapes.items() if any(dim < 0 for dim in shape)]
        if open_ended:
            raise EngineError(
                f"the shape of {', '.join(open_ended)} depends on values, which this drop-in does not do; export the "
                "model with shapes that follow from its inputs' shapes"
            )
        return shapes

    def _select(self, index: int) -> None:
        if index == self._active:
            return
        self._checked(
            self._context.set_optimization_profile_async(index, self._stream),
            f"cannot set optimization profile {index}",
        )
        self._active = index
        self._bind()

    def _bind(self) -> None:
        for name, buffers in self._buffers.items():
            self._checked(self._context.set_tensor_address(name, buffers.device), f"cannot set the address of '{name}'")

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._checked(self._context.set_input_shape(name, shape), f"input '{name}' was refused with shape {shape}")

    def _send(self, name: str, array: NDArray[Any]) -> None:
        self._set_shape(name, array.shape)
        buffers = self._buffers[name]
        np.copyto(buffers.view(array.shape), array, casting="no")
        self._cuda.memcpy(buffers.device, buffers.host, array.nbytes, MemcpyKind.HostToDevice, self._stream)

    def _receive(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(name))
        buffers = self._buffers[name]
        size = math.prod(shape) * buffers.dtype.itemsize
        self._cuda.memcpy(buffers.host, buffers.device, size, MemcpyKind.DeviceToHost, self._stream)
        return shape

    def _pinned(self, size: int) -> int:
        address = ctypes.c_void_p()
        self._call("cudaMallocHost", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value or 0

    def _call(self, function: str, *arguments: Any) -> None:
        """Call what Polygraphy's wrapper has no method for."""
        try:
            self._cuda.check(getattr(self._cuda.handle, function)(*arguments))
        except PolygraphyException as error:
            raise EngineError(f"{function} failed: {error}") from error

    def _checked(self, answer: Any, fault: str) -> Any:
        if answer is None or answer is False:
            raise EngineError(f"{fault}; {self._log.text()}")
        return answer


class _Buffers:
    """A tensor's place on the device and in pinned host memory, `size` bytes each."""

    def __init__(self, device: int, host: int, size: int, dtype: np.dtype[Any]):
        self.device, self.host, self.dtype = device, host, dtype
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(host))

    def view(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """The first bytes of the host buffer as an array."""
        size = math.prod(shape) * self.dtype.itemsize
        if size > self._bytes.size:
            raise EngineError(f"{size} bytes of shape {shape} do not fit into a buffer of {self._bytes.size}")
        return self._bytes[:size].view(self.dtype).reshape(shape)


class _Log(trt.ILogger):
    """Keeps TensorRT's last errors, so that they stand in the message of what they made fail."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: deque[str] = deque(maxlen=3)

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self._errors.append(message)

    def text(self) -> str:
        return f"TensorRT {trt.__version__} says: {' | '.join(self._errors) or 'nothing'}"


def _create_context(engine: Any, strategy: str) -> Any:
    """The one branch on the version: before TensorRT 10 a context's memory is always STATIC."""
    if hasattr(trt, "ExecutionContextAllocationStrategy"):
        return engine.create_execution_context(getattr(trt.ExecutionContextAllocationStrategy, strategy))
    if strategy != "STATIC":
        raise EngineError(
            f"execution_context_allocation_strategy is {strategy}, TensorRT {trt.__version__} has STATIC only"
        )
    return engine.create_execution_context()
