"""An ONNX model on disk: one file, or one with the weights in a second file beside it, as protobuf ends at 2 GiB.

The second file's name stands in the first, so the two move together and keep their names. Knows nothing of what a
model computes.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from builders.core.errors import BuilderError
from builders.core.files import fingerprint, sha256, write_atomically

if TYPE_CHECKING:
    import onnx

ONE_FILE_BYTES = 3 * 2**29
"""Bytes of weights up to which a model is one file: 1.5 GiB leaves room for the graph below protobuf's 2 GiB."""
DATA_SUFFIX = ".data"
"""Of the file beside a model, after the model's own name."""
_SMALL_BYTES = 1024
"""Tensors up to this stay in the graph's own file: shapes and scalars, which shape inference reads."""

_PAGE_BYTES = 4096
"""Of a memory map, at whose multiples weights begin."""


class OnnxFileError(BuilderError):
    """An ONNX model's files cannot be read together, or a step cannot do with one of that size."""


def load_model(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """weights: False leaves unread what lies beside. Raises: OnnxFileError: a file beside it is missing."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    if weights:
        _check_beside(path, model)
        onnx.load_external_data_for_model(model, str(path.parent))
    return model


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """One file, or two where the weights are more than ONE_FILE_BYTES; written beside and renamed."""
    if fits_one_file(model):
        write_atomically(path, model.SerializeToString())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as scratch:
        _write_two(model, Path(scratch) / path.name)
        move_model(Path(scratch) / path.name, path)


def move_model(fresh: Path, path: Path) -> None:
    """Rename a model that is alone in its folder, the data first: without it the model cannot be read."""
    for file in sorted(fresh.parent.iterdir(), key=lambda file: file.name == fresh.name):
        file.chmod(0o644)
        file.replace(path.with_name(file.name))


def copy_model(source: Path, target: Path) -> None:
    """The same model under another name, in as many files as its size asks for."""
    if external_files(source) or source.stat().st_size > ONE_FILE_BYTES:
        save_model(load_model(source), target)
    else:
        write_atomically(target, source.read_bytes())


def external_files(path: Path) -> dict[str, Path]:
    """What lies beside the model: file name, as the model refers to it => file. Empty for one file.

    Raises:
        OnnxFileError: one is not there.
    """
    model = load_model(path, weights=False)
    _check_beside(path, model)
    return {name: path.with_name(name) for name in _locations(model)}


def model_files(path: Path) -> list[Path]:
    """All that the model consists of, its own file first. Raises: OnnxFileError, as :func:`external_files`."""
    return [path, *external_files(path).values()]


def model_sha256(path: Path) -> str:
    """Of one file its SHA-256; of several something that changes with each."""
    own, *others = model_files(path)
    return fingerprint(map(sha256, (own, *others))) if others else sha256(own)


def is_large(path: Path) -> bool:
    """Whether libraries have to be told that a model does not fit into one file."""
    return sum(file.stat().st_size for file in model_files(path)) > ONE_FILE_BYTES


def fits_one_file(model: onnx.ModelProto) -> bool:
    """Whether the model can be one protobuf message, in memory or on disk."""
    return weight_bytes(model) <= ONE_FILE_BYTES


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the initializers of the main graph, as far as they are in memory."""
    return sum(_held_bytes(tensor) for tensor in model.graph.initializer)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, or where it is large one whose larger initializers have types and shapes alone: inference of types
    serializes what it is given."""
    return model if fits_one_file(model) else _with_initializers(model, map(_stub, model.graph.initializer))


@contextlib.contextmanager
def as_file(model: onnx.ModelProto) -> Iterator[Path]:
    """The model in a folder that goes when the block ends."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        save_model(model, path)
        yield path


def refuse_large(model: onnx.ModelProto, what: str) -> None:
    """Raises: OnnxFileError: ``what`` has to serialize the model, whose weights are more than ONE_FILE_BYTES."""
    if not fits_one_file(model):
        found, wanted = weight_bytes(model) / 2**30, ONE_FILE_BYTES / 2**30
        raise OnnxFileError(
            f"{what} takes a model as one protobuf message, whose limit is 2 GiB; this one has {found:.1f} GiB of "
            f"weights, wanted at most {wanted:.1f}. Make it smaller first (prune_layers, distill, int8), or leave the "
            "step out"
        )


def _write_two(model: onnx.ModelProto, path: Path) -> None:
    """Leaves the model in memory as it is. onnx's own writer takes the weights out of it, and protobuf gives their
    memory back only with the whole model."""
    data = path.with_name(path.name + DATA_SUFFIX)
    stored = []
    with data.open("wb") as file:
        for tensor in model.graph.initializer:
            stub = _stub(tensor)
            if stub is not tensor:
                offset = file.seek(-(-file.tell() // _PAGE_BYTES) * _PAGE_BYTES)
                place = {"location": data.name, "offset": offset, "length": file.write(tensor.raw_data)}
                for key, value in place.items():
                    stub.external_data.add(key=key, value=str(value))
            stored.append(stub)
    path.write_bytes(_with_initializers(model, stored).SerializeToString())


def _with_initializers(model: onnx.ModelProto, tensors: Iterable[onnx.TensorProto]) -> onnx.ModelProto:
    """A copy of all but the initializers, with these in their place."""
    from onnx import helper

    own = model.graph
    graph = helper.make_graph(own.node, own.name, own.input, own.output, list(tensors), value_info=own.value_info)
    copy = helper.make_model(
        graph,
        ir_version=model.ir_version,
        opset_imports=model.opset_import,
        functions=model.functions,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
    )
    copy.metadata_props.extend(model.metadata_props)
    return copy


def _stub(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Its name, type and shape, its data said to lie elsewhere; a small tensor itself."""
    import onnx

    if len(tensor.raw_data) <= _SMALL_BYTES:
        return tensor
    return onnx.TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=onnx.TensorProto.EXTERNAL
    )


def _held_bytes(tensor: onnx.TensorProto) -> int:
    return len(tensor.raw_data) if tensor.HasField("raw_data") else int(tensor.ByteSize())


def _locations(model: onnx.ModelProto) -> list[str]:
    """Names of the files that initializers lie in."""
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    found = (ExternalDataInfo(tensor).location for tensor in model.graph.initializer if uses_external_data(tensor))
    return list(dict.fromkeys(found))


def _check_beside(path: Path, model: onnx.ModelProto) -> None:
    missing = [name for name in _locations(model) if not path.with_name(name).is_file()]
    if missing:
        raise OnnxFileError(
            f"{path}: its weights lie in {', '.join(missing)}, which is not beside it; copy it there under that name, "
            "or remove the model and build it anew"
        )
