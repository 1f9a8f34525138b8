"""Versions stand in one place, and no file is written that a supported release would not read."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from builders.core import versions
from builders.core.versions import SERVING, TENSORRT_8, VersionError, check_onnx_versions, tensorrt_reader
from builders.export import onnx as export_onnx
from tests.support.small_graphs import masked_attention_model, quantized_model


def written(folder: Path, opset: int, ir_version: int) -> Path:
    model = masked_attention_model()
    model.opset_import[0].version, model.ir_version = opset, ir_version
    onnx.save(model, folder / "ranker.onnx")
    return folder / "ranker.onnx"


def test_the_exporters_opset_is_the_one_named_here() -> None:
    assert export_onnx.OPSET is versions.OPSET


def test_what_the_exporter_writes_is_read_by_every_serving_release(tmp_path: Path) -> None:
    check_onnx_versions(written(tmp_path, versions.OPSET, 10))


def test_a_newer_opset_is_refused_with_every_release_that_does_not_read_it(tmp_path: Path) -> None:
    with pytest.raises(VersionError) as raised:
        check_onnx_versions(written(tmp_path, 21, 10))
    assert "ranker.onnx: opset 21, IR version 10; TensorRT 10 reads opset up to 20" in str(raised.value)
    assert "TensorRT 11 reads" not in str(raised.value)


def test_a_newer_ir_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VersionError, match="TensorRT 10 reads IR version up to 10"):
        check_onnx_versions(written(tmp_path, versions.OPSET, 11))


def test_the_edge_release_reads_no_file_as_exported(tmp_path: Path) -> None:
    with pytest.raises(VersionError, match=r"TensorRT 8\.5 reads opset up to 17"):
        check_onnx_versions(written(tmp_path, versions.OPSET, 8), [TENSORRT_8])


def test_mixed_precision_graphs_fit_too(tmp_path: Path) -> None:
    onnx.save(quantized_model(opset=19), tmp_path / "mixed.onnx")
    check_onnx_versions(tmp_path / "mixed.onnx")


def test_a_tensorrt_version_names_its_reader() -> None:
    found = [tensorrt_reader(version).name for version in ("8.5.3.1", "10.13.3.9", "11.4.0.106")]
    assert found == ["TensorRT 8.5", "TensorRT 10", "TensorRT 11"]
    with pytest.raises(VersionError, match="TensorRT 7"):
        tensorrt_reader("7.2.3")


def test_every_release_names_the_page_that_says_so() -> None:
    assert all(reader.source.startswith("https://") for reader in (*SERVING, TENSORRT_8))


def test_a_file_that_is_no_onnx_is_refused_with_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "ranker.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(VersionError, match=r"ranker\.onnx: not an ONNX file .*run 'make export'"):
        check_onnx_versions(tmp_path / "ranker.onnx")
