"""`python -m tests.support.build_small_plans FOLDER`: small graphs => plans by builders.engines.build, told as JSON.

Run with the TensorRT of tensorrt_cpu.py: what is asked of it is what
:func:`builders.engines.build.engine_from_onnx` asks, but for loading the plan, which needs a GPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import tensorrt
from onnx import helper

from builders.compress.fp16 import fp16_from_onnx
from builders.core.errors import BuilderError
from builders.engines.build import BuildOptions, Precision, _as_read_by, _plan, check_graph_types, engine_from_onnx
from builders.engines.profiles import Profile
from tests.support.small_graphs import WIDTH, masked_attention_model, quantized_model, sample

ROWS = (1, 40, 64)


def main(folder: Path) -> dict[str, Any]:
    """Precision => bytes of its plan; what was refused => the error."""
    files = written(folder)
    found: dict[str, Any] = {"tensorrt": tensorrt.__version__}
    cache = folder / "timing.cache"
    for precision, path in files.items():
        found[precision] = len(plan_of(path, precision, profiles(path), cache))
    found["timing cache"] = cache.stat().st_size
    found["optimization level 0"] = len(
        plan_of(files["fp32"], "fp32", profiles(files["fp32"]), None, optimization_level=0, tf32=False)
    )
    unknown = onnx.load(files["fp32"])
    unknown.graph.node[0].CopyFrom(helper.make_node("Unheard", ["x"], ["product"], domain="of.nobody"))
    found["unknown operator"] = error_of(
        lambda: _plan(tensorrt, unknown, profiles(files["fp32"]), BuildOptions(), None)
    )
    other = [Profile({"x": ((1, 3), (1, 3), (1, 3))})]
    found["profile of another shape"] = error_of(lambda: plan_of(files["int8"], "int8", other, None))
    found["no gpu"] = error_of(
        lambda: engine_from_onnx(files["fp32"], folder / "model.plan", profiles(files["fp32"]), BuildOptions())
    )
    return found


def written(folder: Path) -> dict[Precision, Path]:
    """The small graphs of each precision, FP16 by the project's converter, INT8 with explicit Q/DQ."""
    files: dict[Precision, Path] = {one: folder / f"{one}.onnx" for one in ("fp32", "fp16", "int8", "mixed")}
    onnx.save(masked_attention_model(), files["fp32"])
    fp16_from_onnx(files["fp32"], files["fp16"], [sample()])
    onnx.save(quantized_model(), files["int8"])
    fp16_from_onnx(files["int8"], files["mixed"], [{"x": sample()["x"]}])
    return files


def profiles(path: Path) -> list[Profile]:
    """Two, of every input."""
    names = [value.name for value in onnx.load(path).graph.input]
    largest = Profile(dict.fromkeys(names, tuple((rows, WIDTH) for rows in ROWS)))  # type: ignore[arg-type]
    return [largest, Profile(dict.fromkeys(names, ((1, WIDTH), (1, WIDTH), (2, WIDTH))))]


def plan_of(path: Path, precision: Precision, wanted: list[Profile], cache: Path | None, **options: Any) -> bytes:
    """As ``engine_from_onnx`` up to the plan."""
    model = onnx.load(path)
    check_graph_types(model, precision, path.name)
    model = _as_read_by(tensorrt, model, path.name)
    return _plan(tensorrt, model, wanted, BuildOptions(precision=precision, **options), cache)


def error_of(call: Any) -> str:
    """The project's error, empty where there was none."""
    try:
        call()
    except BuilderError as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
