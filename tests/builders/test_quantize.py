"""INT8 graphs: what is quantized, what is left alone, and that a row's score is its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.beir import Request
from builders.quantize import QuantizationError, int8_from_onnx, weighted_products
from builders.ranker import Sample
from builders.steps import Int8
from tests.builders import tiny_xlm_roberta
from tests.builders.tiny_xlm_roberta import Built

WIDTH = 8
SAMPLES = [{"x": np.random.default_rng(seed).normal(size=(4, WIDTH)).astype(np.float32)} for seed in range(4)]


def attention_like_model() -> onnx.ModelProto:
    """x float32 [rows, 8] => first (weighted) => gram (of two activations) => last (weighted) => score [rows, 8]."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.normal(size=(WIDTH, WIDTH)).astype(np.float32), name) for name in ("w1", "w2")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Transpose", ["a"], ["a_t"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["a_t", "a"], ["b"], name="gram"),
        helper.make_node("MatMul", ["a", "b"], ["c"], name="mix"),
        helper.make_node("MatMul", ["c", "w2"], ["score"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "attention_like",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows", WIDTH])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.save(attention_like_model(), tmp_path / "fp32.onnx")
    return tmp_path / "fp32.onnx"


def fed_by_dequantized(model: onnx.ModelProto) -> dict[str, bool]:
    """Product's name => whether both its operands come out of DequantizeLinear."""
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    return {
        node.name: all(made_by.get(name) == "DequantizeLinear" for name in node.input[:2])
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
    }


def test_products_with_weights_are_found_and_those_of_activations_are_not() -> None:
    assert weighted_products(attention_like_model()) == ["first", "last"]
    assert weighted_products(attention_like_model(), ["la*"]) == ["first"]


def test_only_weighted_products_are_quantized(source: Path, tmp_path: Path) -> None:
    quantized = int8_from_onnx(source, tmp_path / "int8.onnx", SAMPLES, Int8())
    assert quantized == ["first", "last"]
    model = onnx.load(tmp_path / "int8.onnx")
    assert fed_by_dequantized(model) == {"first": True, "gram": False, "mix": False, "last": True}


def test_weights_are_int8_per_output_channel_and_activations_uint8_per_tensor(source: Path, tmp_path: Path) -> None:
    int8_from_onnx(source, tmp_path / "int8.onnx", SAMPLES, Int8())
    model = onnx.load(tmp_path / "int8.onnx")
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    weights = [array for array in constants.values() if array.shape == (WIDTH, WIDTH)]
    assert [array.dtype for array in weights] == [np.int8, np.int8]
    activations = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert activations
    for node in activations:
        assert constants[node.input[1]].shape == ()
        assert constants[node.input[2]].dtype == np.uint8
    of_weights = [
        node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
    ]
    assert [constants[node.input[1]].shape for node in of_weights] == [(WIDTH,), (WIDTH,)]


def test_what_the_recipe_keeps_in_fp32_stays(source: Path, tmp_path: Path) -> None:
    assert int8_from_onnx(source, tmp_path / "int8.onnx", SAMPLES, Int8(keep_fp32=("fir*",))) == ["last"]
    found = fed_by_dequantized(onnx.load(tmp_path / "int8.onnx"))
    assert found == {"first": False, "gram": False, "mix": False, "last": True}


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_every_method_gives_scores_near_fp32(source: Path, tmp_path: Path, method: str) -> None:
    int8_from_onnx(source, tmp_path / "int8.onnx", SAMPLES * 4, Int8(method=method, percentile=99.9))
    wanted, found = (
        onnxruntime.InferenceSession(path).run(None, SAMPLES[0])[0] for path in (source, tmp_path / "int8.onnx")
    )
    assert np.corrcoef(wanted.ravel(), found.ravel())[0, 1] > 0.98
    assert not np.array_equal(wanted, found)


def test_no_samples_are_refused_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"fp32\.onnx: no calibration samples; wanted at least one request"):
        int8_from_onnx(source, tmp_path / "int8.onnx", [], Int8())
    assert not (tmp_path / "int8.onnx").exists()


def test_a_graph_with_nothing_left_to_quantize_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="no MatMul or Gemm with constant weights is left to quantize"):
        int8_from_onnx(source, tmp_path / "int8.onnx", SAMPLES, Int8(keep_fp32=("*",)))
    assert [path.name for path in tmp_path.iterdir()] == ["fp32.onnx"]


# ---------------------------------------------------------------- a whole ranker
@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_xlm_roberta.built(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def int8(built: Built) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(built.variants[1].models["cross_encoder"][1])


@pytest.fixture(scope="module")
def sample(built: Built) -> Sample:
    """One request of 30 rows."""
    return built.ranker.sample(Request("户外 黑色"), list(built.judged.products.values())[:30])["cross_encoder"]


def padded(sample: Sample, columns: int) -> Sample:
    """The same rows with more padding: token id 1, mask 0."""
    fill = {"input_ids": 1, "attention_mask": 0}
    return {name: np.pad(array, ((0, 0), (0, columns)), constant_values=fill[name]) for name, array in sample.items()}


def test_a_rows_int8_score_does_not_depend_on_its_neighbours(
    int8: onnxruntime.InferenceSession, sample: Sample
) -> None:
    [together] = int8.run(None, sample)
    alone = [int8.run(None, {name: array[row : row + 1] for name, array in sample.items()})[0] for row in range(30)]
    assert np.concatenate(alone) == pytest.approx(together, abs=1e-4)


def test_a_rows_int8_score_does_not_depend_on_padding(int8: onnxruntime.InferenceSession, sample: Sample) -> None:
    [tight], [loose] = int8.run(None, sample), int8.run(None, padded(sample, 16))
    assert loose == pytest.approx(tight, abs=1e-4)


def test_the_int8_ranker_is_not_the_fp32_one(built: Built, sample: Sample) -> None:
    fp32, int8 = (variant.models["cross_encoder"][1] for variant in built.variants)
    scores = [onnxruntime.InferenceSession(path).run(None, sample)[0] for path in (fp32, int8)]
    assert not np.allclose(*scores, atol=1e-4)
    assert any(fed_by_dequantized(onnx.load(int8)).values())
    assert not any(fed_by_dequantized(onnx.load(fp32)).values())
