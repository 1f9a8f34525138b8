"""A ranker's graph => ONNX, with the proof that it computes the same.

Knows nothing of Triton, of TensorRT or of how a request is made.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from builders.core import onnx_files
from builders.core.contract import Contract, ContractError, Tensor
from builders.core.files import write_atomically
from builders.core.versions import OPSET
from builders.export.operators import TRANSLATIONS, simplify
from builders.export.parity import ParityReport, check_parity
from builders.rankers.base import Graph, Sample

PARITY_ATOL = 1e-4
_ELEMENT_TYPES = {
    "BOOL": onnx.TensorProto.BOOL,
    "INT8": onnx.TensorProto.INT8,
    "INT32": onnx.TensorProto.INT32,
    "INT64": onnx.TensorProto.INT64,
    "FP16": onnx.TensorProto.FLOAT16,
    "FP32": onnx.TensorProto.FLOAT,
    "BYTES": onnx.TensorProto.STRING,
}


def onnx_from_ranker(graph: Graph, example: Sample, path: Path) -> None:
    """Export with torch's exporter (or as the graph itself says), free dimensions named as in the contract.

    Args:
        graph: module and contract.
        example: one real request; rows of which there is one stand there twice.
        path: written beside and renamed; with more than ONE_FILE_BYTES of weights there is a second file beside it.

    Raises:
        ContractError: the exported graph's tensors are not the contract's.
    """
    if graph.write_onnx is not None:
        graph.write_onnx(path)
        check_tensors(onnx.load(path, load_external_data=False), graph.contract)
        return
    tensors = graph.contract.inputs
    example = _two_rows(example, graph.row_inputs)
    with _quiet_exporter():
        program = torch.onnx.export(
            graph.module,
            tuple(torch.from_numpy(example[tensor.name]) for tensor in tensors),
            dynamo=True,
            input_names=[tensor.name for tensor in tensors],
            output_names=[tensor.name for tensor in graph.contract.outputs],
            dynamic_shapes=_as_arguments(graph, [_free_dimensions(tensor) for tensor in tensors]),
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ContractError(f"{graph.name}: torch.onnx.export returned nothing; wanted an ONNX program")
    simplify(program.model)
    if _weight_bytes(program) > onnx_files.ONE_FILE_BYTES:
        _save_large(program, graph.contract, path)
        return
    model = program.model_proto
    check_tensors(model, graph.contract)
    onnx.checker.check_model(model)
    write_atomically(path, model.SerializeToString())


def _weight_bytes(program: torch.onnx.ONNXProgram) -> int:
    return sum(one.const_value.nbytes for one in program.model.graph.initializers.values() if one.const_value)


def _save_large(program: torch.onnx.ONNXProgram, contract: Contract, path: Path) -> None:
    """By torch's own writer, which copies no weights; checked by path, as a message of that size cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as scratch:
        fresh = Path(scratch) / path.name
        program.save(fresh, external_data=True)
        check_tensors(onnx_files.load_model(fresh, weights=False), contract)
        onnx.checker.check_model(fresh)
        onnx_files.move_model(fresh, path)


def check_tensors(model: onnx.ModelProto, contract: Contract) -> None:
    """Raises: ContractError when names, dtypes or dimensions of the graph are not the contract's."""
    faults = [
        *_disagreements("input", model.graph.input, contract.inputs),
        *_disagreements("output", model.graph.output, contract.outputs),
    ]
    if faults:
        raise ContractError(
            f"{contract.name}: " + "; ".join(faults) + ". Mend forward() or the contract, then 'make export'"
        )


def check_onnx(graph: Graph, path: Path, samples: Sequence[Sample]) -> list[ParityReport]:
    """Run torch and ONNX Runtime on the same samples, in parts where the server does: one report a part.

    Args:
        samples: real requests at the smallest, the usual and the largest shapes.

    Raises:
        ParityError: names, shapes or values differ (more than PARITY_ATOL), or a value is not finite.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = (part for sample in samples for part in graph.parts(sample))
    return [check_parity(run_torch(graph, part), run_onnx(session, part), atol=PARITY_ATOL) for part in parts]


def run_torch(graph: Graph, sample: Sample) -> Sample:
    """Output name => array, from the module itself."""
    with torch.inference_mode():
        result = graph.module(*(torch.from_numpy(sample[tensor.name]) for tensor in graph.contract.inputs))
    outputs = result if isinstance(result, tuple) else (result,)
    return {tensor.name: output.numpy() for tensor, output in zip(graph.contract.outputs, outputs, strict=True)}


def run_onnx(session: onnxruntime.InferenceSession, sample: Sample) -> Sample:
    """Output name => array, from ONNX Runtime."""
    names = [output.name for output in session.get_outputs()]
    wanted = {tensor.name for tensor in session.get_inputs()}
    arrays: list[np.ndarray] = session.run(names, {name: sample[name] for name in wanted})
    return dict(zip(names, arrays, strict=True))


def _two_rows(sample: Sample, row_inputs: Collection[str]) -> Sample:
    """The exporter takes a dimension of 1 for a constant."""
    return {
        name: np.concatenate([array, array])[: max(2, len(array))] if name in row_inputs else array
        for name, array in sample.items()
    }


def _free_dimensions(tensor: Tensor) -> dict[int, torch.export.Dim]:
    return {axis: torch.export.Dim(dim, min=1) for axis, dim in enumerate(tensor.dims) if isinstance(dim, str)}


def _as_arguments(graph: Graph, of_inputs: list[Any]) -> tuple[Any, ...]:
    """One entry an argument of ``forward``; those that ``*tensors`` takes are one."""
    parameters = list(inspect.signature(graph.module.forward).parameters.values())
    named = sum(parameter.kind is not parameter.VAR_POSITIONAL for parameter in parameters)
    takes_any = named < len(parameters)
    return (*of_inputs[:named], tuple(of_inputs[named:])) if takes_any else tuple(of_inputs)


def _disagreements(kind: str, found: Sequence[onnx.ValueInfoProto], wanted: Sequence[Tensor]) -> Iterator[str]:
    by_name = {value.name: value for value in found}
    for name in by_name.keys() - {tensor.name for tensor in wanted}:
        yield f"{kind} '{name}' is not in the contract"
    for tensor in wanted:
        if tensor.name not in by_name:
            yield f"{kind} '{tensor.name}' is missing, the graph has {', '.join(by_name) or 'none'}"
            continue
        value = by_name[tensor.name].type.tensor_type
        if value.elem_type != _ELEMENT_TYPES[tensor.dtype]:
            found_type = onnx.TensorProto.DataType.Name(value.elem_type)
            yield f"{kind} '{tensor.name}' has dtype {found_type}, wanted {tensor.dtype}"
        shape = tuple(dim.dim_param or dim.dim_value for dim in value.shape.dim)
        if not _same_dims(shape, tensor.dims):
            yield f"{kind} '{tensor.name}' has dimensions {list(shape)}, wanted {list(tensor.dims)}"


def _same_dims(found: tuple[str | int, ...], wanted: tuple[str | int, ...]) -> bool:
    """Free against free and equal against equal; the exporter may rename a free dimension that it derives."""
    if len(found) != len(wanted):
        return False
    return all(isinstance(a, str) if isinstance(b, str) else a == b for a, b in zip(found, wanted, strict=True))


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns at length of torchvision operators that no ranker has."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
