"""The real perf_analyzer: found in the server's environment, run once a measurement, its files read.

It is an old binary that asks for two libraries under names that they do not have in the environment, writes a file for
each composing model beside its own, and goes on with fewer requests when one fails. Knows nothing of sweeps.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from tritonrank_client import TLS

from perf.errors import PerfError
from server.environment import ServerEnvironment, find_environment

LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
"""Name that perf_analyzer asks for => pattern in ``nvidia_pytriton.libs``."""
CSV_FILE, EXPORT_FILE = "measured.csv", "requests.json"
COMPOSING_SUFFIX = f"_v*.{CSV_FILE}"
WINDOWS = 3
"""perf_analyzer stops when this many windows in a row agree; any three do, since the rounds show the spread."""
LIMIT_FACTOR, LIMIT_LEAST_S = 4, 120
ATTEMPTS = 3
TOO_SHORT = "No valid requests recorded within time interval. Please use a larger time window."
QUEUE = ("Server Queue",)
COMPUTE = ("Server Compute Input", "Server Compute Infer", "Server Compute Output")
MICROSECONDS_PER_MS, NANOSECONDS_PER_MS = 1e3, 1e6
MICROSECONDS_PER_S, NANOSECONDS_PER_S = 1e6, 1e9


WARM_UP_REQUESTS = 100
"""Sent before those that count, at the same rate."""
INTERVALS_FILE = "intervals.txt"
LEAST_SENT = 0.95
"""Of the wanted rate; a sender that falls behind it measures another load."""

Transport = Literal["grpc", "http", "grpc+tls", "grpc+shared_memory", "http+shared_memory"]
"""How requests come to the server. Shared memory is the system's: perf_analyzer then runs on the server's machine."""
GRPC: Transport = "grpc"


class AnalyzerError(PerfError):
    """perf_analyzer is missing, failed, or measured requests that failed."""


class RequestsFailed(AnalyzerError):
    """The server refused or failed a request, or none ended in time."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A composing model's share of a request, means over the requests."""

    model: str
    queue_ms: float
    compute_ms: float


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One run.

    Attributes:
        latencies_ms: float64 [requests], client side.
        requests_per_s: completed.
        steps: composing models, from their own files: in the ensemble's, queue and compute are wrong.
        repeated: earlier runs thrown away because a request failed or none ended in a window.
        sent_per_s: rate at which requests were sent, where one was held.
        foreign_share: of the machine's processor time that other programs took meanwhile, 0 to 1; None = not known.
        runs: this is the least disturbed of so many.
    """

    latencies_ms: np.ndarray
    requests_per_s: float
    steps: tuple[Step, ...]
    repeated: int = 0
    sent_per_s: float | None = None
    foreign_share: float | None = None
    runs: int = 1


def find_analyzer(environment: ServerEnvironment | None = None) -> Path:
    """The binary in the server's environment. Raises: AnalyzerError."""
    binary = (environment or find_environment()).bin / "perf_analyzer"
    if not binary.is_file():
        raise AnalyzerError(
            f"{binary} is not there; wanted the one of the package tritonclient==2.50.0, which 'make setup' installs "
            "into the server's environment"
        )
    return binary


def measure(
    url: str,
    model: str,
    requests_file: Path,
    *,
    concurrency: int,
    window_ms: int,
    tls: TLS | None = None,
    transport: Transport = GRPC,
    environment: ServerEnvironment | None = None,
) -> Measurement:
    """Send the requests in turn, ``concurrency`` at a time, for three windows: a closed loop.

    Raises:
        RequestsFailed: in every one of ``ATTEMPTS`` runs a request failed or none ended in a window, which grows from
            run to run.
        AnalyzerError: perf_analyzer failed.
    """
    environment = environment or find_environment()
    for repeated in range(ATTEMPTS):
        with tempfile.TemporaryDirectory(prefix="tritonrank_perf_") as name:
            folder = Path(name)
            arguments = [
                *_arguments(url, model, requests_file, concurrency, window_ms, transport),
                *_tls_arguments(tls),
            ]
            output = _run(folder, environment, arguments, _limit_s(window_ms))
            failure = request_failure(output)
            if failure is None:
                return dataclasses.replace(read_measurement(folder), repeated=repeated)
            if failure == TOO_SHORT:
                window_ms *= 2
    raise RequestsFailed(
        f"perf_analyzer, {model} at concurrency {concurrency}: {ATTEMPTS} runs failed, the last with: {failure}. "
        "If the queue is too short or its timeout too small for this load, see [serving] of the recipe; "
        "if requests take longer than a window, raise window_ms of the sweep"
    )


