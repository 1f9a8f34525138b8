"""OpenVINO's IR scores as its ONNX does, NNCF's INT8 nearly so, and nothing is told to anybody about it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.compress import quantize_graph as quantize
from builders.compress.quantize_graph import QuantizationError
from builders.core.runtimes import open_session, runtime_of
from builders.core.runtimes.openvino import int8_ir_from_onnx, ir_from_onnx
from builders.core.untracked import openvino
from tests.support.processor import needs_vnni
from tests.support.small_graphs import WIDTH, masked_attention_model, sample

BUILDERS = Path(quantize.__file__).parents[1]
SAMPLES = [sample(scale) for scale in (0.5, 1.0, 1.5, 2.0)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.save(masked_attention_model(), tmp_path / "fp32.onnx")
    return tmp_path / "fp32.onnx"


def scores(path: Path) -> np.ndarray:
    return open_session(path, threads=1).run(SAMPLES[1])["score"]


def operations(path: Path) -> list[str]:
    """Types of the IR's operations."""
    return [operation.get_type_name() for operation in openvino.Core().read_model(path).get_ops()]


def products_of(path: Path) -> list[str]:
    """Names of the IR's matrix products."""
    every = openvino.Core().read_model(path).get_ops()
    return [operation.get_friendly_name() for operation in every if operation.get_type_name() == "MatMul"]


def two_gemms() -> onnx.ModelProto:
    """x float32 [rows, 8] => first => relu => last => score float32 [rows, 8]; products with biases."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)
        for name, shape in (("w1", (WIDTH, WIDTH)), ("b1", (WIDTH,)), ("w2", (WIDTH, WIDTH)), ("b2", (WIDTH,)))
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["a"], name="first", transB=1),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Gemm", ["b", "w2", "b2"], ["score"], name="last", transB=1),
    ]
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH]) for name in ("x", "score"))
    graph = helper.make_graph(nodes, "two_gemms", [given], [made], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def quantized_products(path: Path) -> set[str]:
    """Names of the products whose first operand comes through FakeQuantize."""
    return {
        operation.get_friendly_name()
        for operation in openvino.Core().read_model(path).get_ops()
        if operation.get_type_name() == "MatMul"
        and operation.input_value(0).get_node().get_type_name() == "FakeQuantize"
    }


def test_an_ir_scores_as_its_onnx_graph_does(source: Path, tmp_path: Path) -> None:
    ir_from_onnx(source, tmp_path / "model.xml")
    np.testing.assert_allclose(scores(tmp_path / "model.xml"), scores(source), atol=1e-5)
    assert {
        name: path.is_file() for name, path in runtime_of(Path("model.xml")).files(tmp_path / "model.xml").items()
    } == {
        "model.xml": True,
        "model.bin": True,
    }


def test_an_ir_takes_any_number_of_rows(source: Path, tmp_path: Path) -> None:
    ir_from_onnx(source, tmp_path / "model.xml")
    rows = {name: array[:1] for name, array in SAMPLES[1].items()}
    found = open_session(tmp_path / "model.xml", threads=1).run(rows)["score"]
    np.testing.assert_allclose(found, scores(source)[:1], atol=1e-5)


def test_half_weights_halve_the_file_and_keep_the_scores_near(source: Path, tmp_path: Path) -> None:
    for half in (False, True):
        ir_from_onnx(source, tmp_path / f"{half}.xml", "bf16" if half else "fp32")
    assert (tmp_path / "True.bin").stat().st_size < 0.6 * (tmp_path / "False.bin").stat().st_size
    np.testing.assert_allclose(scores(tmp_path / "True.xml"), scores(source), atol=0.01)


def test_int8_has_fake_quantize_operations_and_other_scores(source: Path, tmp_path: Path) -> None:
    int8_ir_from_onnx(source, tmp_path / "int8.xml", SAMPLES, (), transformer=True)
    assert "FakeQuantize" in operations(tmp_path / "int8.xml")
    assert quantized_products(tmp_path / "int8.xml") == {"first", "score"}  # the last has its output's name
    assert not np.allclose(scores(tmp_path / "int8.xml"), scores(source), atol=1e-5)


@needs_vnni
def test_int8_scores_are_near(source: Path, tmp_path: Path) -> None:
    int8_ir_from_onnx(source, tmp_path / "int8.xml", SAMPLES, (), transformer=True)
    wanted, found = scores(source), scores(tmp_path / "int8.xml")
    assert np.corrcoef(wanted.ravel(), found.ravel())[0, 1] > 0.98


@pytest.mark.parametrize(("kept", "quantized"), [("la*", {"first"}), ("first", {"score"})])
def test_what_the_recipe_keeps_in_fp32_stays(source: Path, tmp_path: Path, kept: str, quantized: set[str]) -> None:
    int8_ir_from_onnx(source, tmp_path / "int8.xml", SAMPLES, (kept,), transformer=False)
    assert quantized_products(tmp_path / "int8.xml") == quantized


def test_a_product_with_a_bias_is_kept_by_its_name(tmp_path: Path) -> None:
    onnx.save(two_gemms(), tmp_path / "fp32.onnx")
    samples = [{"x": each["x"]} for each in SAMPLES]
    int8_ir_from_onnx(tmp_path / "fp32.onnx", tmp_path / "int8.xml", samples, ("first",), transformer=False)
    kept, quantized = (
        [name for name in names if name.startswith("first")]
        for names in (products_of(tmp_path / "int8.xml"), quantized_products(tmp_path / "int8.xml"))
    )
    assert len(products_of(tmp_path / "int8.xml")) == 2
    assert len(kept) == 1 and quantized == []
    assert len(quantized_products(tmp_path / "int8.xml")) == 1


def test_no_samples_are_refused_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"fp32\.onnx: no calibration samples; wanted at least one request"):
        int8_ir_from_onnx(source, tmp_path / "int8.xml", [], (), transformer=False)
    assert [path.name for path in tmp_path.iterdir()] == ["fp32.onnx"]


def test_a_graph_of_which_all_is_kept_in_fp32_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"fp32\.onnx: NNCF quantized nothing; .* relax keep_fp32"):
        int8_ir_from_onnx(source, tmp_path / "int8.xml", SAMPLES, ("*",), transformer=False)
    assert [path.name for path in tmp_path.iterdir()] == ["fp32.onnx"]


def test_telemetry_is_never_loaded() -> None:
    assert sys.modules["openvino_telemetry"] is None
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]


def test_builders_take_openvino_and_nncf_only_without_telemetry() -> None:
    imports = re.compile(r"^\s*(?:import|from) (?:openvino|nncf)\b", re.MULTILINE)
    assert [path.name for path in BUILDERS.rglob("*.py") if imports.search(path.read_text())] == ["untracked.py"]
