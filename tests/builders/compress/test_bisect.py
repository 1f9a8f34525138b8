"""Finding the layer that loses accuracy, without a GPU: one layer is spoilt on purpose, and must be the one named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.compress.bisect import (
    BisectError,
    bisect,
    exclusions,
    layer_errors,
    lowered_nodes,
    tensor_errors,
    without_pairs,
)
from builders.compress.fp16 import fp16_from_onnx
from builders.rankers.base import Sample
from tests.support.small_graphs import quantized_model

WIDTH = 16
LAYERS = 30
"""More tensors than are looked at at once."""
SAMPLES: list[Sample] = [
    {"x": np.random.default_rng(seed).normal(size=(4, WIDTH)).astype(np.float32)} for seed in range(2)
]


def chain_model() -> onnx.ModelProto:
    """x float32 [rows, 16] => product and tanh, 30 times => y float32 [rows, 16]."""
    generator = np.random.default_rng(0)
    nodes, weights, current = [], [], "x"
    for place in range(LAYERS):
        matrix = (generator.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{place}"))
        after = "y" if place == LAYERS - 1 else f"t{place}"
        nodes.append(helper.make_node("MatMul", [current, f"w{place}"], [f"p{place}"], name=f"product_{place}"))
        nodes.append(helper.make_node("Tanh", [f"p{place}"], [after], name=f"tanh_{place}"))
        current = after
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", WIDTH])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """FP32, and FP16 whose layer 17 has lost its precision."""
    reference, variant = tmp_path / "fp32.onnx", tmp_path / "fp16.onnx"
    onnx.save(chain_model(), reference)
    fp16_from_onnx(reference, variant, SAMPLES)
    model = onnx.load(variant)
    for one in model.graph.initializer:
        if one.name.startswith("w17"):
            rough = np.round(numpy_helper.to_array(one).astype(np.float32) * 4) / 4
            one.CopyFrom(numpy_helper.from_array(rough.astype(np.float16), one.name))
    onnx.save(model, variant)
    return reference, variant


def test_the_spoilt_layer_is_the_one_to_exclude(files: tuple[Path, Path]) -> None:
    report = bisect(*files, SAMPLES)
    assert 'keep_fp32 = ["product_17"' in report
    assert "output 'y' differs from FP32's by" in report


def test_layers_before_the_spoilt_one_are_near_exact(files: tuple[Path, Path]) -> None:
    errors = tensor_errors(*map(onnx.load, files), SAMPLES)
    assert max(errors[f"p{place}"] for place in range(17)) < 0.01 < errors["p17"]


def test_an_error_is_laid_to_the_layer_that_adds_it_not_to_those_that_pass_it_on(files: tuple[Path, Path]) -> None:
    reference, variant = (onnx.load(path) for path in files)
    layers = layer_errors(reference, variant, tensor_errors(*map(onnx.load, files), SAMPLES))
    by_name = {layer.node: layer for layer in layers}
    assert layers[0].node == "product_17"
    assert by_name["tanh_17"].error > 0.01 > by_name["tanh_17"].growth


def test_a_node_kept_in_fp32_is_no_candidate(tmp_path: Path) -> None:
    onnx.save(chain_model(), tmp_path / "fp32.onnx")
    fp16_from_onnx(tmp_path / "fp32.onnx", tmp_path / "fp16.onnx", SAMPLES, keep_fp32=["product_3"])
    lowered = lowered_nodes(onnx.load(tmp_path / "fp16.onnx"))
    assert "product_3" not in lowered
    assert {"product_2", "product_4"} <= set(lowered)


def test_a_quantized_layer_is_found_by_its_output_and_named_as_the_quantizer_names_it() -> None:
    reference = chain_model()
    variant = quantized_model()
    variant.graph.node[-1].name, variant.graph.node[-1].output[0] = "joined_product", "p3"
    variant.graph.output[0].name = "p3"
    (layer,) = layer_errors(reference, variant, {"p3": 0.2, "t2": 0.05})
    assert (layer.node, layer.operator, layer.error) == ("joined_product", "MatMul", 0.2)
    assert layer.growth == pytest.approx(0.15)


def test_a_quantized_file_of_another_exporter_is_held_against_itself_without_its_pairs(tmp_path: Path) -> None:
    variant = quantized_model()
    for one in variant.graph.initializer:
        if one.name == "x_scale":
            one.CopyFrom(numpy_helper.from_array(np.array(1, dtype=np.float32), "x_scale"))
    variant.graph.output[0].name = variant.graph.node[-1].output[0] = "y"
    onnx.save(variant, tmp_path / "int8.onnx")
    onnx.save(chain_model(), tmp_path / "fp32.onnx")
    samples = [{"x": each["x"][:, :8]} for each in SAMPLES]
    assert 'keep_fp32 = ["product"]' in bisect(tmp_path / "int8.onnx", tmp_path / "int8.onnx", samples)
    assert not {"QuantizeLinear"} & {node.op_type for node in without_pairs(variant).graph.node}


def test_a_good_variant_has_nothing_to_exclude(tmp_path: Path) -> None:
    onnx.save(chain_model(), tmp_path / "fp32.onnx")
    fp16_from_onnx(tmp_path / "fp32.onnx", tmp_path / "fp16.onnx", SAMPLES)
    assert "there is nothing to exclude" in bisect(tmp_path / "fp32.onnx", tmp_path / "fp16.onnx", SAMPLES)
    assert exclusions([]) == []


def test_graphs_that_have_nothing_in_common_are_refused(tmp_path: Path) -> None:
    onnx.save(chain_model(), tmp_path / "fp32.onnx")
    other = chain_model()
    for node in other.graph.node:
        node.output[0], node.input[0] = f"o_{node.output[0]}", "x" if node.input[0] == "x" else f"o_{node.input[0]}"
    other.graph.output[0].name = "o_y"
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(BisectError, match="share no tensor"):
        bisect(tmp_path / "fp32.onnx", tmp_path / "other.onnx", SAMPLES)
    with pytest.raises(BisectError, match="no samples"):
        bisect(tmp_path / "fp32.onnx", tmp_path / "fp32.onnx", [])
