"""Small ONNX graphs with all that conversions stumble over: products, a mask, a softmax, a norm, an epsilon, Q/DQ."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builders.rankers.base import Sample

WIDTH = 8
LOWEST = float(np.finfo(np.float32).min)


def sample(scale: float = 1.0) -> Sample:
    """x float32 [4, 8], mask bool [4, 8]: every row has a token."""
    generator = np.random.default_rng(0)
    mask = generator.random((4, WIDTH)) > 0.3
    mask[:, 0] = True
    return {"x": (scale * generator.normal(size=(4, WIDTH))).astype(np.float32), "mask": mask}


def masked_attention_model() -> onnx.ModelProto:
    """x float32 [rows, 8], mask bool [rows, 8] => score float32 [rows, 8]: product, mask, softmax, norm, product."""
    generator = np.random.default_rng(1)
    constants = [
        *(numpy_helper.from_array(generator.normal(size=(WIDTH, WIDTH)).astype(np.float32), n) for n in ("w1", "w2")),
        numpy_helper.from_array(np.ones(WIDTH, dtype=np.float32), "gain"),
        numpy_helper.from_array(np.array(0, dtype=np.float32), "zero"),
        numpy_helper.from_array(np.array(LOWEST, dtype=np.float32), "lowest"),
        numpy_helper.from_array(np.array(1e-12, dtype=np.float32), "epsilon"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["product"], name="first"),
        helper.make_node("Where", ["mask", "zero", "lowest"], ["bias"], name="masked"),
        helper.make_node("Add", ["product", "bias"], ["logits"], name="add_mask"),
        helper.make_node("Softmax", ["logits"], ["weights"], name="attention"),
        helper.make_node("Add", ["weights", "epsilon"], ["nudged"], name="nudge"),
        helper.make_node("LayerNormalization", ["nudged", "gain"], ["normed"], name="norm"),
        helper.make_node("MatMul", ["normed", "w2"], ["score"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "masked_attention",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["rows", WIDTH]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows", WIDTH])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def quantized_model(activations: type[np.generic] = np.int8, zero_point: int = 0, opset: int = 18) -> onnx.ModelProto:
    """x float32 [rows, 8] => score float32 [rows, 8]: one product with explicit Q/DQ pairs on both operands."""
    weights = np.random.default_rng(2).integers(-127, 127, size=(WIDTH, WIDTH), dtype=np.int8)
    constants = [
        numpy_helper.from_array(weights, "w_int8"),
        numpy_helper.from_array(np.array(0.02, dtype=np.float32), "w_scale"),
        numpy_helper.from_array(np.array(0, dtype=np.int8), "w_zero"),
        numpy_helper.from_array(np.array(0.03, dtype=np.float32), "x_scale"),
        numpy_helper.from_array(np.array(zero_point, dtype=activations), "x_zero"),
        numpy_helper.from_array(np.full(WIDTH, 0.5, dtype=np.float32), "shift"),
    ]
    nodes = [
        helper.make_node("Add", ["x", "shift"], ["shifted"], name="shift_x"),
        helper.make_node("QuantizeLinear", ["shifted", "x_scale", "x_zero"], ["x_int8"], name="quantize"),
        helper.make_node("DequantizeLinear", ["x_int8", "x_scale", "x_zero"], ["x_back"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w_int8", "w_scale", "w_zero"], ["w"], name="dequantize_weights"),
        helper.make_node("MatMul", ["x_back", "w"], ["score"], name="product"),
    ]
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows", WIDTH])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
