"""Sweeps: files, figures, and the smallest one on a real server with the real perf_analyzer."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from builders.core.workspace import Workspace
from perf.analyzer import Measurement, Step
from perf.endpoints import serving
from perf.errors import PerfError
from perf.inputs import RequestMix, requests_json, write_requests
from perf.sweep import (
    Load,
    RunningServer,
    Sweep,
    load_sweep,
    measure_rounds,
    points_of,
    read_perf,
    reference_endpoints,
    run_sweep,
    write_perf,
)
from server import TritonServer
from tests.support.figures import asked, judged_queries, perf_report, small_endpoints
from tests.support.small_repository import seal, write_endpoint


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
        ("rank_small_fp32_onnx", Load(1)): [measurement(10), measurement(5)],  # the machine slowed down
        ("rank_small_int8_onnx", Load(1)): [measurement(20), measurement(10)],
    }
    references = reference_endpoints(small_endpoints(), {"rank": "plain_fp32_onnx"})
    _, int8 = points_of(rounds, references, {name: 40.0 for name, _ in rounds})
    assert int8.speedup == (2.0, 2.0, 2.0)
    assert (int8.requests_per_s, int8.candidates_per_s) == (15, 600)


def test_percentiles_are_of_the_latencies_of_all_rounds() -> None:
    [point] = points_of({("rank", Load(1)): [measurement(1, 10.0), measurement(1, 30.0)]}, {}, {"rank": 1})
    assert (point.requests, point.p50_ms, point.p99_ms) == (8, 20.0, 30.0)
    assert point.steps == (Step("small", 0.1, 20.0),)


def test_rank_is_compared_with_the_reference_of_what_it_serves() -> None:
    assert reference_endpoints(small_endpoints(), {"rank": "small_int8_onnx"}) == {
        "rank_small_int8_onnx": "rank_small_fp32_onnx",
        "rank": "rank_small_fp32_onnx",
    }


def test_a_point_says_how_often_other_programs_disturbed_it() -> None:
    rounds = [
        dataclasses.replace(measurement(10), foreign_share=share, runs=runs) for share, runs in ((0.4, 3), (0, 2))
    ]
    [point] = points_of({("rank", Load(1)): rounds}, {}, {"rank": 1})
    assert (point.foreign_share, point.disturbed, point.reruns) == (0.4, 1, 3)
    [unknown] = points_of({("rank", Load(1)): [measurement(10)]}, {}, {"rank": 1})
    assert (unknown.foreign_share, unknown.disturbed) == (None, 0)


# ---------------------------------------------------------------- loads
def test_each_load_is_measured_over_each_transport() -> None:
    sweep = Sweep(concurrencies=(2,), rates=(7.5,), transports=("grpc", "http+shared_memory"))
    assert [str(load) for load in sweep.loads] == [
        *("2 at once", "2 at once, http+shared_memory", "7.5/s", "7.5/s, http+shared_memory"),
    ]
    assert sweep.requests == 3000  # thirty beyond p99


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("concurrencies = []", "no load: wanted concurrencies"),
        ('transports = ["http+tls"]', r"transports\.0"),
        ('together = true\ntransports = ["http+shared_memory"]', "together goes without shared memory"),
        ("rates = [0]", r"rates\.0"),
        ("[mix]\nwords = 3", r"mix\.words"),
    ],
)
def test_a_load_that_cannot_be_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "odd.toml").write_text(text)
    with pytest.raises(PerfError, match=rf"(?s)odd\.toml.*{told}"):
        load_sweep(tmp_path / "odd.toml")


def test_a_server_that_somebody_started_is_asked_over_its_one_door() -> None:
    assert RunningServer("ranker:8001").door("grpc") == ("ranker:8001", None)
    for transport in ("http", "grpc+tls"):
        with pytest.raises(PerfError, match=rf"transport '{re.escape(transport)}' is measured on a server that"):
            RunningServer("ranker:8001").door(transport)


# ---------------------------------------------------------------- the real thing
@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Ensembles of one Python model each: `rank`, and `rank_small_int8_onnx`, which it also serves."""
    folder = tmp_path_factory.mktemp("sweep")
    write_endpoint(folder / "models", "rank", model="small_int8_onnx")
    write_endpoint(folder / "models", "rank_small_int8_onnx", model="small_int8_onnx")
    seal(folder / "models")
    return Workspace(folder / "build", folder / "models", folder / "store")


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[TritonServer]:
    with serving(["rank"], workspace) as server:
        yield server


