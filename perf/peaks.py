"""What a machine can do at most: matrix products by the runtimes' own kernels, and memory by copies.

A peak is the best of repeated runs of a tiny graph, opened as the kit opens a variant. A type that the runtime computes
in another, by its own account of its kernels, has no peak of its own. Bandwidth is measured as STREAM measures it
(McCalpin, 1995, https://www.cs.virginia.edu/stream/): copy and triad over arrays of four times the last-level cache at
least, without what the processor reads of a line before it writes it.
"""

from __future__ import annotations

import functools
import math
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import psutil
import pydantic
import torch
from onnx import TensorProto, helper, numpy_helper

from perf.errors import PerfError
from perf.foreign_load import undisturbed
from perf.kit.rankers import OPSET
from perf.kit.runtimes import RUNTIMES, Precision, Runtime

Shape = tuple[int, int, int]
"""Of a product: rows, inner dimension, columns."""
TOKENS, HIDDEN, FEED_FORWARD = 1280, 384, 1536
"""32 candidates of 40 tokens through all-MiniLM-L6-v2's layers."""
SHAPES: tuple[Shape, ...] = (
    (TOKENS, HIDDEN, HIDDEN), (TOKENS, HIDDEN, FEED_FORWARD), (TOKENS, FEED_FORWARD, HIDDEN),
    (1024, 1024, 1024), (1024, 2048, 2048),
)  # fmt: skip
TYPES = ("fp32", "fp16", "bf16", "int8")
WARM_UP_RUNS, RUNS = 2, 10
CACHES = 4
"""Last-level caches that an array fills at least: STREAM's rule."""
LEAST_ARRAY_BYTES, MEMORY_SHARE = 128 * 2**20, 0.5
CACHE_FOLDERS = "/sys/devices/system/cpu/cpu*/cache/index*"
Activations = type[np.generic]
ACTIVATIONS: Mapping[str, tuple[Activations, ...]] = {"int8": (np.int8, np.uint8)}
"""Of an INT8 product, which runtimes have kernels of their own for each; the weights are signed."""
ELEMENT_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


class Peak(pydantic.BaseModel):
    """The fastest product of one type in one runtime.

    Attributes:
        threads: of a run.
        computed_in: the type that the runtime multiplies in; "" where it does not run such a graph.
        gops_per_s: 10^9 operations a second, a multiply-add being two; None where ``computed_in`` is another type.
        shape: rows, inner dimension and columns of the product that reached it.
        runs: over all shapes; the peak is the best of them.
        why: there is no figure; "" where there is one.
        foreign_share: of the machine's processor time that other programs took meanwhile, 0 to 1; None = no figure.
    """

    runtime: str
    type: str
    threads: int
    computed_in: str
    gops_per_s: float | None = None
    shape: Shape | None = None
    runs: int = 0
    why: str = ""
    foreign_share: float | None = None


class Bandwidth(pydantic.BaseModel):
    """Of memory.

    Attributes:
        copy_gb_per_s, triad_gb_per_s: 10^9 bytes a second, read and written, the best run.
        array_bytes: of each array.
        runs: of each of the two.
        foreign_share: as of :class:`Peak`.
    """

    device: str
    threads: int
    copy_gb_per_s: float
    triad_gb_per_s: float
    array_bytes: int
    runs: int
    foreign_share: float

    @property
    def bytes_per_s(self) -> float:
        """The better of the two."""
        return max(self.copy_gb_per_s, self.triad_gb_per_s) * 1e9


# ---------------------------------------------------------------- matrix products
def cpu_peaks(threads: int, shapes: Sequence[Shape] = SHAPES, runs: int = RUNS) -> Iterator[Peak]:
    """Of every type in every runtime that needs no GPU, in their order.

    Args:
        threads: of a run.
        runs: of each shape.
    """
    for runtime in RUNTIMES.values():
        for type_ in TYPES if not runtime.needs_gpu else ():
            yield cpu_peak(runtime, type_, threads, shapes, runs)


