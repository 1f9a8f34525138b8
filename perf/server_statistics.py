"""What a running server counts of a model: requests, and the time that it computed for them."""

from __future__ import annotations

import time

import tritonclient.grpc as triton

from perf.errors import PerfError

STATISTICS_TIMEOUT_S = 2.0


class ServerStatistics:
    """Compute times of one model, as the server counts them: input, infer and output together."""

    def __init__(self, url: str, model: str) -> None:
        self._client, self._model = triton.InferenceServerClient(url), model

    def compute(self) -> tuple[int, int]:
        """(requests, nanoseconds) since the server started, over all versions."""
        stats = [version.inference_stats for version in self._client.get_inference_statistics(self._model).model_stats]
        spans = [span for stat in stats for span in (stat.compute_input, stat.compute_infer, stat.compute_output)]
        return sum(stat.success.count for stat in stats), sum(span.ns for span in spans)

    def compute_ms_since(self, before: tuple[int, int]) -> float:
        """Mean over the requests since ``before``; waits for the first, which is counted after it is answered."""
        end_s = time.monotonic() + STATISTICS_TIMEOUT_S
        while (now := self.compute())[0] == before[0]:
            if time.monotonic() > end_s:
                raise PerfError(f"{self._model}: its statistics count no request; is it a step of that endpoint?")
            time.sleep(0.001)
        return (now[1] - before[1]) / (now[0] - before[0]) / 1e6
