"""Peaks by the real runtimes on tiny products: what is computed in which type, and what has no figure."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import torch

from builders.core.runtimes import ONNX, OPENVINO
from perf import peaks
from perf.errors import PerfError
from perf.graph_cost import CountedGraph
from perf.peaks import ACTIVATIONS, bandwidth, cpu_peaks, last_level_cache_bytes, product_graph

SHAPE = (32, 64, 48)


def test_every_type_of_every_runtime_has_a_figure_or_a_reason() -> None:
    found = {(peak.runtime, peak.type): peak for peak in cpu_peaks(1, shapes=[SHAPE], runs=1)}
    assert found.keys() == {(name, type_) for name in ("onnx", "openvino") for type_ in peaks.TYPES}
    for (_, type_), peak in found.items():
        measured = peak.computed_in == type_
        assert (peak.gops_per_s is not None, peak.shape == SHAPE, bool(peak.why)) == (measured, measured, not measured)
        assert (peak.foreign_share is not None, peak.runs > 0) == (measured, measured)
    assert found["onnx", "fp32"].gops_per_s and found["openvino", "fp32"].gops_per_s
    assert found["onnx", "int8"].runs == len(ACTIVATIONS["int8"])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have FP16 kernels")
def test_a_type_that_is_computed_in_another_is_said_and_has_no_peak() -> None:
    peak = peaks.cpu_peak(ONNX, "fp16", 1, shapes=[SHAPE], runs=1)
    assert (peak.computed_in, peak.gops_per_s, peak.why) == ("fp32", None, "computed in fp32 on this processor")


def test_a_graph_that_a_runtime_refuses_is_told_with_its_reason() -> None:
    peak = peaks.cpu_peak(ONNX, "bf16", 1, shapes=[SHAPE], runs=1)
    assert peak.computed_in == "" and peak.why.startswith("refused: ") and "MatMul" in peak.why


@pytest.mark.parametrize("runtime", [ONNX, OPENVINO], ids=lambda runtime: runtime.name)
def test_what_the_runtimes_say_that_they_multiply_in(runtime: object, tmp_path: Path) -> None:
    assert runtime in (ONNX, OPENVINO)
    x = {"x": np.ones(SHAPE[:2], np.float32)}
    for type_ in ("fp32", "int8"):
        source = tmp_path / f"{type_}.onnx"
        onnx.save(product_graph(SHAPE, type_), source)
        path = source
        if runtime is OPENVINO:
            path = source.with_suffix(".xml")
            OPENVINO.converts(source, path, "fp32")  # type: ignore[misc]
        assert runtime.computes_in(path, "fp32", x) == {type_}  # type: ignore[attr-defined]


@pytest.mark.parametrize("type_", ["fp32", "fp16", "bf16", "int8"])
def test_a_tiny_graph_is_one_product_of_its_type(type_: str, tmp_path: Path) -> None:
    onnx.save(product_graph(SHAPE, type_), tmp_path / "model.onnx")
    assert CountedGraph(tmp_path / "model.onnx").cost({"x": SHAPE[:2]}).ops == {type_: 2 * 32 * 64 * 48}


# ---------------------------------------------------------------- memory
def test_bandwidth_is_of_what_is_read_and_written_and_torch_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    found = bandwidth(1, array_bytes=2**16, runs=1)
    assert found.copy_gb_per_s > 0 and found.triad_gb_per_s > 0
    assert found.bytes_per_s == max(found.copy_gb_per_s, found.triad_gb_per_s) * 1e9
    assert torch.get_num_threads() == before


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PerfError, match=r"would take more than half of the [\d,]+ MiB of memory that are free"):
        bandwidth(1, array_bytes=psutil.virtual_memory().available)


def test_the_last_caches_are_counted_once_each(tmp_path: Path) -> None:
    caches = [("1", "32K", "0"), ("3", "16384K", "0-3"), ("3", "16384K", "0-3"), ("3", "16384K", "4-7")]
    for number, texts in enumerate(caches):
        (tmp_path / str(number)).mkdir()
        for name, text in zip(("level", "size", "shared_cpu_list"), texts, strict=True):
            (tmp_path / str(number) / name).write_text(f"{text}\n", encoding="utf-8")
    assert last_level_cache_bytes(list(tmp_path.iterdir())) == 2 * 16384 * 1024
    assert last_level_cache_bytes([]) == 0