def cpu_peak(runtime: Runtime, type_: str, threads: int, shapes: Sequence[Shape] = SHAPES, runs: int = RUNS) -> Peak:
    """Of one type in one runtime; it says so where the runtime computes in another type, or refuses the graph."""
    peak = Peak(runtime=runtime.name, type=type_, threads=threads, computed_in="")
    with tempfile.TemporaryDirectory(prefix="tritonrank_peak_") as folder:
        try:
            computed_in = _computed_in(runtime, type_, shapes[0], Path(folder))
        except Exception as error:  # the runtimes' exceptions have no common base
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return peak.model_copy(update={"why": f"refused: {reason}"})
        forms = [activations for activations, found in computed_in.items() if found == type_]
        if not forms:
            found = next(iter(computed_in.values()))
            return peak.model_copy(update={"computed_in": found, "why": f"computed in {found} on this processor"})
        products = [(shape, activations) for shape in shapes for activations in forms]
        watched = undisturbed(functools.partial(_best_product, runtime, type_, threads, products, runs, Path(folder)))
    gops_per_s, shape = watched.found
    measured = {"gops_per_s": gops_per_s, "shape": shape, "runs": runs * len(products)}
    return peak.model_copy(update={"computed_in": type_, **measured, "foreign_share": watched.foreign_share})


def _computed_in(runtime: Runtime, type_: str, shape: Shape, folder: Path) -> dict[Activations, str]:
    """Type of the activations => the type that the runtime multiplies such a tiny graph in. Raises: PerfError."""
    assert runtime.computes_in is not None, runtime.name
    found = {}
    for activations in ACTIVATIONS.get(type_, (np.float32,)):
        path = _written(runtime, type_, shape, activations, folder)
        types = runtime.computes_in(path, _asked(runtime, type_), _sample(shape))
        if len(types) != 1:
            raise PerfError(f"{path.name}: kernels of {sorted(types) or 'no product'}, wanted those of one product")
        found[activations] = next(iter(types))
    return found


def _best_product(
    runtime: Runtime,
    type_: str,
    threads: int,
    products: Sequence[tuple[Shape, Activations]],
    runs: int,
    folder: Path,
) -> tuple[float, Shape]:
    """10^9 operations a second, and the shape that reached them."""
    found = []
    for shape, activations in products:
        path = _written(runtime, type_, shape, activations, folder)
        session = runtime.open(path, threads, _asked(runtime, type_))
        fastest_s = best_s(functools.partial(session.run, _sample(shape)), runs)
        found.append((2.0 * math.prod(shape) / fastest_s / 1e9, shape))
    return max(found)


def best_s(run: Callable[[], object], runs: int = RUNS) -> float:
    """Seconds of the fastest run, after a warm-up."""
    for _ in range(WARM_UP_RUNS):
        run()
    return min(_seconds(run) for _ in range(runs))


