"""What a GPU can do at most: matrix products by TensorRT engines of tiny graphs, and its memory by copies of torch's.

The engines are built as the kit builds a variant's. Inputs and outputs stay on the GPU, so that the link to the host is
no part of a peak. No GPU has run this module yet.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch

from builders.core.onnx_files import model_sha256
from builders.core.workspace import Workspace
from builders.engines.build import BuildOptions, Precision, engine_from_onnx, missing_reason
from builders.engines.profiles import Profile
from builders.export.plan_manifest import manifest_path, read_manifest
from perf.errors import PerfError
from perf.foreign_load import undisturbed
from perf.gpu_figures import first_line
from perf.peaks import RUNS, Bandwidth, Peak, Shape, bandwidth, best_s, product_graph

SHAPES: tuple[Shape, ...] = ((4096, 384, 1536), (4096, 1536, 384), (4096, 4096, 4096), (8192, 8192, 8192))
TYPES: dict[str, Precision] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}
"""Type of the graph => what the engine must turn out to be: the kit builds no BF16 engines."""
ARRAY_BYTES = 2**30
TRT = "trt"


def missing_gpu() -> str:
    """Why this machine's GPU is not measured; empty where it can be."""
    if reason := missing_reason():
        return reason
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA GPU"
    return "" if importlib.util.find_spec("polygraphy") else "package polygraphy is not installed here"


def gpu_bandwidth() -> Bandwidth:
    """Of the GPU's own memory."""
    return bandwidth(0, "cuda", ARRAY_BYTES)


def gpu_peaks() -> Iterator[Peak]:
    """Of every type that the kit builds engines of; FP32 as the kit builds it, which lets TensorRT use TF32."""
    for type_, precision in TYPES.items():
        try:
            watched = undisturbed(functools.partial(_fastest, type_, precision))
        except Exception as error:  # TensorRT and Polygraphy have exceptions of their own
            yield Peak(runtime=TRT, type=type_, threads=0, computed_in="", why=f"refused: {first_line(error)}")
            continue
        gops_per_s, shape = watched.found
        yield Peak(
            runtime=TRT,
            type=type_,
            threads=0,
            computed_in=type_,
            gops_per_s=gops_per_s,
            shape=shape,
            runs=RUNS * len(SHAPES),
            foreign_share=watched.foreign_share,
        )


def _fastest(type_: str, precision: Precision) -> tuple[float, Shape]:
    return max(_product(type_, precision, shape) for shape in SHAPES)


def _product(type_: str, precision: Precision, shape: Shape) -> tuple[float, Shape]:
    """10^9 operations a second of one shape, and the shape. The build refuses a plan of another precision."""
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    rows, inner, columns = shape
    with tempfile.TemporaryDirectory(prefix="tritonrank_peak_") as name:
        source, plan = Path(name) / "product.onnx", Path(name) / "product.plan"
        onnx.save(product_graph(shape, type_), source)
        fixed = Profile({"x": ((rows, inner), (rows, inner), (rows, inner))})
        engine_from_onnx(source, plan, [fixed], BuildOptions(precision=precision))
        x = torch.randn(rows, inner, device="cuda")
        with TrtRunner(EngineFromBytes(BytesFromPath(str(plan)))) as runner:

            def run() -> None:
                runner.infer({"x": x}, copy_outputs_to_host=False, check_inputs=False)
                torch.cuda.synchronize()

            return 2.0 * rows * inner * columns / best_s(run) / 1e9, shape


def onnx_of_plan(plan: Path, workspace: Workspace) -> Path:
    """The ONNX file that a published plan was built from: its operations are counted by that. Raises: PerfError."""
    wanted = read_manifest(plan).onnx_sha256
    for path in sorted(workspace.build.rglob("*.onnx")):
        if model_sha256(path) == wanted:
            return path
    raise PerfError(
        f"{manifest_path(plan)}: built from an ONNX file of SHA-256 {wanted[:12]}..., which is not in "
        f"{workspace.build}; run 'make export build-engines'"
    )
