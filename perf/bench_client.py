"""What the client adds to a bare tritonclient call, and what two thousand calls at once take.

The server holds one Python model that gives the candidates back as they came. Both kinds of calls make their tensors
from the same Python strings and read the same outputs, in turn on the same server.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from tritonrank_client import BreakerPolicy, Degradation, RankClient, RetryPolicy

from perf.bench_base import Bench, Figure, in_turn_ms
from perf.errors import PerfError
from perf.kit.data import USUAL_CANDIDATES
from server import TritonServer

CALLS, WARM_UP = 2000, 200
ADDED_LIMIT_MS = 0.15
AT_ONCE, MEMORY_LIMIT_MIB = 2000, 300.0
QUERY = "red shoes"
MODEL_PY = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            ids = pb.get_input_tensor_by_name(request, "item_ids").as_numpy()
            scores = np.arange(len(ids), 0, -1, dtype=np.float32)
            answers.append(pb.InferenceResponse([pb.Tensor("ranked_ids", ids), pb.Tensor("scores", scores)]))
        return answers
"""
CONFIG_PBTXT = """
backend: "python"
max_batch_size: 0
input [ { name: "query" data_type: TYPE_STRING dims: [ 1 ] }, { name: "item_ids" data_type: TYPE_STRING dims: [ -1 ] },
        { name: "top_k" data_type: TYPE_INT32 dims: [ 1 ] optional: true } ]
output [ { name: "ranked_ids" data_type: TYPE_STRING dims: [ -1 ] },
         { name: "scores" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""
ALL_AT_ONCE = """
import asyncio, json, sys
from tritonrank_client import AsyncRankClient
url, calls, candidates = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ids = [f"B{number:09d}" for number in range(candidates)]

async def main():
    async with AsyncRankClient(url, timeout_s=120.0) as client:
        await client.warm_up()
        answers = await asyncio.gather(*(client.rank("red shoes", ids) for _ in range(calls)))
    return sum(answer.ids == tuple(ids) for answer in answers)

right = asyncio.run(main())
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # getrusage has the parent's, too
print(json.dumps([right, int(peak.split()[1]) / 1024]))
"""


def bench_client(bench: Bench) -> list[Figure]:
    """Added time at the median, without and with policies; memory of a process with many calls at once."""
    ids = [f"B{number:09d}" for number in range(USUAL_CANDIDATES)]
    with tempfile.TemporaryDirectory(prefix="tritonrank_client_") as folder:
        _write_model(Path(folder) / "rank")
        with TritonServer(folder, ["rank"], grpc_port=0, http_port=0, metrics_port=0) as server:
            bare, plain, careful = _medians_ms(bench, server.grpc_url, ids)
            right, peak_mib = _all_at_once(server.grpc_url, len(ids))
    told = f"bare {bare:.3f} ms, {CALLS} calls each, {len(ids)} candidates"
    return [
        Figure("added by the client", plain - bare, "ms", ADDED_LIMIT_MS, detail=told),
        Figure("added with retries, breaker and degradation", careful - bare, "ms", detail=told),
        Figure(f"memory of {AT_ONCE:,} calls at once", peak_mib, "MiB", MEMORY_LIMIT_MIB, detail=f"{right:,} right"),
    ]


def _write_model(folder: Path) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(MODEL_PY)
    (folder / "config.pbtxt").write_text(CONFIG_PBTXT)


def _medians_ms(bench: Bench, url: str, ids: list[str]) -> list[float]:
    options = {"retry": RetryPolicy(), "breaker": BreakerPolicy(), "degradation": Degradation()}
    with (
        grpc.InferenceServerClient(url) as triton,
        RankClient(url, timeout_s=10.0) as plain,
        RankClient(url, timeout_s=10.0, **options) as careful,
    ):
        calls = [
            lambda: _bare(triton, ids),
            lambda: plain.rank(QUERY, ids),
            lambda: careful.rank(QUERY, ids),
        ]
        found = [in_turn_ms(calls, first=number) for number in bench.track(range(WARM_UP + CALLS), "client")]
    return [statistics.median(column) for column in zip(*found[WARM_UP:], strict=True)]


def _bare(client: grpc.InferenceServerClient, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    query = grpc.InferInput("query", [1], "BYTES")
    query.set_data_from_numpy(np.array([QUERY.encode()], dtype=np.object_))
    items = grpc.InferInput("item_ids", [len(ids)], "BYTES")
    items.set_data_from_numpy(np.array([item_id.encode() for item_id in ids], dtype=np.object_))
    outputs = [grpc.InferRequestedOutput("ranked_ids"), grpc.InferRequestedOutput("scores")]
    result = client.infer("rank", [query, items], outputs=outputs, client_timeout=10.0)
    return result.as_numpy("ranked_ids"), result.as_numpy("scores")


def _all_at_once(url: str, candidates: int) -> tuple[int, float]:
    """In a process that imports the client alone. Right answers, peak MiB."""
    command = [sys.executable, "-c", ALL_AT_ONCE, url, str(AT_ONCE), str(candidates)]
    start_s = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PerfError(
            f"{AT_ONCE} calls at once failed after {time.monotonic() - start_s:.0f} s: {done.stderr[-500:]}"
        )
    right, peak_mib = json.loads(done.stdout)
    return int(right), float(peak_mib)