@pytest.mark.server
def test_perf_analyzer_measures_real_requests_of_different_lengths(server: TritonServer, tmp_path: Path) -> None:
    requests_file = tmp_path / "requests.json"
    write_requests(requests_json(asked({"q1": "red", "q2": "鞋"}), {"q1": ["a", "b"], "q2": ["c"]}), requests_file)
    sweep = Sweep(concurrencies=(1,), window_ms=200, rounds=1)
    rounds, failures = measure_rounds(server.grpc_url, {"rank": requests_file}, sweep)
    assert not failures
    [point] = points_of(rounds, {}, {"rank": 1.5})
    assert point.requests > 0
    assert 0 < point.p50_ms <= point.p90_ms <= point.p99_ms
    assert point.candidates_per_s == pytest.approx(1.5 * point.requests_per_s)
    [step] = point.steps
    assert step.model == "small_int8_onnx"
    assert step.compute_ms > 0


@pytest.mark.server
def test_an_endpoint_that_fails_is_left_out_with_the_reason(server: TritonServer, tmp_path: Path) -> None:
    requests_file = tmp_path / "requests.json"
    requests = requests_json(asked({"q1": "red"}), {"q1": ["a"]})
    del requests["data"][0]["query"]
    write_requests(requests, requests_file)
    sweep = Sweep(concurrencies=(1,), window_ms=200, rounds=2)
    rounds, failures = measure_rounds(server.grpc_url, {"rank": requests_file}, sweep)
    assert rounds == {}
    assert "query" in failures["rank", Load(1)]


@pytest.mark.server
def test_an_open_loop_is_measured_over_every_transport(workspace: Workspace) -> None:
    """TLS on a second server, shared memory on the first."""
    sweep = Sweep(
        endpoints=("rank",), concurrencies=(), rates=(400.0,), requests=60, rounds=1,
        transports=("grpc", "http", "grpc+tls", "grpc+shared_memory", "http+shared_memory"),
        mix=RequestMix(candidates=(1, 3), query_words=(5, 5)),
    )  # fmt: skip
    judged = judged_queries()
    report = run_sweep(sweep, lambda kind: judged, [small_endpoints()[1]], workspace=workspace)
    assert not report.failures
    assert [str(point.load) for point in report.points] == [str(load) for load in sweep.loads]
    for point in report.points:
        assert point.requests == 60
        assert point.foreign_share is not None
        assert point.steps[0].compute_ms > 0
    assert report.data == judged.digest and report.settings
    write_perf(report, workspace)
    assert read_perf(workspace) == report


@pytest.mark.server
def test_endpoints_are_asked_together(workspace: Workspace, tmp_path: Path) -> None:
    write_requests(requests_json(asked({"q1": "red"}), {"q1": ["a", "b"]}), tmp_path / "requests.json")
    sweep = Sweep(together=True, concurrencies=(1,), window_ms=300, rounds=1)
    names = ["rank", "rank_small_int8_onnx"]
    with serving(names, workspace) as server:
        rounds, failures = measure_rounds(server.grpc_url, dict.fromkeys(names, tmp_path / "requests.json"), sweep)
    assert not failures
    first, second = points_of(rounds, {}, dict.fromkeys(names, 2.0))
    assert (first.endpoint, second.endpoint) == tuple(names)
    assert first.foreign_share == second.foreign_share  # of the same time
    assert first.requests > 0 and second.requests > 0


def test_points_are_json() -> None:
    assert dataclasses.asdict(perf_report())["points"][0]["steps"][0]["model"] == "small_preprocess"
