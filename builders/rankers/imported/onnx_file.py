"""An ONNX file of any exporter, served as it is: the user's own nodes, with casts at the inputs where they are needed.

The reference is ONNX Runtime on the user's own file. There is no torch network: steps of a variant that change one are
refused, steps on the graph (``int8``, ``fp16``) are not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx import external_data_helper, helper
from torch import nn

from builders.core.files import write_atomically
from builders.core.recipe import Recipe, RecipeError
from builders.core.versions import check_onnx_versions
from builders.features.encoder import Feature
from builders.rankers.backbone import CheckpointError
from builders.rankers.base import Graph
from builders.rankers.imported.declared_inputs import FileTensor, Fitted, chosen_output, fitted
from builders.rankers.imported.file_ranker import FileModule, FileRanker

_NAMES: dict[int, str] = {
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.DOUBLE: "FP64",
}
_NUMBERS = {name: number for number, name in _NAMES.items()}
_NUMPY = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "FP16": np.float16, "FP64": np.float64}
MAX_BYTES = 2**31 - 1
"""Of one protobuf message."""


def load_onnx(path: Path) -> onnx.ModelProto:
    """A whole, valid ONNX model. Raises: CheckpointError; VersionError: newer than what serves it reads."""
    try:
        model = onnx.load(path)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as ONNX ({type(error).__name__}: {_first_line(error)}); wanted the file of an "
            "exporter, with its external data beside it where it has some"
        ) from error
    if not model.graph.node or not model.graph.output:
        raise CheckpointError(f"{path}: not an ONNX model, it has no nodes or no outputs; copy it anew")
    if model.ByteSize() > MAX_BYTES:
        raise CheckpointError(f"{path}: {model.ByteSize():,} bytes with its weights, wanted at most {MAX_BYTES:,}")
    check_onnx_versions(path)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise CheckpointError(f"{path}: not valid ONNX ({_first_line(error)}); export it anew") from error
    return model


def inputs_of(model: onnx.ModelProto) -> list[FileTensor]:
    """What a request has to bring: without initializers, which old exporters list as inputs too."""
    weights = {one.name for one in model.graph.initializer}
    return [_file_tensor(one) for one in model.graph.input if one.name not in weights]


def outputs_of(model: onnx.ModelProto) -> list[FileTensor]:
    """All of them."""
    return [_file_tensor(one) for one in model.graph.output]


def _file_tensor(value: onnx.ValueInfoProto) -> FileTensor:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return FileTensor(value.name, str(kind).removesuffix("_type"), ())
    tensor = value.type.tensor_type
    dims = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"dim_{place}"
        for place, dim in enumerate(tensor.shape.dim)
    ]
    dtype = _NAMES.get(tensor.elem_type) or onnx.TensorProto.DataType.Name(tensor.elem_type)
    return FileTensor(value.name, dtype, tuple(dims))


class OnnxModule(FileModule):
    """ONNX Runtime on the user's own file, as a module: for scores, not to be trained or exported."""

    def __init__(self, path: Path, inputs: Sequence[Fitted], score: FileTensor, heads: int) -> None:
        super().__init__(inputs, heads)
        self.path, self.score = path, score
        self._session: onnxruntime.InferenceSession | None = None

    def __deepcopy__(self, memo: Mapping[int, Any]) -> OnnxModule:
        return self  # a session cannot be copied, and nothing in it can be changed

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """Made when first used. Raises: CheckpointError."""
        if self._session is None:
            try:
                self._session = onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime raises types of its own
                raise CheckpointError(
                    f"{self.path}: ONNX Runtime {onnxruntime.__version__} cannot load it ({_first_line(error)}); "
                    "wanted a model that it runs without further libraries"
                ) from error
        return self._session

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The features' tensors, in the file's order => float32 [candidates, heads].

        Raises: CheckpointError: gradients are asked for.
        """
        if any(tensor.requires_grad for tensor in tensors):
            raise CheckpointError(
                f"{self.path}: an ONNX file has no gradients; explain the network that it was made of"
            )
        first = next(row for row, one in enumerate(self.inputs) if one.feature.per_candidate)
        rows = tensors[first].shape[0]
        feeds = {
            one.input.name: _adapted(one, tensor.numpy(), rows)
            for one, tensor in zip(self.inputs, tensors, strict=True)
        }
        session = self.session
        try:
            [scores] = session.run([self.score.name], feeds)
        except Exception as error:  # ONNX Runtime raises types of its own
            raise CheckpointError(f"{self.path}: ONNX Runtime cannot run it ({_first_line(error)})") from error
        return torch.from_numpy(np.asarray(scores, dtype=np.float32)).reshape(len(scores), -1)


def _adapted(one: Fitted, array: np.ndarray, rows: int) -> np.ndarray:
    if one.repeated:
        array = np.repeat(array, rows, axis=0)
    return (array[:, 0] if one.flat else array).astype(_NUMPY[one.input.dtype])


class OnnxFile(FileRanker):
    """See the docstring of this file."""

    format = "onnx"

    @classmethod
    def module_of(cls, path: Path, recipe: Recipe, features: Sequence[Feature]) -> OnnxModule:
        """Checked against the features. Raises: CheckpointError, RecipeError."""
        _refuse_network_steps(recipe)
        model = load_onnx(path)
        score = chosen_output(path, outputs_of(model), recipe.score)
        inputs = fitted(path, inputs_of(model), features, recipe.features)
        module = OnnxModule(path, inputs, score, _heads(score, recipe))
        _ = module.session  # whether ONNX Runtime loads it is told first
        return module

    @classmethod
    def files_of(cls, path: Path) -> list[Path]:
        """The file, and its weights where they lie beside it."""
        model = onnx.load(path, load_external_data=False)
        external = {
            path.parent / external_data_helper.ExternalDataInfo(tensor).location
            for tensor in external_data_helper._get_all_tensors(model)
            if external_data_helper.uses_external_data(tensor)
        }
        return [path, *sorted(external)]

    def with_network(self, network: nn.Module) -> FileRanker:
        """Raises: RecipeError: there is no torch network."""
        raise RecipeError(f"{self.name}: an ONNX file has no torch network that a step could change; {_GRAPH_STEPS}")

    @functools.cached_property
    def graphs(self) -> list[Graph]:
        """The user's own nodes."""
        [graph] = super().graphs
        assert isinstance(self.module, OnnxModule)
        module = self.module

        def write(path: Path) -> None:
            write_atomically(path, served_model(module, graph).SerializeToString())

        return [dataclasses.replace(graph, write_onnx=write)]


