"""TensorRT loads, sees the GPU, builds a small engine by the project's own code, and the drop-in's engine runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builders.engines.build import BuildOptions, Precision, engine_from_onnx
from builders.engines.profiles import Profile
from deploy.airgap.stages.common import TACTICS, TARGET, Results, opened, use_drop_in

DTYPES: dict[Precision, type[np.floating]] = {"fp32": np.float32, "fp16": np.float16}
WIDTH, OUTPUTS, ROWS = 64, 32, 5


def main() -> None:
    """A matrix product in FP32 and in FP16."""
    results = Results("smoke")
    with results.part("versions"):
        import polygraphy
        import tensorrt

        results.put("tensorrt", tensorrt.__version__)
        results.put("polygraphy", polygraphy.__version__)
    results.require_gpu()
    use_drop_in()
    folder = TARGET / "smoke"
    folder.mkdir(exist_ok=True)
    for precision in DTYPES:
        with results.part(f"engine {precision}"):
            build_and_run(results, folder, precision)
    results.put("done", not any(key.endswith("error") for key in results.found))


def build_and_run(results: Results, folder: Path, precision: Precision) -> None:
    """Put down the manifest, and how far the engine is from NumPy."""
    model, plan = small_graph(DTYPES[precision]), folder / f"{precision}.plan"
    onnx.save(model, folder / f"{precision}.onnx")
    profiles = [Profile({"x": ((1, WIDTH), (8, WIDTH), (16, WIDTH))})]
    options = BuildOptions(precision=precision, tactic_sources=TACTICS)
    manifest = engine_from_onnx(folder / f"{precision}.onnx", plan, profiles, options)
    layers = dict(manifest.layer_precisions)
    found = {"seconds": manifest.build_seconds, "bytes": manifest.plan_bytes, "layers": layers}
    results.put(f"manifest {precision}", found)
    x = np.random.default_rng(1).normal(size=(ROWS, WIDTH)).astype(np.float32)
    with opened(plan) as (engine, profiles_of_plan, _):
        y = engine.run(profiles_of_plan[0], {"x": x})["y"]
    weights = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float32)
    results.put(f"difference {precision}", float(np.abs(y - np.maximum(x @ weights, 0)).max()))


def small_graph(dtype: type[np.floating]) -> onnx.ModelProto:
    """x float32 [rows, 64] => y float32 [rows, 32] = relu(x W): the least that has a matrix product."""
    drawn = np.random.default_rng(0).normal(size=(WIDTH, OUTPUTS)).astype(dtype)
    half = dtype is np.float16
    nodes = [
        *([helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16)] if half else []),
        helper.make_node("MatMul", ["h" if half else "x", "w"], ["m"], name="product"),
        helper.make_node("Relu", ["m"], ["r" if half else "y"], name="relu"),
        *([helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT)] if half else []),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
            for name, size in (("x", WIDTH), ("y", OUTPUTS)))  # fmt: skip
    graph = helper.make_graph(nodes, "small", [x], [y], [numpy_helper.from_array(drawn, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    main()
