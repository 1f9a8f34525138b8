"""A ``.pt2`` of ``torch.export``: its own graph is the network, exported to ONNX as any ranker's is."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from builders.core.contract import MAX_CANDIDATES
from builders.core.recipe import Recipe
from builders.features.encoder import Feature
from builders.rankers.backbone import CheckpointError
from builders.rankers.imported.declared_inputs import Dims, FileTensor, Fitted, chosen_output, fitted
from builders.rankers.imported.file_ranker import FileModule, FileRanker

_NAMES = {
    torch.int32: "INT32", torch.int64: "INT64", torch.float32: "FP32", torch.float16: "FP16", torch.float64: "FP64",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_TRAINS = {"dropout": 2, "batch_norm": 5}
"""Operator => place of the argument that says whether it trains."""
_FREE = 'torch.export.export(model.eval(), args, dynamic_shapes={"<input>": {0: torch.export.Dim("rows")}, ...})'


def load_program(path: Path) -> ExportedProgram:
    """Raises: CheckpointError: not whole, or it holds pickles of more than tensors."""
    _check_pickles(path)
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises whatever it meets
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
        raise CheckpointError(
            f"{path}: torch {torch.__version__} cannot load it ({type(error).__name__}: {lines[0]}); export it anew "
            "with this version's torch.export.save"
        ) from error


def _check_pickles(path: Path) -> None:
    """torch.export.load would run what a pickle says; here each is read as tensors alone first."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        code = [name for name in names if Path(name).name.startswith(("custom_obj_", "opaque_obj_"))]
        if code:
            raise CheckpointError(f"{path}: holds {code[0]}, an object of code; wanted a program of tensors alone")
        for name in (*(name for name in names if "/data/sample_inputs/" in name), *_pickled(archive, names)):
            try:
                torch.load(io.BytesIO(archive.read(name)), map_location="meta", weights_only=True)
            except Exception as error:  # pickle and zipfile raise what they meet
                raise CheckpointError(
                    f"{path}: {name} is no pickle of tensors alone ({type(error).__name__}); export it anew from a "
                    "model whose weights, constants and sample inputs are tensors"
                ) from error


def _pickled(archive: zipfile.ZipFile, names: Sequence[str]) -> Iterator[str]:
    """Weights and constants that are kept as pickles."""
    for config in (name for name in names if name.endswith(("weights_config.json", "constants_config.json"))):
        for payload in json.loads(archive.read(config)).get("config", {}).values():
            if payload.get("use_pickle"):
                yield str(Path(config).parent / payload["path_name"])


def inputs_of(program: ExportedProgram) -> list[FileTensor]:
    """In the order of its arguments."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    return [_file_tensor(name, values[name]) for name in program.graph_signature.user_inputs if isinstance(name, str)]


def outputs_of(program: ExportedProgram) -> list[FileTensor]:
    """By the keys of a dict, else by their places: "0" is the first."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    spec = program.call_spec.out_spec
    keys = spec.context if spec is not None and spec.type is dict else None
    names = program.graph_signature.user_outputs
    return [
        _file_tensor(str(keys[place] if keys else place), values.get(str(name))) for place, name in enumerate(names)
    ]


def _file_tensor(name: str, value: Any) -> FileTensor:
    if not isinstance(value, torch.Tensor):
        return FileTensor(name, type(value).__name__, ())
    dims: Dims = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return FileTensor(name, _NAMES.get(value.dtype, str(value.dtype).removeprefix("torch.")), dims)


class ProgramModule(FileModule):
    """The program's own module, with the features' tensors in and the score out."""

    def __init__(self, program: ExportedProgram, inputs: Sequence[Fitted], output: int, heads: int) -> None:
        super().__init__(inputs, heads)
        self.program = program.module()
        self.in_spec, self.output = program.call_spec.in_spec, output
        self.first = next(row for row, one in enumerate(self.inputs) if one.feature.per_candidate)

    def train(self, mode: bool = True) -> ProgramModule:
        """As it was exported: a program has no other mode."""
        return self

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The features' tensors, in the program's order => float32 [candidates, heads]."""
        rows = tensors[self.first].shape[0]
        adapted = [_adapted(one, tensor, rows) for one, tensor in zip(self.inputs, tensors, strict=True)]
        arguments, named = pytree.tree_unflatten(adapted, self.in_spec)
        scores = pytree.tree_leaves(self.program(*arguments, **named))[self.output].float()
        return scores.unsqueeze(1) if scores.ndim == 1 else scores


def _adapted(one: Fitted, tensor: torch.Tensor, rows: int) -> torch.Tensor:
    if one.repeated:
        tensor = tensor.expand(rows, *tensor.shape[1:])
    return (tensor[:, 0] if one.flat else tensor).to(_DTYPES[one.input.dtype])


class ExportedProgramFile(FileRanker):
    """See the docstring of this file."""

    format = "torch_export"

    @classmethod
    def module_of(cls, path: Path, recipe: Recipe, features: Sequence[Feature]) -> ProgramModule:
        """Checked against the features. Raises: CheckpointError."""
        program = load_program(path)
        _check_mode(path, program)
        outputs = outputs_of(program)
        score = chosen_output(path, outputs, recipe.score)
        inputs = fitted(path, inputs_of(program), features, recipe.features)
        _check_rows(path, program)
        width = score.dims[1] if len(score.dims) == 2 else 1
        heads = width if isinstance(width, int) else len(recipe.postprocess.head_weights) or 1
        return ProgramModule(program, inputs, outputs.index(score), heads)


def _check_mode(path: Path, program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        kind = str(node.target).removeprefix("aten.").split(".")[0]
        place = _TRAINS.get(kind)
        if place is not None and len(node.args) > place and node.args[place] is True:
            raise CheckpointError(
                f"{path}: exported while it trains ({kind}): scores would differ from run to run; export it after "
                "model.eval()"
            )


def _check_rows(path: Path, program: ExportedProgram) -> None:
    for name, found in program.range_constraints.items():
        if found.lower > 1 or found.upper < MAX_CANDIDATES:
            raise CheckpointError(
                f"{path}: dimension {name} is of {found.lower} to {found.upper} rows, wanted 1 to {MAX_CANDIDATES:,}: "
                f"{_FREE}"
            )
