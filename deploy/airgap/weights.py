"""Large weights of several ONNX files, each array kept once, its bytes sorted by place: that is what xz makes least of.

Needs onnx and numpy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

LARGE = 2**14
MAX_PATCHES = 64
TABLE, STREAM = "weights.json", "weights.bin"


def split(files: Sequence[Path], folder: Path) -> None:
    """Take the large weights out of the files; FP32 files must come with those that hold the same in FP16."""
    arrays: list[np.ndarray] = []
    uses: dict[str, list] = {path.name: [] for path in files}
    models = {path: onnx.load(path) for path in files}
    for dtype in (np.float32, np.int8, np.float16):  # FP16 last: it looks for its FP32 original
        for path, model in models.items():
            for place, tensor in enumerate(model.graph.initializer):
                if tensor.data_type != helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) or np.prod(tensor.dims) < LARGE:
                    continue
                array = numpy_helper.to_array(tensor)
                uses[path.name].append([place, tensor.name, list(array.shape), *_kept(arrays, array)])
                for field in ("raw_data", "float_data", "int32_data"):
                    tensor.ClearField(field)
    for path, model in models.items():
        path.write_bytes(model.SerializeToString())
    (folder / TABLE).write_text(json.dumps({"arrays": [[str(a.dtype), list(a.shape)] for a in arrays], "uses": uses}))
    (folder / STREAM).write_bytes(b"".join(_by_place(array) for array in arrays))


def join(folder: Path) -> None:
    """Put them back."""
    table = json.loads((folder / TABLE).read_text())
    stream, place, arrays = (folder / STREAM).read_bytes(), 0, []
    for dtype, shape in table["arrays"]:
        array = np.empty(shape, dtype=dtype)
        planes = np.frombuffer(stream, np.uint8, array.nbytes, place).reshape(array.itemsize, -1)
        array.view(np.uint8).reshape(-1, array.itemsize)[:] = planes.T if array.size else 0
        arrays.append(array)
        place += array.nbytes
    for name, uses in table["uses"].items():
        model = onnx.load(folder / name)
        for position, tensor_name, shape, index, how, patches in uses:
            array = arrays[index].T if how.startswith("transposed") else arrays[index]
            array = np.ascontiguousarray(array.astype(np.float16)) if how.endswith("fp16") else array
            for place, value in patches:
                array.ravel()[place] = value
            tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(shape), tensor_name)
            model.graph.initializer[position].CopyFrom(tensor)
        onnx.save(model, folder / name)
    (folder / TABLE).unlink()
    (folder / STREAM).unlink()


def _kept(arrays: list[np.ndarray], array: np.ndarray) -> tuple[int, str, list]:
    """Place among the arrays, how to make it of that one, and [flat place, value] where it is another all the same:
    converters to FP16 lift what would become 0."""
    for index, other in enumerate(arrays):
        if other.dtype == array.dtype and other.shape == array.shape and np.array_equal(other, array):
            return index, "same", []
        if array.dtype == np.float16 and other.dtype == np.float32 and other.size == array.size:
            for how, source in (("fp16", other), ("transposed fp16", other.T)):
                if source.shape == array.shape:
                    differ = np.flatnonzero(source.astype(np.float16) != array)
                    if len(differ) <= MAX_PATCHES:
                        return index, how, [[int(place), float(array.ravel()[place])] for place in differ]
    arrays.append(np.ascontiguousarray(array))
    return len(arrays) - 1, "same", []


def _by_place(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array.view(np.uint8).reshape(-1, array.itemsize).T).tobytes()


if __name__ == "__main__":
    join(Path(sys.argv[1]))
