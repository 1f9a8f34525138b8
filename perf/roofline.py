"""The least time that a machine needs for counted work, and what share of it is reached. Pure arithmetic.

Source: the roofline model, Williams, Waterman and Patterson, CACM 52(4), 2009: operations a second are at most the
smaller of the peak and of the operations a byte (intensity) times the bandwidth. A run of several types takes the sum
of what each takes at its own peak; runs follow each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from perf.errors import PerfError
from perf.graph_cost import Cost
from perf.kit.runtimes import RUNTIMES, Precision, Runtime
from perf.peaks import Bandwidth, Peak


@dataclasses.dataclass(frozen=True)
class Roof:
    """Of the processor at a number of threads, or of the GPU.

    Attributes:
        ops_per_s: type => the peak, of the runtime that reached most.
        bytes_per_s: of memory.
    """

    ops_per_s: Mapping[str, float]
    bytes_per_s: float

    def at(self, intensity: float, type_: str) -> float:
        """Operations/s of one type that are possible at so many operations a byte."""
        return min(self.ops_per_s[type_], intensity * self.bytes_per_s)

    def least_s(self, runs: Iterable[Cost]) -> float:
        """Seconds of runs, one after the other, whose types are those of the peaks."""
        return sum(max(self._arithmetic_s(run), run.bytes / self.bytes_per_s) for run in runs)

    def _arithmetic_s(self, run: Cost) -> float:
        return sum(ops / self.ops_per_s[type_] for type_, ops in run.ops.items())


def roof_of(runtime: Runtime, threads: int, peaks: Sequence[Peak], bandwidths: Sequence[Bandwidth]) -> Roof:
    """The best kernels of any runtime of the same device.

    Raises:
        PerfError: its bandwidth was not measured.
    """
    best: dict[str, float] = {}
    for peak in peaks:
        if peak.gops_per_s and peak.threads == threads and _on_gpu(peak.runtime) == runtime.needs_gpu:
            best[peak.type] = max(best.get(peak.type, 0.0), peak.gops_per_s * 1e9)
    found = [one for one in bandwidths if one.threads == threads and (one.device != "cpu") == runtime.needs_gpu]
    if not found:
        raise PerfError(f"no bandwidth of {threads} threads for {runtime.name}; wanted one of 'perf.peaks.bandwidth'")
    return Roof(best, found[0].bytes_per_s)


def _on_gpu(runtime: str) -> bool:
    return RUNTIMES[runtime].needs_gpu


def multiplied_in(runtime: Runtime, precision: Precision, type_: str, peaks: Sequence[Peak]) -> str:
    """The type of the arithmetic that a product of this type in a graph gets.

    Args:
        precision: that the runtime is asked to compute FP32 graphs in.

    Raises:
        PerfError: the runtime has no kernel for it.
    """
    asked = precision if type_ == "fp32" and precision in runtime.precisions else type_
    found = [peak for peak in peaks if (peak.runtime, peak.type) == (runtime.name, asked)]
    if not found or not found[0].computed_in:
        reason = found[0].why if found else "not measured"
        raise PerfError(f"{runtime.name} has no peak of {asked}: {reason}; so its variants of {asked} have no limit")
    return found[0].computed_in


def as_multiplied(cost: Cost, types: Mapping[str, str]) -> Cost:
    """The same work under the types that it is multiplied in. types: of the graph => of the arithmetic."""
    ops: dict[str, float] = {}
    for type_, count in cost.ops.items():
        ops[types[type_]] = ops.get(types[type_], 0.0) + count
    return dataclasses.replace(cost, ops=ops)