def _seconds(run: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    run()
    return time.perf_counter() - start_s


def _asked(runtime: Runtime, type_: str) -> Precision:
    """What the kit asks the runtime for, beside the graph's own types, where a variant is of this type."""
    return next((precision for precision in runtime.precisions if precision == type_), "fp32")


def _written(runtime: Runtime, type_: str, shape: Shape, activations: Activations, folder: Path) -> Path:
    """The tiny graph in the runtime's own form: OpenVINO computes an FP32 graph in BF16 by a hint."""
    source = folder / f"{type_}.onnx"
    by_hint = type_ == "bf16" and _asked(runtime, type_) == "bf16"
    onnx.save(product_graph(shape, "fp32" if by_hint else type_, activations), source)
    if runtime.converts is None:
        return source
    target = source.with_suffix(runtime.suffix)
    runtime.converts(source, target, "fp32")
    return target


def product_graph(shape: Shape, type_: str, activations: Activations = np.int8) -> onnx.ModelProto:
    """x float32 [rows, inner] => y float32 [rows, columns]: one product with constant weights.

    Of ``int8`` with explicit Q/DQ pairs, a scale a column; of ``fp16`` and ``bf16`` between casts.
    """
    rows, inner, columns = shape
    weights = np.random.default_rng(0).normal(size=(inner, columns)).astype(np.float32)
    nodes, constants = (
        _quantized(weights, activations) if type_ == "int8" else _cast(weights, ELEMENT_TYPES[type_], type_)
    )
    graph = helper.make_graph(
        nodes,
        f"product_{type_}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, columns])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _quantized(weights: np.ndarray, activations: Activations) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    columns = weights.shape[1]
    scale = np.abs(weights).max(axis=0) / 127
    constants = {
        "w_bytes": np.round(weights / scale).astype(np.int8),
        "w_scale": scale,
        "w_zero": np.zeros(columns, np.int8),
        "x_scale": np.array(0.03, np.float32),
        "x_zero": np.array(128 if activations is np.uint8 else 0, activations),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_bytes"]),
        helper.make_node("DequantizeLinear", ["x_bytes", "x_scale", "x_zero"], ["x_back"]),
        helper.make_node("DequantizeLinear", ["w_bytes", "w_scale", "w_zero"], ["w"], axis=1),
        helper.make_node("MatMul", ["x_back", "w"], ["y"]),
    ]
    return nodes, [numpy_helper.from_array(array, name) for name, array in constants.items()]


def _cast(weights: np.ndarray, element: int, type_: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    if type_ == "fp32":
        return [helper.make_node("MatMul", ["x", "w"], ["y"])], [numpy_helper.from_array(weights, "w")]
    nodes = [
        helper.make_node("Cast", ["x"], ["x_cast"], to=element),
        helper.make_node("MatMul", ["x_cast", "w"], ["y_cast"]),
        helper.make_node("Cast", ["y_cast"], ["y"], to=TensorProto.FLOAT),
    ]
    dtype = helper.tensor_dtype_to_np_dtype(element)
    return nodes, [numpy_helper.from_array(weights.astype(dtype), "w")]


@functools.lru_cache(maxsize=1)
def _sample(shape: Shape) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=shape[:2]).astype(np.float32)}


# ---------------------------------------------------------------- memory
def bandwidth(threads: int, device: str = "cpu", array_bytes: int = 0, runs: int = RUNS) -> Bandwidth:
    """Copy ``a = b`` and triad ``a = b + s c`` of float32 arrays by torch.

    Args:
        threads: of the processor; without meaning for a GPU.
        device: torch's.
        array_bytes: of each of three arrays; 0 = four times the last-level cache, and 128 MiB at least.

    Raises:
        PerfError: the arrays would take more than half of the memory that is free.
    """
    array_bytes = array_bytes or max(CACHES * last_level_cache_bytes(), LEAST_ARRAY_BYTES)
    free = psutil.virtual_memory().available
    if device == "cpu" and 3 * array_bytes > MEMORY_SHARE * free:
        raise PerfError(
            f"three arrays of {array_bytes / 2**20:,.0f} MiB, four last-level caches each, would take more than half "
            f"of the {free / 2**20:,.0f} MiB of memory that are free; free some, and run it again"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        watched = undisturbed(functools.partial(_copied, device, array_bytes, runs))
    finally:
        torch.set_num_threads(before)
    copy_s, triad_s = watched.found
    return Bandwidth(
        device=device,
        threads=threads,
        copy_gb_per_s=2 * array_bytes / copy_s / 1e9,
        triad_gb_per_s=3 * array_bytes / triad_s / 1e9,
        array_bytes=array_bytes,
        runs=runs,
        foreign_share=watched.foreign_share,
    )


def _copied(device: str, array_bytes: int, runs: int) -> tuple[float, float]:
    """Seconds of a copy and of a triad."""
    a, b, c = (torch.ones(array_bytes // 4, dtype=torch.float32, device=device) for _ in range(3))

    def finished(run: Callable[[], object]) -> None:
        run()
        if device != "cpu":
            torch.cuda.synchronize()

    copy_s = best_s(lambda: finished(lambda: a.copy_(b)), runs)
    return copy_s, best_s(lambda: finished(lambda: torch.add(b, c, alpha=3.0, out=a)), runs)


def last_level_cache_bytes(folders: Collection[Path] | None = None) -> int:
    """Of all last-level caches together, as Linux tells them; 0 where it does not.

    Args:
        folders: one a cache and processor; None = this machine's.
    """
    caches: dict[tuple[int, str], int] = {}
    for folder in Path("/").glob(CACHE_FOLDERS[1:]) if folders is None else folders:
        level, size, shared = (_text(folder / name) for name in ("level", "size", "shared_cpu_list"))
        if level.isdigit() and size.endswith("K"):
            caches[int(level), shared] = int(size[:-1]) * 1024
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
