"""One network in torch, ONNX Runtime and TensorRT on the same tensors: latency, rate, share of what the GPU can do.

A run starts with arrays in host memory and ends with arrays in host memory, whatever the runtime: what a served request
pays. Works on a CPU too, where TensorRT is left out, and for which no GPU figure is ever put down.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from builders.core.cuda_runtime import offer_cuda_runtime
from builders.export.onnx import run_onnx, run_torch
from builders.rankers.base import Graph, Sample
from perf.errors import PerfError

ROWS = (1, 8, 40, 128, 512)
LENGTHS = tuple(range(16, 65, 8))
ROW_DIMS = {"rows", "candidates"}
"""Dimensions that a request's items run along: of a graph that batches, and of one that does not."""
WARM_UP_RUNS, LEAST_RUNS, SECONDS_PER_POINT = 5, 30, 0.5
PEAK_SIZE, PEAK_RUNS = 8192, 20
MS_PER_S = 1e3

Run = Callable[[Sample], Sample]
"""Input name => array in, output name => array out."""


@dataclasses.dataclass(frozen=True)
class Latency:
    """One network in one runtime at one shape.

    Attributes:
        column: runtime and precision, such as "TensorRT fp16".
        rows: of a batch; of a network that does not batch, its request's candidates; 1 where it has none.
        length: padded; 0 for a network without lengths.
        p50_ms, p99_ms: host to host.
        flops: multiplications and additions of the matrix products of one run.
    """

    network: str
    column: str
    rows: int
    length: int
    runs: int
    p50_ms: float
    p99_ms: float
    flops: float

    @property
    def candidates_per_s(self) -> float:
        """Rows over the median."""
        return self.rows / self.p50_ms * MS_PER_S

    def share_of(self, peak_flops_per_s: float) -> float:
        """Of the measured peak of matrix products, 0 to 1."""
        return self.flops / (self.p50_ms / MS_PER_S) / peak_flops_per_s


# ---------------------------------------------------------------- the shapes
def sized(graph: Graph, sample: Sample, rows: int, length: int) -> Sample:
    """A real sample's tensors repeated or cut to ``rows`` and, where the graph has lengths, to ``length``.

    Of a graph that does not batch, ``rows`` are the candidates of its one request; what a request has once stays as it
    is.
    """
    return {tensor.name: _sized(sample[tensor.name], tensor.dims, rows, length) for tensor in graph.contract.inputs}


def rows_of(graph: Graph, rows: Sequence[int]) -> Sequence[int]:
    """``rows``, or 1 alone for a graph that has neither rows nor candidates, such as one that encodes a request."""
    free = {dim for tensor in graph.contract.inputs for dim in tensor.dims}
    return rows if free & ROW_DIMS else (1,)


def _sized(array: np.ndarray, dims: Sequence[int | str], rows: int, length: int) -> np.ndarray:
    wanted = [
        rows if dim in ROW_DIMS else length if isinstance(dim, str) and length else size
        for dim, size in zip(dims, array.shape, strict=True)
    ]
    for axis, size in enumerate(wanted):
        array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    return np.ascontiguousarray(array)


def flops_of(graph: Graph, sample: Sample) -> float:
    """Counted by torch while the network runs on the CPU, with attention as matrix products: torch counts none of the
    processor's own attention."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run_torch(graph, sample)
    return float(counter.get_total_flops())


# ---------------------------------------------------------------- the clocks
def latency_of(run: Callable[[], object], seconds: float = SECONDS_PER_POINT) -> np.ndarray:
    """float64 [runs], milliseconds each, after a warm-up: at least LEAST_RUNS, and for at least ``seconds``."""
    for _ in range(WARM_UP_RUNS):
        run()
    taken_ms: list[float] = []
    end_s = time.perf_counter() + seconds
    while len(taken_ms) < LEAST_RUNS or time.perf_counter() < end_s:
        start_s = time.perf_counter()
        run()
        taken_ms.append((time.perf_counter() - start_s) * MS_PER_S)
    return np.array(taken_ms)


def measured_peak(device: str, dtype: torch.dtype = torch.float16, size: int = PEAK_SIZE) -> float:
    """FLOP/s of the fastest of some products of two ``size`` by ``size`` matrices: the ceiling for everything else."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        torch.matmul(a, b)
        if device != "cpu":
            torch.cuda.synchronize()

    multiply()
    fastest_s = min(_seconds(multiply) for _ in range(PEAK_RUNS))
    return matmul_flops(size) / fastest_s


def matmul_flops(size: int) -> float:
    """Of a product of two square matrices: one multiplication and one addition for each of size^3 terms."""
    return 2.0 * size**3


