"""FP16 graphs: what becomes FP16, what stays FP32 and why, and that an overflow is found on real samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from builders.compress import fp16 as half_precision
from builders.compress.fp16 import HalfPrecisionError, check_half_precision, fp16_from_onnx, fp32_nodes, tensor_types
from builders.core.versions import opset_of
from builders.rankers.base import Sample
from tests.support.small_graphs import WIDTH, masked_attention_model, quantized_model, sample


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.save(masked_attention_model(), tmp_path / "fp32.onnx")
    return tmp_path / "fp32.onnx"


@pytest.fixture(params=["AutoCast", "ONNX Runtime"])
def converter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both converters, the first where ModelOpt's ONNX dependencies are installed."""
    if request.param == "AutoCast" and not half_precision.autocast_is_installed():
        pytest.skip("ModelOpt's AutoCast is not installed")
    monkeypatch.setattr(half_precision, "autocast_is_installed", lambda: request.param == "AutoCast")
    return str(request.param)


def run(path: Path, feeds: Sample) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(path).run(None, feeds)[0])


def test_products_become_fp16_and_what_fp16_would_spoil_stays_fp32(
    source: Path, tmp_path: Path, converter: str
) -> None:
    kept = fp16_from_onnx(source, tmp_path / "fp16.onnx", [sample()])
    assert {"masked", "add_mask", "attention", "nudge", "norm"} <= set(kept)
    assert not {"first", "last"} & set(kept)


def test_inputs_outputs_and_opset_are_those_of_the_source(source: Path, tmp_path: Path, converter: str) -> None:
    fp16_from_onnx(source, tmp_path / "fp16.onnx", [sample()])
    before, after = onnx.load(source), onnx.load(tmp_path / "fp16.onnx")
    assert [*after.graph.input, *after.graph.output] == [*before.graph.input, *before.graph.output]
    assert opset_of(after) == opset_of(before)


def test_scores_stay_near_those_of_fp32(source: Path, tmp_path: Path, converter: str) -> None:
    fp16_from_onnx(source, tmp_path / "fp16.onnx", [sample()])
    np.testing.assert_allclose(run(tmp_path / "fp16.onnx", sample()), run(source, sample()), atol=2e-2)


def test_a_masks_lowest_value_reaches_softmax_finite(source: Path, tmp_path: Path, converter: str) -> None:
    """So that a row without any token gets equal weights, as in FP32, and not NaN."""
    fp16_from_onnx(source, tmp_path / "fp16.onnx", [sample()])
    nothing = {**sample(), "mask": np.zeros((4, WIDTH), dtype=bool)}
    assert np.isfinite(run(tmp_path / "fp16.onnx", nothing)).all()


def test_a_product_that_overflows_on_a_sample_stays_fp32(source: Path, tmp_path: Path, converter: str) -> None:
    kept = fp16_from_onnx(source, tmp_path / "fp16.onnx", [sample(), sample(scale=1e5)])
    assert "first" in kept
    assert "last" not in kept


def test_a_table_that_two_nodes_read_stays_one(source: Path, tmp_path: Path, converter: str) -> None:
    model = onnx.load(source)
    last = next(node for node in model.graph.node if node.name == "last")
    last.input[1] = "w1"  # as "first" reads
    model.graph.initializer.remove(next(one for one in model.graph.initializer if one.name == "w2"))
    onnx.save(model, source)
    fp16_from_onnx(source, tmp_path / "fp16.onnx", [sample()])
    tables = [one for one in onnx.load(tmp_path / "fp16.onnx").graph.initializer if list(one.dims) == [WIDTH, WIDTH]]
    assert len(tables) == 1


def test_a_tiny_constant_is_not_taken_for_zero(source: Path, tmp_path: Path, converter: str) -> None:
    """Both are FP32 scalars of nodes that stay FP32; an epsilon that became 0 would divide by it."""
    fp16_from_onnx(source, tmp_path / "fp16.onnx", [sample()])
    scalars = {float(one) for _, one in half_precision.constants(onnx.load(tmp_path / "fp16.onnx")) if one.size == 1}
    assert {0.0, float(np.float32(1e-12))} <= scalars


def test_a_node_that_is_named_stays_fp32(source: Path, tmp_path: Path, converter: str) -> None:
    kept = fp16_from_onnx(source, tmp_path / "fp16.onnx", [sample()], keep_fp32=["fir*"])
    assert "first" in kept
    assert "last" not in kept


def test_an_overflow_that_the_converter_was_not_shown_is_refused(source: Path, tmp_path: Path, converter: str) -> None:
    fp16_from_onnx(source, tmp_path / "fp16.onnx", [sample()])
    with pytest.raises(HalfPrecisionError, match=r"exceed FP16's 65504 on a real sample"):
        check_half_precision(tmp_path / "fp16.onnx", [sample(scale=1e5)])


def test_an_output_that_is_not_a_number_is_refused(source: Path, tmp_path: Path, converter: str) -> None:
    fp16_from_onnx(source, tmp_path / "fp16.onnx", [sample()])
    with pytest.raises(HalfPrecisionError, match="output 'score' holds NaN or infinity"):
        check_half_precision(tmp_path / "fp16.onnx", [sample(scale=float("nan"))])


def test_a_quantized_graph_keeps_its_pairs_and_has_fp16_between_them(tmp_path: Path, converter: str) -> None:
    onnx.save(quantized_model(), tmp_path / "int8.onnx")
    fp16_from_onnx(tmp_path / "int8.onnx", tmp_path / "mixed.onnx", [sample()])
    model = onnx.load(tmp_path / "mixed.onnx")
    made_by = {output: node for node in model.graph.node for output in node.output}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert {made_by[name].op_type for node in products for name in node.input} == {"DequantizeLinear"}
    types = tensor_types(model)
    assert {types[node.output[0]] for node in products} == {TensorProto.FLOAT16}
    assert opset_of(model) == 19  # the first whose pairs take FP16


def test_an_fp32_graph_is_not_taken_for_fp16(source: Path) -> None:
    with pytest.raises(HalfPrecisionError, match="nothing became FP16"):
        check_half_precision(source, [sample()])
    assert set(fp32_nodes(onnx.load(source))) == {node.name for node in masked_attention_model().graph.node}


def test_no_samples_are_refused_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(HalfPrecisionError, match="no samples"):
        fp16_from_onnx(source, tmp_path / "out" / "fp16.onnx", [])
    assert not (tmp_path / "out").exists()
