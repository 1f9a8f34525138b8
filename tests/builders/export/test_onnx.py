"""Export: a graph that is not the contract's is refused with the tensor at fault; parity failures are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from builders.core.contract import Contract, ContractError, Tensor
from builders.export.onnx import OPSET, check_onnx, check_tensors, onnx_from_ranker, run_torch
from builders.export.parity import NameMismatch, ShapeMismatch, ValueMismatch
from builders.rankers.base import Graph, Sample

CONTRACT = Contract(
    "scorer",
    (Tensor("features", "FP32", ("rows", 4), ""), Tensor("mask", "INT32", ("rows", "length"), "")),
    (Tensor("score", "FP32", ("rows", 1), ""),),
)


class Scorer(nn.Module):
    """features float32 [rows, 4], mask int32 [rows, length] => float32 [rows, 1]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(features) * mask.float().mean(dim=1, keepdim=True)


class Divided(Scorer):
    """Gives NaN where the mask is empty."""

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        total = mask.float().sum(dim=1, keepdim=True)
        return self.layer(features) * (total / total)


def graph_of(module: nn.Module, contract: Contract = CONTRACT) -> Graph:
    return Graph(contract.name, module.eval(), contract, batches=True, max_batch_size=8)


def sample(rows: int, length: int) -> Sample:
    generator = np.random.default_rng(rows * length)
    return {
        "features": generator.normal(size=(rows, 4)).astype(np.float32),
        "mask": generator.integers(0, 2, size=(rows, length), dtype=np.int32),
    }


# ---------------------------------------------------------------- a good export
@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "scorer.onnx"
    onnx_from_ranker(graph_of(Scorer()), sample(3, 6), path)
    return path


def test_an_export_has_the_contracts_names_and_free_dimensions(exported: Path) -> None:
    model = onnx.load(exported)
    check_tensors(model, CONTRACT)
    dims = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert dims["features"] == ["rows", 4]
    assert dims["mask"] == ["rows", "length"]
    assert dims["score"][1] == 1
    assert {one.domain: one.version for one in model.opset_import}[""] == OPSET


def test_an_export_is_one_file(exported: Path) -> None:
    assert [path.name for path in exported.parent.iterdir()] == ["scorer.onnx"]


def test_an_export_computes_as_torch_at_every_shape(exported: Path) -> None:
    reports = check_onnx(graph_of(Scorer()), exported, [sample(1, 1), sample(40, 8), sample(128, 16)])
    assert len(reports) == 4  # 128 rows are two runs
    assert all(report.max_abs_difference["score"] < 1e-5 for report in reports)


def test_torch_outputs_come_under_the_contracts_names() -> None:
    assert {name: array.shape for name, array in run_torch(graph_of(Scorer()), sample(5, 2)).items()} == {
        "score": (5, 1)
    }


# ---------------------------------------------------------------- parity
def test_other_weights_are_a_difference_of_values(exported: Path) -> None:
    other = Scorer()
    with torch.no_grad():
        other.layer.bias += 0.01
    with pytest.raises(ValueMismatch, match="score"):
        check_onnx(graph_of(other), exported, [sample(40, 8)])


def test_another_output_is_a_difference_of_names(exported: Path) -> None:
    renamed = Contract("scorer", CONTRACT.inputs, (Tensor("logit", "FP32", ("rows", 1), ""),))
    with pytest.raises(NameMismatch, match="logit"):
        check_onnx(graph_of(Scorer(), renamed), exported, [sample(2, 2)])


def test_another_shape_is_a_difference_of_shapes(exported: Path) -> None:
    class Flat(Scorer):
        def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return super().forward(features, mask).squeeze(1)

    with pytest.raises(ShapeMismatch, match="score"):
        check_onnx(graph_of(Flat()), exported, [sample(2, 2)])


def test_nan_fails_even_where_both_sides_agree(tmp_path: Path) -> None:
    graph = graph_of(Divided())
    onnx_from_ranker(graph, sample(3, 6), tmp_path / "divided.onnx")
    full = {**sample(2, 4), "mask": np.ones((2, 4), np.int32)}
    check_onnx(graph, tmp_path / "divided.onnx", [full])
    with pytest.raises(ValueMismatch, match="NaN"):
        check_onnx(graph, tmp_path / "divided.onnx", [{**full, "mask": np.zeros((2, 4), np.int32)}])


# ---------------------------------------------------------------- disagreements with the contract
GOOD = {
    "features": (TensorProto.FLOAT, ["rows", 4]),
    "mask": (TensorProto.INT32, ["rows", "length"]),
    "score": (TensorProto.FLOAT, ["s0", 1]),
}


def model_with(**tensors: tuple[int, list[int | str]] | None) -> onnx.ModelProto:
    """A graph with GOOD's tensors, some changed, or where None, left out."""
    all_tensors = {name: tensor for name, tensor in {**GOOD, **tensors}.items() if tensor is not None}
    values = [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in all_tensors.items()]
    outputs = [value for value in values if value.name == "score"]
    inputs = [value for value in values if value.name != "score"]
    return helper.make_model(helper.make_graph([], "made", inputs, outputs))


def test_a_free_dimension_may_have_another_name() -> None:
    check_tensors(model_with(), CONTRACT)


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"mask": None}, "input 'mask' is missing, the graph has features"),
        ({"score": None}, "output 'score' is missing, the graph has none"),
        ({"extra": (TensorProto.FLOAT, [1])}, "input 'extra' is not in the contract"),
        ({"mask": (TensorProto.INT64, ["rows", "length"])}, "input 'mask' has dtype INT64, wanted INT32"),
        ({"score": (TensorProto.FLOAT16, ["rows", 1])}, "output 'score' has dtype FLOAT16, wanted FP32"),
        ({"mask": (TensorProto.INT32, ["rows", 8])}, "'mask' has dimensions ['rows', 8], wanted ['rows', 'length']"),
        (
            {"features": (TensorProto.FLOAT, ["rows", "n"])},
            "has dimensions ['rows', 'n'], wanted ['rows', 4]",
        ),
        ({"features": (TensorProto.FLOAT, ["rows", 5])}, "'features' has dimensions ['rows', 5], wanted ['rows', 4]"),
        ({"score": (TensorProto.FLOAT, ["rows"])}, "output 'score' has dimensions ['rows'], wanted ['rows', 1]"),
    ],
)
def test_a_tensor_that_is_not_the_contracts_is_refused_by_name(tensors: dict, complaint: str) -> None:
    with pytest.raises(ContractError) as refusal:
        check_tensors(model_with(**tensors), CONTRACT)
    assert complaint in str(refusal.value)
    assert str(refusal.value).endswith("Mend forward() or the contract, then 'make export'")


def test_all_disagreements_are_told_at_once() -> None:
    with pytest.raises(ContractError, match=r"scorer: input 'mask' is missing.*; output 'score' has dtype DOUBLE"):
        check_tensors(model_with(mask=None, score=(TensorProto.DOUBLE, ["rows", 1])), CONTRACT)


def test_a_module_that_fixes_a_free_dimension_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    class Fixed(Scorer):
        def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.layer(features) + mask.float() @ torch.ones(6, 1)

    with pytest.raises(ContractError, match="length"):
        onnx_from_ranker(graph_of(Fixed()), sample(3, 6), tmp_path / "fixed.onnx")
    assert list(tmp_path.iterdir()) == []