_GRAPH_STEPS = 'wanted steps on the graph, such as { step = "int8" }, { step = "dynamic_int8" } or { step = "fp16" }'


def _refuse_network_steps(recipe: Recipe) -> None:
    found = [f"{one.name}: {', '.join(step.step for step in one.network_steps)}" for one in recipe.variants]
    found = [each for each, one in zip(found, recipe.variants, strict=True) if one.network_steps]
    if found:
        raise RecipeError(
            f"recipe of {recipe.ranker}: variants with steps that change a torch network, which an ONNX file has not "
            f"({'; '.join(found)}); {_GRAPH_STEPS}"
        )


def _heads(score: FileTensor, recipe: Recipe) -> int:
    if len(score.dims) == 1:
        return 1
    width = score.dims[1]
    return width if isinstance(width, int) else len(recipe.postprocess.head_weights) or 1


# ---------------------------------------------------------------- what is served
def served_model(module: OnnxModule, graph: Graph) -> onnx.ModelProto:
    """The user's model with the contract's names, dtypes and dimensions; its own nodes stay what they are."""
    model = load_onnx(module.path)
    of_file = {one.input.name: f"{one.input.name}/of_file" for one in module.inputs}
    of_file[module.score.name] = f"{module.score.name}/of_file"
    _rename(model.graph, of_file)
    contract = graph.contract
    first = next(one.feature.name for one in module.inputs if one.feature.per_candidate)
    before = [node for one in module.inputs for node in _input_nodes(one, of_file[one.input.name], first)]
    after = _score_nodes(module.score, of_file[module.score.name], contract.outputs[0].name)
    nodes = [*before, *model.graph.node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(_constants())
    weights = {one.name for one in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name in weights]
    _replace(model.graph.input, [*map(_value, contract.inputs), *kept])
    _replace(model.graph.output, [_value(contract.outputs[0])])
    onnx.checker.check_model(model)
    return model


_FLAT, _COLUMN, _ZERO, _ONE = (f"tritonrank/{name}" for name in ("flat", "column", "zero", "one"))


def _constants() -> list[onnx.TensorProto]:
    values = {_FLAT: [-1], _COLUMN: [-1, 1], _ZERO: [0], _ONE: [1]}
    return [helper.make_tensor(name, onnx.TensorProto.INT64, [len(each)], each) for name, each in values.items()]


def _input_nodes(one: Fitted, target: str, first: str) -> Iterator[onnx.NodeProto]:
    """From the contract's tensor to the file's own: rows repeated, column dropped, dtype cast."""
    name, place = one.feature.name, 0

    def step(operator: str, *more: str, **attributes: Any) -> onnx.NodeProto:
        nonlocal name, place
        place += 1
        source, name = name, f"{target}/{place}"
        return helper.make_node(operator, [source, *more], [name], **attributes)

    if one.repeated:
        shape = f"{target}/rows"
        yield helper.make_node("Shape", [first], [f"{shape}/all"])
        yield helper.make_node("Gather", [f"{shape}/all", _ZERO], [f"{shape}/first"], axis=0)
        yield helper.make_node("Concat", [f"{shape}/first", _ONE], [shape], axis=0)
        yield step("Expand", shape)
    if one.flat:
        yield step("Reshape", _FLAT)
    if one.cast:
        yield step("Cast", to=_NUMBERS[one.input.dtype])
    yield helper.make_node("Identity", [name], [target])


def _score_nodes(score: FileTensor, source: str, target: str) -> list[onnx.NodeProto]:
    shaped = f"{source}/shaped"
    first = (
        helper.make_node("Reshape", [source, _COLUMN], [shaped])
        if len(score.dims) == 1
        else helper.make_node("Identity", [source], [shaped])
    )
    return [first, helper.make_node("Cast", [shaped], [target], to=onnx.TensorProto.FLOAT)]


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Everywhere that the graph and those within it use the names; ONNX allows a name once, so none is shadowed."""
    for node in graph.node:
        _replace(node.input, [names.get(name, name) for name in node.input])
        _replace(node.output, [names.get(name, name) for name in node.output])
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _rename(inner, names)
    for value in (*graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)


def _replace(repeated: Any, values: Sequence[Any]) -> None:
    copied = list(values)
    del repeated[:]
    repeated.extend(copied)


def _value(tensor: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, _NUMBERS[tensor.dtype], list(tensor.dims))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"
