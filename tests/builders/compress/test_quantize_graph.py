"""INT8 graphs: what is quantized, what is left alone, and that a row's score is its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.compress.quantize_graph import (
    QuantizationError,
    dynamic_int8_from_onnx,
    int8_embeddings_from_onnx,
    int8_from_onnx,
    sensitive_named,
    sensitivity,
    weighted_products,
)
from builders.core.steps import Int8, Int8Embeddings
from builders.data.beir import Request
from builders.rankers.base import Sample
from tests.support import tiny_xlm_roberta
from tests.support.processor import needs_vnni
from tests.support.tiny_xlm_roberta import Built

WIDTH = 8
SAMPLES = [{"x": np.random.default_rng(seed).normal(size=(4 + seed, WIDTH)).astype(np.float32)} for seed in range(4)]
"""Requests: no two have as many candidates."""


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


# ---------------------------------------------------------------- INT8 that TensorRT takes too
def test_symmetric_activations_have_int8_zero_points_of_zero(source: Path, tmp_path: Path) -> None:
    int8_from_onnx(source, tmp_path / "int8.onnx", SAMPLES, Int8(activations="int8"))
    model = onnx.load(tmp_path / "int8.onnx")
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 6  # both on each activation, the latter on each weight
    for node in pairs:
        zero_point = constants[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()


# ---------------------------------------------------------------- sensitivity
def uneven_model() -> onnx.ModelProto:
    """x float32 [rows, 8] => three products => score: ``rough`` reads values of which one is 1000 times the others,
    and gives it a weight of 0."""
    generator = np.random.default_rng(0)
    scale, ignored = np.ones(WIDTH, np.float32), generator.normal(size=(WIDTH, WIDTH)).astype(np.float32)
    scale[0], ignored[0] = 1000, 0
    constants = {
        "w1": np.eye(WIDTH, dtype=np.float32),
        "scale": scale,
        "w2": ignored,
        "w3": np.eye(WIDTH, dtype=np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="exact"),
        helper.make_node("Mul", ["a", "scale"], ["b"], name="stretch"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="rough"),
        helper.make_node("MatMul", ["c", "w3"], ["score"], name="even"),
    ]
    graph = helper.make_graph(
        nodes,
        "uneven",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    onnx.save(uneven_model(), tmp_path / "uneven.onnx")
    return tmp_path / "uneven.onnx"


def test_nodes_are_listed_by_what_they_cost_the_most_costly_first(uneven: Path) -> None:
    costs = sensitivity(uneven, SAMPLES, Int8())
    assert set(costs) == {"exact", "rough", "even"}
    assert next(iter(costs)) == "rough"
    assert list(costs.values()) == sorted(costs.values(), reverse=True)
    assert costs["rough"] > 0.3
    assert max(costs["exact"], costs["even"]) < 0.05


def test_nodes_kept_in_fp32_by_name_have_no_cost(uneven: Path) -> None:
    assert set(sensitivity(uneven, SAMPLES, Int8(keep_fp32=("rou*",)))) == {"exact", "even"}


@pytest.mark.parametrize("keep", [1, 2])
def test_exactly_the_most_sensitive_stay_in_fp32(uneven: Path, tmp_path: Path, keep: int) -> None:
    costs = list(sensitivity(uneven, SAMPLES, Int8()))
    named, layers = sensitive_named(uneven, SAMPLES, Int8(keep_most_sensitive=keep), "uneven")
    assert [(layer.graph, layer.node, layer.kept_fp32) for layer in layers] == [
        ("uneven", node, place < keep) for place, node in enumerate(costs)
    ]
    quantized = int8_from_onnx(uneven, tmp_path / "int8.onnx", SAMPLES, named)
    assert set(quantized) == set(costs[keep:])
    found = fed_by_dequantized(onnx.load(tmp_path / "int8.onnx"))
    assert found == {name: name in costs[keep:] for name in ("exact", "rough", "even")}


@pytest.mark.parametrize("keep", [3, 4])
def test_as_many_sensitive_nodes_as_there_are_leave_nothing_to_quantize(
    uneven: Path, tmp_path: Path, keep: int
) -> None:
    named, _ = sensitive_named(uneven, SAMPLES, Int8(keep_most_sensitive=keep), "uneven")
    with pytest.raises(QuantizationError, match="is left to quantize"):
        int8_from_onnx(uneven, tmp_path / "int8.onnx", SAMPLES, named)


def test_nothing_is_measured_where_no_node_is_to_be_kept(uneven: Path) -> None:
    assert sensitive_named(uneven, [], Int8(keep_fp32=("rough",)), "uneven") == (Int8(keep_fp32=("rough",)), ())


def test_sensitivity_without_samples_is_refused(uneven: Path) -> None:
    with pytest.raises(QuantizationError, match="no calibration samples"):
        sensitivity(uneven, [], Int8())


# ---------------------------------------------------------------- dynamic
def test_dynamic_int8_holds_int8_weights(source: Path, tmp_path: Path) -> None:
    dynamic_int8_from_onnx(source, tmp_path / "dynamic.onnx")
    model = onnx.load(tmp_path / "dynamic.onnx")
    assert [node.op_type for node in model.graph.node].count("DynamicQuantizeLinear") == 2
    held = [numpy_helper.to_array(one) for one in model.graph.initializer]
    assert [array.dtype for array in held if array.shape == (WIDTH, WIDTH)] == [np.int8, np.int8]


@needs_vnni
def test_dynamic_int8_gives_near_scores(source: Path, tmp_path: Path) -> None:
    dynamic_int8_from_onnx(source, tmp_path / "dynamic.onnx")
    wanted, found = (
        onnxruntime.InferenceSession(path).run(None, SAMPLES[0])[0] for path in (source, tmp_path / "dynamic.onnx")
    )
    assert np.corrcoef(wanted.ravel(), found.ravel())[0, 1] > 0.98
    assert not np.array_equal(wanted, found)


def test_dynamic_int8_of_a_graph_without_weights_is_refused(tmp_path: Path) -> None:
    onnx.save(lookup_model(rows=4), tmp_path / "tables.onnx")
    with pytest.raises(QuantizationError, match=r"tables\.onnx: no MatMul or Gemm with constant weights to quantize"):
        dynamic_int8_from_onnx(tmp_path / "tables.onnx", tmp_path / "dynamic.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["tables.onnx"]


# ---------------------------------------------------------------- embeddings
LONG, SHORT = 3000, 20
IDS = [{"ids": np.random.default_rng(seed).integers(0, SHORT, size=(6,)).astype(np.int32)} for seed in range(3)]


def lookup_model(rows: int) -> onnx.ModelProto:
    """ids int32 [rows] => score float32 [rows, 8]: a row of a table of ``rows`` plus one of a table of 20."""
    generator = np.random.default_rng(0)
    tables = [
        numpy_helper.from_array(generator.normal(size=(count, WIDTH)).astype(np.float32), name)
        for name, count in (("long", rows), ("short", SHORT))
    ]
    nodes = [
        helper.make_node("Gather", ["long", "ids"], ["a"], name="look_up_long"),
        helper.make_node("Gather", ["short", "ids"], ["b"], name="look_up_short"),
        helper.make_node("Add", ["a", "b"], ["score"], name="sum"),
    ]
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, ["rows"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows", WIDTH])],
        tables,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_long_tables_become_int8_in_the_file_and_short_ones_stay(tmp_path: Path) -> None:
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    onnx.save(lookup_model(LONG), fp32)
    assert int8_embeddings_from_onnx(fp32, int8, IDS, Int8Embeddings(step="int8_embeddings")) == ["long"]
    held = [numpy_helper.to_array(one) for one in onnx.load(int8).graph.initializer]
    assert [array.dtype for array in held if array.shape == (LONG, WIDTH)] == [np.int8]
    assert [array.dtype for array in held if array.shape == (SHORT, WIDTH)] == [np.float32]
    assert int8.stat().st_size < 0.3 * fp32.stat().st_size


def test_scores_with_int8_tables_are_within_half_a_step(tmp_path: Path) -> None:
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    onnx.save(lookup_model(LONG), fp32)
    int8_embeddings_from_onnx(fp32, int8, IDS, Int8Embeddings(step="int8_embeddings"))
    wanted, found = (onnxruntime.InferenceSession(path).run(None, IDS[0])[0] for path in (fp32, int8))
    largest = np.abs(numpy_helper.to_array(onnx.load(fp32).graph.initializer[0])).max()
    assert 0 < np.abs(found - wanted).max() <= largest / 127 / 2 * 1.01


def test_a_graph_without_long_tables_is_refused(tmp_path: Path) -> None:
    onnx.save(lookup_model(LONG), tmp_path / "fp32.onnx")
    settings = Int8Embeddings(step="int8_embeddings", min_rows=LONG + 1)
    with pytest.raises(QuantizationError, match=r"fp32\.onnx: no embedding table of 3001 rows or more"):
        int8_embeddings_from_onnx(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", IDS, settings)
    assert [path.name for path in tmp_path.iterdir()] == ["fp32.onnx"]


def remapped_model() -> onnx.ModelProto:
    """As pruned rows are exported: ids int32 [rows] => int32 table [3000] => a row of a float32 table [300, 8]."""
    generator = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(generator.integers(0, 300, size=LONG).astype(np.int32), "rows_of"),
        numpy_helper.from_array(generator.normal(size=(300, WIDTH)).astype(np.float32), "kept"),
    ]
    nodes = [
        helper.make_node("Gather", ["rows_of", "ids"], ["row"], name="look_up_row"),
        helper.make_node("Gather", ["kept", "row"], ["score"], name="look_up"),
    ]
    graph = helper.make_graph(
        nodes,
        "remapped",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, ["rows"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows", WIDTH])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_table_of_row_numbers_stays_as_it_is(tmp_path: Path) -> None:
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    onnx.save(remapped_model(), fp32)
    assert int8_embeddings_from_onnx(fp32, int8, IDS, Int8Embeddings(step="int8_embeddings")) == ["kept"]
    held = {array.shape: array.dtype for array in map(numpy_helper.to_array, onnx.load(int8).graph.initializer)}
    assert (held[(LONG,)], held[(300, WIDTH)]) == (np.int32, np.int8)
    wanted, found = (onnxruntime.InferenceSession(path).run(None, IDS[0])[0] for path in (fp32, int8))
    assert np.abs(found - wanted).max() < 0.02


def test_int8_tables_without_samples_are_refused(tmp_path: Path) -> None:
    onnx.save(lookup_model(LONG), tmp_path / "fp32.onnx")
    with pytest.raises(QuantizationError, match="no calibration samples; wanted at least one request"):
        int8_embeddings_from_onnx(
            tmp_path / "fp32.onnx", tmp_path / "int8.onnx", [], Int8Embeddings(step="int8_embeddings")
        )
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