def measure_poisson(
    url: str,
    model: str,
    requests_file: Path,
    *,
    rate_per_s: float,
    requests: int,
    seed: int = 0,
    tls: TLS | None = None,
    transport: Transport = GRPC,
    environment: ServerEnvironment | None = None,
) -> Measurement:
    """Send so many requests at random (Poisson) times, whatever became of those before: an open loop.

    ``WARM_UP_REQUESTS`` more are sent first and left out of the latencies, not of the steps' means. Every request is
    waited for, so none that is slow is missing.

    Args:
        rate_per_s: mean; the drawn times are scaled so that they have it exactly.
        seed: of the times. perf_analyzer draws the same ones each time, so they are drawn here.

    Raises:
        RequestsFailed: a request failed, or perf_analyzer fell behind the rate.
        AnalyzerError: perf_analyzer failed.
    """
    environment = environment or find_environment()
    asked = f"perf_analyzer, {model} at {rate_per_s:g} requests/s"
    with tempfile.TemporaryDirectory(prefix="tritonrank_perf_") as name:
        folder = Path(name)
        intervals_us = poisson_intervals_us(rate_per_s, requests + WARM_UP_REQUESTS, seed)
        (folder / INTERVALS_FILE).write_text("".join(f"{interval}\n" for interval in intervals_us), encoding="utf-8")
        arguments = _open_loop_arguments(url, model, requests_file, intervals_us.size, transport)
        limit_s = LIMIT_FACTOR * intervals_us.sum() / MICROSECONDS_PER_S + LIMIT_LEAST_S
        output = _run(folder, environment, [*arguments, *_tls_arguments(tls)], limit_s)
        if (failure := request_failure(output)) is not None:
            raise RequestsFailed(f"{asked}: {failure}")
        found = read_open_loop(folder, WARM_UP_REQUESTS)
    if found.sent_per_s is not None and found.sent_per_s < LEAST_SENT * rate_per_s:
        raise RequestsFailed(f"{asked}: it sent only {found.sent_per_s:.1f}/s; this machine cannot send more beside it")
    return found


def poisson_intervals_us(rate_per_s: float, count: int, seed: int) -> np.ndarray:
    """int64 [count], microseconds between requests, exponential, of exactly the mean rate; the same for a seed."""
    drawn = np.random.default_rng(seed).exponential(size=count)
    return np.maximum(np.rint(drawn / drawn.mean() * MICROSECONDS_PER_S / rate_per_s), 1).astype(np.int64)


def read_open_loop(folder: Path, warm_up: int) -> Measurement:
    """What perf_analyzer left of an open loop, without the first ``warm_up`` requests. Raises: AnalyzerError."""
    found = read_measurement(folder)
    sent_ns, answered_ns = _times_of(_export(folder))
    order = np.argsort(sent_ns)[warm_up:]
    if order.size < 2:
        raise AnalyzerError(f"perf_analyzer left {sent_ns.size} requests; wanted more than {warm_up + 1}")
    sent_ns, answered_ns = sent_ns[order], answered_ns[order]
    return dataclasses.replace(
        found,
        latencies_ms=(answered_ns - sent_ns) / NANOSECONDS_PER_MS,
        # perf_analyzer's own rate counts the time in which it waits for the last ones and its windows' rest.
        requests_per_s=float(order.size / (answered_ns.max() - sent_ns.min()) * NANOSECONDS_PER_S),
        sent_per_s=float((order.size - 1) / (sent_ns[-1] - sent_ns[0]) * NANOSECONDS_PER_S),
    )


def read_measurement(folder: Path) -> Measurement:
    """What perf_analyzer left in ``folder``. Raises: AnalyzerError when a file is missing or holds no request."""
    try:
        export = _export(folder)
        [row] = read_csv(folder / CSV_FILE)
    except (FileNotFoundError, ValueError) as error:
        raise AnalyzerError(f"perf_analyzer left no whole measurement ({error}); give it a longer window_ms") from error
    latencies_ms = latencies_of(export)
    if not latencies_ms.size:
        raise AnalyzerError("perf_analyzer completed no request within its windows; give it a longer window_ms")
    return Measurement(latencies_ms, float(row["Inferences/Second"]), tuple(composing_steps(folder)))


def latencies_of(export: dict) -> np.ndarray:
    """float64 [requests], milliseconds, of perf_analyzer's ``--profile-export-file``."""
    sent_ns, answered_ns = _times_of(export)
    return (answered_ns - sent_ns) / NANOSECONDS_PER_MS


