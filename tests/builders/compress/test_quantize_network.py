"""A network with quantizers => one graph of explicit Q/DQ that ONNX Runtime and OpenVINO take alike."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from builders.compress.quantize_network import onnx_from_quantized, quantized_network
from builders.core.runtimes import open_session
from builders.core.runtimes.openvino import ir_from_onnx
from builders.core.steps import Int8Network
from builders.rankers.base import Sample
from builders.rankers.cross_encoder import CrossEncoderRanker
from tests.support.processor import needs_vnni
from tests.support.small_rankers import REQUEST, catalogue, cross_encoder, some_products

LINEAR_OF_A_LAYER = 6


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> CrossEncoderRanker:
    return cross_encoder(tmp_path_factory.mktemp("bert"))


def quantized(ranker: CrossEncoderRanker, **given: object) -> CrossEncoderRanker:
    """A copy with quantizers."""
    settings = Int8Network.model_validate(
        {"step": "int8_network", "calibration_lists": 6, "candidates": 6, "batch": 2, **given}
    )
    changed = ranker.with_network(copy.deepcopy(ranker.network))
    return ranker.with_network(quantized_network(changed, catalogue(), settings, lambda _: None))


def exported(ranker: CrossEncoderRanker, path: Path) -> Path:
    [graph] = ranker.graphs
    onnx_from_quantized(graph, sample_of(ranker), path)
    return path


def sample_of(ranker: CrossEncoderRanker, products: int = 12) -> Sample:
    return ranker.sample(REQUEST, some_products(products))["cross_encoder"]


@pytest.fixture(scope="module")
def untuned(fp32: CrossEncoderRanker) -> CrossEncoderRanker:
    return quantized(fp32)


@pytest.fixture(scope="module")
def graph(untuned: CrossEncoderRanker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(untuned, tmp_path_factory.mktemp("int8") / "int8.onnx")


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Name => array, initializers and constant nodes."""
    nodes = {
        node.output[0]: numpy_helper.to_array(attribute.t)
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    return nodes | {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def test_every_zero_point_is_int8_and_zero(graph: Path) -> None:
    model = onnx.load(graph)
    constants = constants_of(model)
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {node.op_type for node in pairs} == {"QuantizeLinear", "DequantizeLinear"}
    for node in pairs:
        zero_point = constants[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()


def test_the_encoders_weights_are_int8_in_the_file_with_a_scale_a_channel(graph: Path) -> None:
    model = onnx.load(graph)
    constants = constants_of(model)
    weights = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    assert len(weights) >= 2 * LINEAR_OF_A_LAYER
    for node in weights:
        weight, scale = constants[node.input[0]], constants[node.input[1]]
        axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
        assert weight.dtype == np.int8
        if 1 not in weight.shape:
            assert scale.shape == (weight.shape[axis],)
    left = [array for array in constants.values() if array.dtype == np.float32 and array.shape in ((32, 64), (64, 32))]
    assert left == []


def test_only_standard_operators_are_in_the_file(graph: Path) -> None:
    model = onnx.load(graph)
    assert {node.domain for node in model.graph.node} == {""}
    assert [opset.domain for opset in model.opset_import] == [""]


@needs_vnni
@pytest.mark.parametrize("products", [1, 5, 40])
def test_both_runtimes_give_what_the_quantized_network_gives_at_any_number_of_rows(
    fp32: CrossEncoderRanker, graph: Path, tmp_path: Path, products: int
) -> None:
    sample = sample_of(fp32, products)
    ir_from_onnx(graph, tmp_path / "int8.xml")
    by_onnx, by_openvino = (open_session(path).run(sample)["score"][:, 0] for path in (graph, tmp_path / "int8.xml"))
    wanted = fp32.score(REQUEST, some_products(products))
    assert by_onnx.shape == by_openvino.shape == (products,)
    spread = fp32.score(REQUEST, some_products(40)).std()
    assert np.abs(by_onnx - by_openvino).max() < 0.1 * spread
    assert np.abs(by_onnx - wanted).max() < 0.5 * spread
    assert not np.allclose(by_onnx, wanted, atol=1e-5)


def test_what_is_kept_in_fp32_has_no_quantizer(fp32: CrossEncoderRanker, tmp_path: Path) -> None:
    some = exported(quantized(fp32, keep_fp32=("*layer.1.*", "*head*")), tmp_path / "some.onnx")
    model = onnx.load(some)
    constants = constants_of(model)
    weights = [
        node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
    ]
    assert len(weights) == LINEAR_OF_A_LAYER
    assert sum(array.dtype == np.float32 and sorted(array.shape) == [32, 64] for array in constants.values()) == 2


def test_smoothing_changes_the_scores(fp32: CrossEncoderRanker, untuned: CrossEncoderRanker) -> None:
    plain = quantized(fp32, smooth=False).score(REQUEST, some_products())
    assert not np.array_equal(plain, untuned.score(REQUEST, some_products()))


def test_tuning_changes_the_weights_of_the_copy_and_the_same_seed_gives_the_same(
    fp32: CrossEncoderRanker, untuned: CrossEncoderRanker
) -> None:
    before = fp32.score(REQUEST, some_products())
    first, second = (quantized(fp32, lists=2, learning_rate=1e-3).network.state_dict() for _ in range(2))
    name = "backbone.encoder.layer.0.output.dense.weight"
    assert not torch.equal(first[name], untuned.network.state_dict()[name])
    assert all(torch.equal(first[key], second[key]) for key in first)
    np.testing.assert_array_equal(fp32.score(REQUEST, some_products()), before)