def _seconds(run: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    run()
    return time.perf_counter() - start_s


# ---------------------------------------------------------------- the runtimes
def torch_run(graph: Graph, device: str, *, half: bool = False, compiled: bool = False) -> Run:
    """The network in eager mode, or by torch.compile for free shapes.

    Half: weights in FP16, and autocast for what a network makes in FP32 itself, such as a mask, which a matrix product
    would else refuse beside them.
    """
    network = copy.deepcopy(graph.module).to(device).eval()
    network = network.half() if half else network
    module: Any = torch.compile(network, dynamic=True) if compiled else network
    on_device = dataclasses.replace(graph, module=_OnDevice(module, device, half))
    return lambda sample: run_torch(on_device, sample)


class _OnDevice(nn.Module):
    """Takes its inputs to the device, and its outputs back to the host in FP32."""

    def __init__(self, module: Any, device: str, half: bool) -> None:
        super().__init__()
        self._module, self._device, self._half = module, device, half

    def forward(self, *inputs: torch.Tensor) -> Any:
        with torch.autocast(torch.device(self._device).type, torch.float16, enabled=self._half):
            result = self._module(*map(self._sent, inputs))
        return tuple(one.float().cpu() for one in (result if isinstance(result, tuple) else (result,)))

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, torch.float16 if self._half and tensor.is_floating_point() else tensor.dtype)


def onnx_provider(device: str) -> str:
    """Which of ONNX Runtime's providers runs a network: CUDA's where the package has it."""
    cuda = "CUDAExecutionProvider"
    return cuda if device != "cpu" and cuda in onnxruntime.get_available_providers() else "CPUExecutionProvider"


def onnx_run(path: Path, device: str) -> Run:
    """ONNX Runtime on :func:`onnx_provider`."""
    session = onnxruntime.InferenceSession(path, providers=[onnx_provider(device)])
    return lambda sample: run_onnx(session, sample)


@contextlib.contextmanager
def tensorrt_run(plan: Path, profiles: Sequence[Mapping[str, Any]]) -> Iterator[Run]:
    """Polygraphy's runner: copies in, one enqueue, copies out.

    Args:
        profiles: the manifest's: input name => ``min``, ``opt``, ``max`` => shape.
    """
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    offer_cuda_runtime()
    with TrtRunner(EngineFromBytes(BytesFromPath(str(plan)))) as runner:
        active = 0

        def run(sample: Sample) -> Sample:
            nonlocal active
            chosen = profile_for(profiles, sample)
            if chosen != active:
                runner.set_profile(chosen)
                active = chosen
            return dict(runner.infer({name: sample[name] for name in profiles[0]}))

        yield run


def profile_for(profiles: Sequence[Mapping[str, Any]], sample: Sample) -> int:
    """The first profile that takes the sample. Raises: PerfError."""
    for index, profile in enumerate(profiles):
        if all(_within(sample[name].shape, shapes) for name, shapes in profile.items()):
            return index
    found = ", ".join(f"{name} {list(sample[name].shape)}" for name in profiles[0])
    raise PerfError(f"no profile of the plan takes {found}; build it with larger ones")


def _within(shape: Sequence[int], shapes: Mapping[str, Sequence[int]]) -> bool:
    low, high = shapes["min"], shapes["max"]
    return len(shape) == len(low) and all(a <= dim <= b for a, dim, b in zip(low, shape, high, strict=True))


# ---------------------------------------------------------------- the table
def measure_column(
    graph: Graph, column: str, run: Run, sample: Sample, *, rows: Sequence[int] = ROWS, lengths: Sequence[int] = LENGTHS
) -> tuple[list[Latency], list[str]]:
    """Every shape of one network in one runtime; and a line for each shape that could not be run, with the reason."""
    found, failures = [], []
    for length in [one for one in lengths if one in graph.lengths] or [0]:
        flops_a_row = flops_of(graph, sized(graph, sample, 1, length))
        for count in rows_of(graph, rows):
            inputs = sized(graph, sample, count, length)
            try:
                taken_ms = latency_of(lambda inputs=inputs: run(inputs))  # type: ignore[misc]
            except Exception as error:  # each runtime has exceptions of its own
                failures.append(f"{graph.name}, {column}, {count} rows of length {length}: {first_line(error)}")
                continue
            p50_ms, p99_ms = map(float, np.percentile(taken_ms, (50, 99)))
            flops = flops_a_row * count if graph.batches else flops_of(graph, inputs)
            found.append(Latency(graph.name, column, count, length, taken_ms.size, p50_ms, p99_ms, flops))
    return found, failures


def first_line(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['(no text)'])[0]}"
