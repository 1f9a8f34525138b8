"""Operations and bytes of a graph against counts by hand, and against torch's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from transformers import BertConfig, BertModel

from builders.core.contract import Contract, Tensor
from builders.core.runtimes import OPENVINO
from builders.export.onnx import onnx_from_ranker
from builders.rankers.base import Graph
from perf.errors import PerfError
from perf.gpu_figures import flops_of
from perf.graph_cost import Cost, CountedGraph, packed
from tests.support.small_graphs import WIDTH, masked_attention_model, quantized_model, sample

ROWS, LENGTH, HIDDEN, FEED_FORWARD, HEADS = 3, 40, 384, 1536, 12
SMALL = {"x": (4, WIDTH), "mask": (4, WIDTH)}
PRODUCT = 2 * 4 * WIDTH * WIDTH
"""Operations of one product of a small graph."""


class MiniLmLayer(nn.Module):
    """One layer of all-MiniLM-L6-v2's shape, every parameter another number: equal ones would be stored once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=HIDDEN,
            intermediate_size=FEED_FORWARD,
            num_attention_heads=HEADS,
            num_hidden_layers=1,
            vocab_size=8,
        )
        self.layer = BertModel(config).encoder.layer[0]
        for parameter in self.layer.parameters():
            nn.init.normal_(parameter, std=0.1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows, length, 384] => the same."""
        found = self.layer(hidden)
        return found[0] if isinstance(found, tuple) else found


def saved(model: onnx.ModelProto, path: Path) -> CountedGraph:
    onnx.save(model, path)
    return CountedGraph(path)


def graph_of(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], out: list[int], x: list[int | str]
) -> onnx.ModelProto:
    """x => y, both float32, but x of a lookup int64."""
    kind = TensorProto.INT64 if nodes[0].op_type == "Gather" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


# ---------------------------------------------------------------- operations
def test_an_encoder_layer_is_counted_as_by_hand_and_as_by_torch(tmp_path: Path) -> None:
    tensors = [Tensor(name, "FP32", ("rows", "length", HIDDEN), "") for name in ("hidden", "out")]
    graph = Graph(
        "layer", MiniLmLayer().eval(), Contract("layer", (tensors[0],), (tensors[1],)), batches=True, max_batch_size=8
    )
    hidden = np.random.default_rng(0).normal(size=(ROWS, LENGTH, HIDDEN)).astype(np.float32)
    onnx_from_ranker(graph, {"hidden": hidden}, tmp_path / "layer.onnx")
    counted = CountedGraph(tmp_path / "layer.onnx")

    linear = 2 * ROWS * LENGTH * (4 * HIDDEN**2 + 2 * HIDDEN * FEED_FORWARD)
    attention = 2 * 2 * ROWS * LENGTH**2 * HIDDEN  # queries with keys, weights with values
    found = counted.cost({"hidden": hidden.shape})
    assert found.ops == {"fp32": linear + attention} == {"fp32": flops_of(graph, {"hidden": hidden})}
    parameters = 4 * HIDDEN**2 + 2 * HIDDEN * FEED_FORWARD + 5 * HIDDEN + FEED_FORWARD + 4 * HIDDEN
    assert 0 <= found.weight_bytes - 4 * parameters < 100  # an epsilon and the like
    assert found.tensor_bytes == 2 * hidden.nbytes

    shorter = counted.cost({"hidden": (ROWS, LENGTH // 2, HIDDEN)})
    assert shorter.ops == {"fp32": linear / 2 + attention / 4}


def test_a_product_of_quantized_operands_is_of_int8_in_every_form_of_a_graph(tmp_path: Path) -> None:
    assert saved(quantized_model(), tmp_path / "qdq.onnx").cost(SMALL).ops == {"int8": PRODUCT}
    plain = saved(masked_attention_model(), tmp_path / "plain.onnx")
    assert plain.cost(SMALL).ops == {"fp32": 2 * PRODUCT}
    quantize_dynamic(tmp_path / "plain.onnx", tmp_path / "dynamic.onnx", weight_type=QuantType.QInt8)
    assert CountedGraph(tmp_path / "dynamic.onnx").cost(SMALL).ops == {"int8": 2 * PRODUCT}
    assert OPENVINO.quantizes
    OPENVINO.quantizes(tmp_path / "plain.onnx", tmp_path / "model.xml", [sample()], (), transformer=False)
    assert CountedGraph(tmp_path / "model.xml").cost(SMALL).ops == {"int8": 2 * PRODUCT}


def test_one_quantized_operand_is_not_enough(tmp_path: Path) -> None:
    model = quantized_model()
    model.graph.node[-1].input[0] = "shifted"
    assert saved(model, tmp_path / "model.onnx").cost(SMALL).ops == {"fp32": PRODUCT}


def test_a_convolution_is_counted(tmp_path: Path) -> None:
    weights = np.ones((5, 6, 3), np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1])]
    counted = saved(graph_of(nodes, {"w": weights}, [2, 5, 10], [2, 6, "length"]), tmp_path / "model.onnx")
    assert counted.cost({"x": (2, 6, 10)}).ops == {"fp32": 2 * 2 * 10 * weights.size}


def test_a_recurrent_layer_is_counted_step_by_step(tmp_path: Path) -> None:
    inputs, hidden = 6, 4
    constants = {
        "w": np.ones((2, 4 * hidden, inputs), np.float32),
        "r": np.ones((2, 4 * hidden, hidden), np.float32),
    }
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=hidden, direction="bidirectional")]
    counted = saved(graph_of(nodes, constants, [7, 2, 3, hidden], ["length", 3, inputs]), tmp_path / "model.onnx")
    assert counted.cost({"x": (7, 3, inputs)}).ops == {"fp32": 2 * 7 * 3 * 2 * 4 * hidden * (inputs + hidden)}


def test_what_multiplies_and_has_no_count_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik")]
    model = graph_of(nodes, {"w": np.ones((8, 8), np.float32)}, [4, 8], [4, 8])
    with pytest.raises(PerfError, match=r"Einsum multiply matrices and have no count; wanted a graph of .*MatMul"):
        saved(model, tmp_path / "model.onnx")


def test_what_openvino_does_not_read_or_take_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.onnx").write_bytes(b"no graph")
    with pytest.raises(PerfError, match=r"none\.onnx: OpenVINO does not read it, so its operations are not counted"):
        CountedGraph(tmp_path / "none.onnx")
    counted = saved(quantized_model(), tmp_path / "model.onnx")
    with pytest.raises(PerfError, match=r"not of shapes {'x': \(4, 9\)}"):
        counted.cost({"x": (4, WIDTH + 1)})


# ---------------------------------------------------------------- bytes
def test_weights_count_as_they_are_stored(tmp_path: Path) -> None:
    plain = saved(masked_attention_model(), tmp_path / "plain.onnx").cost(SMALL)
    gain, scalars = 4 * WIDTH, 4 * 6
    assert 2 * 4 * WIDTH**2 + gain <= plain.weight_bytes <= 2 * 4 * WIDTH**2 + gain + scalars
    assert plain.tensor_bytes == 4 * WIDTH * (4 + 1 + 4)  # float32 in, bool in, float32 out
    quantized = saved(quantized_model(), tmp_path / "qdq.onnx").cost(SMALL)
    assert WIDTH**2 + 4 * WIDTH <= quantized.weight_bytes <= WIDTH**2 + 4 * WIDTH + 4 * 10


def test_of_a_table_only_the_rows_that_are_looked_up_are_read(tmp_path: Path) -> None:
    table = np.arange(1000 * 8, dtype=np.float32).reshape(1000, 8)
    model = graph_of([helper.make_node("Gather", ["table", "x"], ["y"])], {"table": table}, [2, 3, 8], [2, "length"])
    counted = saved(model, tmp_path / "model.onnx")
    assert counted.cost({"x": (2, 3)}).weight_bytes == 2 * 3 * 8 * 4
    assert counted.cost({"x": (2, 3000)}).weight_bytes == table.nbytes  # no more than there is


def test_packed_runs_read_the_weights_once() -> None:
    runs = [Cost({"int8": 10.0, "fp32": 1.0}, 100.0, 5.0), Cost({"int8": 4.0}, 100.0, 3.0)]
    assert packed(runs) == Cost({"int8": 14.0, "fp32": 1.0}, 100.0, 8.0)
