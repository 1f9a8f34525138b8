"""Sweeps: files, figures, and the smallest one on a real server with the real perf_analyzer."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from builders.core.workspace import Workspace
from perf.analyzer import Measurement, Step
from perf.errors import PerfError
from perf.inputs import requests_json, write_requests
from perf.sweep import (
    Sweep,
    chosen_endpoints,
    load_sweep,
    measure_rounds,
    points_of,
    read_perf,
    reference_endpoints,
    write_perf,
)
from server import TritonServer
from tests.support.figures import asked, perf_report, small_endpoints
from tests.support.small_repository import write_endpoint


def measurement(requests_per_s: float, latency_ms: float = 10.0) -> Measurement:
    return Measurement(np.array([latency_ms] * 4), requests_per_s, (Step("small", 0.1, latency_ms),))


# ---------------------------------------------------------------- files
def test_the_kits_sweep_is_valid() -> None:
    sweep = load_sweep(Path(__file__).parents[2] / "perf" / "sweeps" / "cpu.toml")
    assert sweep.concurrencies == (1, 2, 4)


def test_an_unknown_field_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_text("windows = 3\n")
    with pytest.raises(PerfError, match=r"odd\.toml.*\n?windows"):
        load_sweep(tmp_path / "odd.toml")


def test_an_endpoint_that_is_not_published_is_named() -> None:
    with pytest.raises(PerfError, match="rank_gone is not published; wanted of rank, rank_small_fp32_onnx"):
        chosen_endpoints(Sweep(endpoints=("rank_gone",)), small_endpoints())


def test_written_figures_are_read_back_and_the_csv_holds_every_point(tmp_path: Path) -> None:
    workspace = Workspace(build=tmp_path)
    _, table, steps = write_perf(perf_report(), workspace)
    assert read_perf(workspace) == perf_report()
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["speedup"] for row in rows] == ["", "2.01", "", "2.0"]
    assert len(steps.read_text().splitlines()) == 1 + 4 * 3


# ---------------------------------------------------------------- figures
def test_a_variant_is_compared_with_its_reference_of_the_same_round() -> None:
    rounds = {
        ("rank_small_fp32_onnx", 1): [measurement(10), measurement(5)],  # the machine slowed down
        ("rank_small_int8_onnx", 1): [measurement(20), measurement(10)],
    }
    _, int8 = points_of(rounds, reference_endpoints(small_endpoints(), "plain_fp32_onnx"), candidates=40)
    assert int8.speedup == (2.0, 2.0, 2.0)
    assert (int8.requests_per_s, int8.candidates_per_s) == (15, 600)


def test_percentiles_are_of_the_latencies_of_all_rounds() -> None:
    [point] = points_of({("rank", 1): [measurement(1, 10.0), measurement(1, 30.0)]}, {}, candidates=1)
    assert (point.requests, point.p50_ms, point.p99_ms) == (8, 20.0, 30.0)
    assert point.steps == (Step("small", 0.1, 20.0),)


def test_rank_is_compared_with_the_reference_of_what_it_serves() -> None:
    assert reference_endpoints(small_endpoints(), "small_int8_onnx") == {
        "rank_small_int8_onnx": "rank_small_fp32_onnx",
        "rank": "rank_small_fp32_onnx",
    }


# ---------------------------------------------------------------- the real thing
@pytest.fixture
def server(tmp_path: Path) -> Iterator[TritonServer]:
    """An ensemble `rank` of one Python model."""
    write_endpoint(tmp_path / "models", "rank", model="small")
    with TritonServer(tmp_path / "models", ["rank"], grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


@pytest.mark.server
def test_perf_analyzer_measures_real_requests_of_different_lengths(server: TritonServer, tmp_path: Path) -> None:
    requests_file = tmp_path / "requests.json"
    write_requests(requests_json(asked({"q1": "red", "q2": "鞋"}), {"q1": ["a", "b"], "q2": ["c"]}), requests_file)
    sweep = Sweep(concurrencies=(1,), window_ms=200, rounds=1)
    rounds, failures = measure_rounds(server.grpc_url, ["rank"], requests_file, sweep)
    assert not failures
    [point] = points_of(rounds, {}, candidates=1.5)
    assert point.requests > 0
    assert 0 < point.p50_ms <= point.p90_ms <= point.p99_ms
    assert point.candidates_per_s == pytest.approx(1.5 * point.requests_per_s)
    [step] = point.steps
    assert step.model == "small"
    assert step.compute_ms > 0


@pytest.mark.server
def test_an_endpoint_that_fails_is_left_out_with_the_reason(server: TritonServer, tmp_path: Path) -> None:
    requests_file = tmp_path / "requests.json"
    requests = requests_json(asked({"q1": "red"}), {"q1": ["a"]})
    del requests["data"][0]["query"]
    write_requests(requests, requests_file)
    sweep = Sweep(concurrencies=(1,), window_ms=200, rounds=2)
    rounds, failures = measure_rounds(server.grpc_url, ["rank"], requests_file, sweep)
    assert rounds == {}
    assert "query" in failures["rank", 1]


def test_points_are_json() -> None:
    assert dataclasses.asdict(perf_report())["points"][0]["steps"][0]["model"] == "small_preprocess"