def _export(folder: Path) -> dict:
    return dict(json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8")))


def _times_of(export: dict) -> tuple[np.ndarray, np.ndarray]:
    """int64 [requests] each, nanoseconds: when it was sent, and when its last response came."""
    requests = [request for experiment in export["experiments"] for request in experiment["requests"]]
    sent = [request["timestamp"] for request in requests]
    answered = [request["response_timestamps"][-1] for request in requests]
    return np.array(sent, dtype=np.int64), np.array(answered, dtype=np.int64)


def composing_steps(folder: Path) -> Iterator[Step]:
    """Queue and compute of every composing model, from ``<model>_v<version>.<csv>``."""
    for path in sorted(folder.glob(f"*{COMPOSING_SUFFIX}")):
        [row] = read_csv(path)
        yield Step(path.name.rsplit("_v", 1)[0], _sum_ms(row, QUEUE), _sum_ms(row, COMPUTE))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with a header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def request_failure(output: str) -> str | None:
    """The line that makes a run worthless and worth repeating, if there is one.

    perf_analyzer ends with 0 although a worker gave up after a failed request.
    """
    return next((line.strip() for line in output.splitlines() if "had error" in line or TOO_SHORT in line), None)


def _arguments(
    url: str, model: str, requests_file: Path, concurrency: int, window_ms: int, transport: Transport = GRPC
) -> list[str]:
    return [
        *_common_arguments(url, model, requests_file, transport),
        *("--concurrency-range", str(concurrency), "--measurement-interval", str(window_ms)),
        *("--stability-percentage", "1000", "--max-trials", str(WINDOWS)),
    ]


def _open_loop_arguments(
    url: str, model: str, requests_file: Path, requests: int, transport: Transport = GRPC
) -> list[str]:
    return [
        *_common_arguments(url, model, requests_file, transport),
        # Without --async a request waits until one of four threads has its answer: that is no open loop.
        *("--async", "--request-intervals", INTERVALS_FILE, "--request-count", str(requests)),
    ]


def _common_arguments(url: str, model: str, requests_file: Path, transport: Transport) -> list[str]:
    protocol, _, further = transport.partition("+")
    return [
        *("-m", model, "-i", protocol, "-u", url, "--input-data", str(requests_file.absolute())),
        *(("--shared-memory", "system") if further == "shared_memory" else ()),
        # A relative name: the composing models' files are called <model>_v<version>.<this>, path and all.
        *("-f", CSV_FILE, "--profile-export-file", EXPORT_FILE),
    ]


def _tls_arguments(tls: TLS | None) -> list[str]:
    if tls is None:
        return []
    files = {"root-certifications": tls.ca, "certificate-chain": tls.certificate, "private-key": tls.key}
    named = [
        (f"--ssl-grpc-{name}-file", str(Path(file).absolute())) for name, file in files.items() if file is not None
    ]
    return ["--ssl-grpc-use-ssl", *(word for option in named for word in option)]


def _limit_s(window_ms: int) -> float:
    """Far more than it takes: perf_analyzer waits for ever for an answer that does not come."""
    return LIMIT_FACTOR * WINDOWS * window_ms / 1000 + LIMIT_LEAST_S


def _run(folder: Path, environment: ServerEnvironment, arguments: list[str], limit_s: float) -> str:
    """Standard output and error.

    Raises:
        AnalyzerError: it fails for another reason than a refused request, or does not end; it is then stopped.
    """
    binary = find_analyzer(environment)
    environ = {**os.environ, "LD_LIBRARY_PATH": str(_libraries(folder, environment))}
    try:
        ended = subprocess.run(
            [str(binary), *arguments], cwd=folder, env=environ, capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired as error:
        raise AnalyzerError(
            f"perf_analyzer did not end within {limit_s:.0f} s and was stopped: the server took a request and answers "
            "nothing. Start it again, and measure again"
        ) from error
    output = ended.stdout + ended.stderr
    if ended.returncode != 0 and request_failure(output) is None:
        raise AnalyzerError(f"perf_analyzer ended with code {ended.returncode}: {output.strip()[-600:]}")
    return output


def _libraries(folder: Path, environment: ServerEnvironment) -> Path:
    """A folder that holds the two libraries under the names that perf_analyzer asks for."""
    links = folder / "libraries"
    links.mkdir()
    for name, pattern in LIBRARIES.items():
        found = sorted(environment.libraries.glob(pattern))
        if not found:
            raise AnalyzerError(
                f"{environment.libraries}: no {pattern}, wanted nvidia-pytriton==0.7.0; run 'make setup'"
            )
        (links / name).symlink_to(found[0])
    return links


def _sum_ms(row: dict[str, str], columns: tuple[str, ...]) -> float:
    return sum(float(row[column]) for column in columns) / MICROSECONDS_PER_MS
