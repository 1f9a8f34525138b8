"""perf_analyzer's files read, without perf_analyzer."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest

from perf import analyzer
from perf.analyzer import (
    CSV_FILE,
    EXPORT_FILE,
    TOO_SHORT,
    AnalyzerError,
    Step,
    find_analyzer,
    poisson_intervals_us,
    read_measurement,
    read_open_loop,
    request_failure,
)
from server.environment import ServerEnvironment, find_environment

HEADER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As perf_analyzer leaves it after a run on an ensemble of two models."""
    (tmp_path / CSV_FILE).write_text(
        f"{HEADER},p50 latency,p90 latency,p95 latency,p99 latency\n1,29.5,9,6963,999999,168,23252,2981,5,1,2,3,4\n"
    )
    (tmp_path / f"small_preprocess_v1.{CSV_FILE}").write_text(f"{HEADER}\n1,29.5,0,2,810,52,1338,1146,0\n")
    (tmp_path / f"small_v2_fp32_onnx_v12.{CSV_FILE}").write_text(f"{HEADER}\n1,29.5,0,5,86,26,19548,718,0\n")
    requests = [
        {"timestamp": 1_000_000_000, "response_timestamps": [1_012_500_000]},
        {"timestamp": 2_000_000_000, "response_timestamps": [2_020_000_000]},
    ]
    export = {"experiments": [{"experiment": {"mode": "concurrency", "value": 1}, "requests": requests}]}
    (tmp_path / EXPORT_FILE).write_text(json.dumps(export))
    return tmp_path


def test_latencies_are_each_requests_own_in_milliseconds(folder: Path) -> None:
    np.testing.assert_allclose(read_measurement(folder).latencies_ms, [12.5, 20.0])


def test_queue_and_compute_come_from_the_composing_models_files(folder: Path) -> None:
    assert read_measurement(folder).steps == (
        Step("small_preprocess", 0.810, pytest.approx(2.536)),
        Step("small_v2_fp32_onnx", 0.086, pytest.approx(20.292)),
    )


def test_the_rate_is_perf_analyzers_own(folder: Path) -> None:
    assert read_measurement(folder).requests_per_s == 29.5


def test_a_run_without_requests_asks_for_a_longer_window(folder: Path) -> None:
    (folder / EXPORT_FILE).write_text(json.dumps({"experiments": [{"requests": []}]}))
    with pytest.raises(AnalyzerError, match="longer window_ms"):
        read_measurement(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / CSV_FILE).unlink()
    with pytest.raises(AnalyzerError, match=CSV_FILE):
        read_measurement(folder)


def test_a_worker_that_gave_up_is_a_failure_although_perf_analyzer_ends_well() -> None:
    output = "Concurrency: 2, throughput: 76\nThread [1] had error: in ensemble 'rank', Request timeout expired\n"
    assert request_failure(output) == "Thread [1] had error: in ensemble 'rank', Request timeout expired"
    assert request_failure("Concurrency: 2, throughput: 76") is None


def test_a_missing_binary_says_which_package_carries_it(tmp_path: Path) -> None:
    with pytest.raises(AnalyzerError, match=r"tritonclient==2\.50\.0"):
        find_analyzer(ServerEnvironment(tmp_path, tmp_path, "3.11"))


def test_a_window_without_a_whole_request_is_worth_a_longer_one() -> None:
    assert request_failure(f"Request concurrency: 1\n{TOO_SHORT}\n") == TOO_SHORT


# ---------------------------------------------------------------- open loops
def test_random_times_have_the_rate_that_was_asked_for_and_are_the_same_for_a_seed() -> None:
    intervals_us = poisson_intervals_us(40.0, 4000, seed=3)
    assert intervals_us.sum() / 1e6 == pytest.approx(4000 / 40.0, rel=1e-3)
    assert intervals_us.std() / intervals_us.mean() == pytest.approx(1.0, abs=0.05)  # as of exponential ones
    assert (intervals_us == poisson_intervals_us(40.0, 4000, seed=3)).all()
    assert not (intervals_us == poisson_intervals_us(40.0, 4000, seed=4)).all()


def test_warm_up_is_left_out_by_when_requests_were_sent_and_rates_are_of_the_rest(folder: Path) -> None:
    sent_s = [3.0, 1.0, 2.0, 4.0]  # perf_analyzer writes them as they were answered
    requests = [
        {"timestamp": int(at * 1e9), "response_timestamps": [int((at + took) * 1e9)]}
        for at, took in zip(sent_s, [0.01, 0.5, 0.02, 0.03], strict=True)
    ]
    (folder / EXPORT_FILE).write_text(json.dumps({"experiments": [{"requests": requests}]}))
    found = read_open_loop(folder, warm_up=1)
    np.testing.assert_allclose(found.latencies_ms, [20, 10, 30])
    assert found.sent_per_s == pytest.approx(1.0)
    assert found.requests_per_s == pytest.approx(3 / 2.03)
    with pytest.raises(AnalyzerError, match="left 4 requests; wanted more than 4"):
        read_open_loop(folder, warm_up=3)


@pytest.mark.server
def test_a_server_that_never_answers_does_not_hold_the_analyzer_for_ever(tmp_path: Path) -> None:
    """The real perf_analyzer before a socket that takes connections and says nothing."""
    (tmp_path / "r.json").write_text('{"data": [{"query": ["lamp"]}]}')
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        arguments = analyzer._arguments(f"127.0.0.1:{silent.getsockname()[1]}", "rank", tmp_path / "r.json", 1, 1000)
        with pytest.raises(AnalyzerError, match="perf_analyzer did not end within 2 s and was stopped"):
            analyzer._run(tmp_path, find_environment(), arguments, 2.0)
