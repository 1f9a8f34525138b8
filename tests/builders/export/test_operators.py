"""Exported graphs are fused by ONNX Runtime as the plain export of the same network is, and compute as torch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnxscript import ir
from torch import nn
from torch.nn import functional

from builders.compress.quantize_graph import dynamic_int8_from_onnx, int8_from_onnx
from builders.core.contract import Contract, Tensor
from builders.core.steps import Int8
from builders.export.onnx import check_onnx, onnx_from_ranker
from builders.export.operators import simplify
from builders.rankers.base import Graph, Sample
from perf.bench_graphs import FirstToken, export_plainly
from tests.support.loaded_graphs import check_no_more, operators_as_loaded
from tests.support.small_rankers import REQUEST, cross_encoder, some_products

WIDTH, HEADS = 16, 2


class Block(nn.Module):
    """A pre-normed block with an RMSNorm, both masks of an attention, and both GELUs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.RMSNorm(WIDTH)
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.last = nn.LayerNorm(WIDTH)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """float32 [rows, length, width], int32 [rows, length] => float32 [rows, length, width]."""
        rows, length, _ = states.shape
        parts = self.project(self.norm(states)).view(rows, length, 3 * HEADS, -1).transpose(1, 2).split(HEADS, dim=1)
        own = mask[:, None, None, :].bool()
        query, key, value = parts
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=own, scale=0.3)
        seen = seen + functional.scaled_dot_product_attention(key, value, query, attn_mask=(own.float() - 1) * 100)
        states = states + seen.transpose(1, 2).reshape(rows, length, -1)
        raised = self.up(states)
        return self.last(states + self.down(functional.gelu(raised) + functional.gelu(raised, approximate="tanh")))


CONTRACT = Contract(
    "block",
    (Tensor("states", "FP32", ("rows", "length", WIDTH), ""), Tensor("mask", "INT32", ("rows", "length"), "")),
    (Tensor("score", "FP32", ("rows", "length", WIDTH), ""),),
)


def sample(rows: int, length: int) -> Sample:
    draw = np.random.default_rng(rows)
    mask = (np.arange(length) < draw.integers(1, length + 1, (rows, 1))).astype(np.int32)
    return {"states": draw.normal(size=(rows, length, WIDTH)).astype(np.float32), "mask": mask}


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, Path]:
    graph = Graph("block", Block().eval(), CONTRACT, batches=True, max_batch_size=8, lengths=(4, 8))
    path = tmp_path_factory.mktemp("block") / "block.onnx"
    onnx_from_ranker(graph, sample(3, 6), path)
    return graph, path


def test_a_block_computes_as_torch_at_every_shape(block: tuple[Graph, Path]) -> None:
    check_onnx(*block, [sample(1, 1), sample(3, 6), sample(8, 40)])


def test_a_blocks_operators_are_fused(block: tuple[Graph, Path]) -> None:
    found = operators_as_loaded(block[1])
    expected = {"Gelu": 1, "FastGelu": 1, "SimplifiedLayerNormalization": 1, "LayerNormalization": 1, "FusedMatMul": 2}
    assert {name: found[name] for name in expected} == expected
    assert not {"Erf", "Tanh", "Pow", "Sqrt", "Reciprocal", "IsNaN", "Shape", "SkipLayerNormalization"} & set(found)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Sample]:
    """(the kit's cross-encoder, the plain export of its encoder, a request)."""
    folder = tmp_path_factory.mktemp("cross_encoder")
    ranker = cross_encoder(folder)
    [graph] = ranker.graphs
    request = ranker.sample(REQUEST, some_products())[graph.name]
    onnx_from_ranker(graph, request, folder / "ours.onnx")
    return (
        folder / "ours.onnx",
        export_plainly(FirstToken(ranker.network.backbone), request, folder / "plain.onnx"),
        request,
    )


HEAD = {"MatMul": 3, "FusedMatMul": 1, "Gemm": 1, "Gelu": 1, "Softmax": 1, "Add": 4, "Sub": 4, "Mul": 12, "Div": 3}
"""Of the cross-encoder's head; each is of [rows, length] or smaller but for one division and one product."""


def test_the_cross_encoder_costs_no_more_than_its_encoder_and_its_head(scorer: tuple[Path, Path, Sample]) -> None:
    ours, plain = operators_as_loaded(scorer[0]), operators_as_loaded(scorer[1])
    plain.update(HEAD)
    check_no_more(ours, plain)
    assert (ours["BiasGelu"], ours["Erf"]) == (2, 0)


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_quantized_graph_stays_fused(scorer: tuple[Path, Path, Sample], tmp_path: Path, dynamic: bool) -> None:
    path = tmp_path / "int8.onnx"
    if dynamic:
        dynamic_int8_from_onnx(scorer[0], path)
    else:
        int8_from_onnx(scorer[0], path, [scorer[2]], Int8())
    found = operators_as_loaded(path)
    assert (found["Erf"], found["SkipLayerNormalization"], found["LayerNormalization"]) == (0, 0, 5)


# ---------------------------------------------------------------- shapes that are kept
def reshaped(before: list[int | str | None], after: list[int | str | None]) -> list[int] | None:
    """The constant shape of a reshape whose shape was an input; None where it stays one."""
    data = ir.Value(name="data", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(before))
    shape = ir.Value(name="shape", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([len(after)]))
    node = ir.node("Reshape", [data, shape])
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(after), data.type
    graph = ir.Graph([data, shape], node.outputs, nodes=[node], opset_imports={"": 18}, name="one")
    simplify(ir.Model(graph, ir_version=10))
    constant = ir.convenience.get_const_tensor(graph.node(0).inputs[1])
    return None if constant is None else constant.numpy().tolist()


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        (["rows", "length", 12], ["rows", "length", 3, 4], [0, 0, 3, 4]),
        (["rows", "length", 3, 4], ["rows", "length", 12], [0, 0, 12]),
        (["rows", "length", 4], ["both", 4], [-1, 4]),
        (["rows", 3, "length", 4], ["other", "length", 4], None),  # neither is in its place
        ([None, "length", 4], [None, "length", 2, 2], [-1, 0, 2, 2]),  # two unknown ones need not be the same
        ([None, None, 4], [None, None, 2, 2], None),
        ([0, "length", 4], [0, "length", 2, 2], [-1, 0, 2, 2]),  # the exporter's 0 is none
    ],
)
def test_a_reshape_keeps_what_is_known_to_stay(
    before: list[int | str | None], after: list[int | str | None], wanted: list[int] | None
) -> None:
    assert reshaped(before, after) == wanted
