"""Each served variant as a share of what the machine can do at most, by the roofline model.

Measured: matrix products and memory (:mod:`perf.peaks`), each variant's networks in this process, and its endpoint in
a server of its own, all with the same real requests. Counted: what these requests ask of the networks, with the padding
that the served model computes and without any (:mod:`perf.graph_cost`). At a share of 1 the machine would do nothing
but multiply, as fast as in tiny graphs, or nothing but read.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.metadata
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
from rich.console import Console

from perf.analyzer import AnalyzerError, Measurement, measure
from perf.endpoints import Endpoint, served_scorers, serving
from perf.errors import PerfError
from perf.foreign_load import Watched, undisturbed
from perf.gpu_ceiling import gpu_bandwidth, gpu_peaks, missing_gpu, onnx_of_plan
from perf.graph_cost import Cost, CountedGraph, packed
from perf.inputs import evenly_mixed, mean_candidates, requests_json, write_requests
from perf.kit.data import PROJECT, JudgedQueries, Workspace, evaluation_data, first_stage, judging_queries
from perf.kit.rankers import Ranker, Sample, Session, load_ranker, runs_of, runs_without_padding, sessions_of
from perf.kit.runtimes import instruction_sets
from perf.kit.served import endpoint_inputs
from perf.machine import Machine, this_machine
from perf.peaks import RUNS, SHAPES, Bandwidth, Peak, Shape, bandwidth, cpu_peaks
from perf.progress import track
from perf.roofline import Roof, as_multiplied, multiplied_in, roof_of
from server.errors import ServerError

REQUESTS = 40
"""Judged requests that are counted, and sent in turn, at most."""
CONCURRENCY = 4
"""Requests at once, or two an instance where that is more: enough that the scorers never wait."""
WINDOW_MS, SECONDS = 4000, 3.0
IN_PROCESS, SERVED = "in process", "served"
LIBRARIES = ("onnxruntime", "openvino", "torch")


# ---------------------------------------------------------------- what is found
class Counted(pydantic.BaseModel):
    """What one request asks of a variant's networks: means over the requests.

    Attributes:
        requests: counted.
        ops, ops_without_padding: type of the arithmetic => operations, a multiply-add being two; as served, and of each
            row at its own length.
        runs: of the networks.
        weight_bytes: of all runs, each of which reads the weights once.
        tensor_bytes: of their inputs and outputs.
    """

    requests: int
    candidates: float
    ops: dict[str, float]
    ops_without_padding: dict[str, float]
    runs: float
    weight_bytes: float
    tensor_bytes: float

    @property
    def total_ops(self) -> float:
        """As served."""
        return sum(self.ops.values())

    @property
    def intensity(self) -> float:
        """Operations a byte, as served."""
        return self.total_ops / (self.weight_bytes + self.tensor_bytes)


class Reached(pydantic.BaseModel):
    """A variant's rate beside its limits.

    Attributes:
        where: "in process", the networks alone, or "served", whole requests.
        threads: of all instances together; the limits are of so many.
        requests: measured.
        least_ms, least_ms_without_padding: that the machine needs for a request of the work counted; the second in a
            single run of each network.
        foreign_share: of the machine's processor time that other programs took meanwhile, 0 to 1.
        measured_times: it is the least disturbed of so many.
    """

    where: str
    threads: int
    requests: int
    requests_per_s: float
    least_ms: float
    least_ms_without_padding: float
    foreign_share: float
    measured_times: int

    @property
    def share(self) -> float:
        """Of the limit, padding counted as work."""
        return self.least_ms / 1e3 * self.requests_per_s

    @property
    def share_without_padding(self) -> float:
        """Of the limit of what the requests ask for alone."""
        return self.least_ms_without_padding / 1e3 * self.requests_per_s


class VariantCeiling(pydantic.BaseModel):
    """A served variant.

    Attributes:
        multiplied_in: type in the graph => type of the arithmetic, of which the limit is.
        kernels: types that the served files' kernels multiply in, as the runtime says; empty where it is not asked.
    """

    model: str
    endpoint: str
    runtime: str
    instances: int
    threads: int
    concurrency: int
    multiplied_in: dict[str, str]
    kernels: list[str]
    counted: Counted
    reached: list[Reached]


class CeilingReport(pydantic.BaseModel):
    """Everything.

    Attributes:
        processor: architecture and instruction sets of low precision.
        libraries: versions that peaks and rows in process were measured with; those of the server are the machine's.
        data: digest of each recipe's data, by ranker.
        skipped: what this machine cannot measure, and why.
        failures: model => why it has no row.
    """

    written: str
    machine: Machine
    processor: tuple[str, ...]
    libraries: dict[str, str]
    window_ms: int
    data: dict[str, str]
    peaks: list[Peak]
    bandwidths: list[Bandwidth]
    variants: list[VariantCeiling]
    skipped: list[str]
    failures: dict[str, str]


# ---------------------------------------------------------------- the whole
@dataclasses.dataclass(frozen=True)
class Effort:
    """How long is measured, and with how much.

    Attributes:
        requests: counted and sent in turn, at most.
        window_ms: of each of the three of a served figure.
        seconds: of a figure in process, at least; whole passes over the requests.
        shapes, runs: of the peaks.
        array_bytes: of the bandwidth; 0 = as the caches ask for.
    """

    requests: int = REQUESTS
    window_ms: int = WINDOW_MS
    seconds: float = SECONDS
    shapes: Sequence[Shape] = SHAPES
    runs: int = RUNS
    array_bytes: int = 0


def run_ceiling(
    endpoints: Sequence[Endpoint],
    folder: Path,
    effort: Effort | None = None,
    workspace: Workspace = PROJECT,
    console: Console | None = None,
) -> CeilingReport:
    """Measure the machine, then variant by variant.

    Args:
        endpoints: published ones.
        folder: of the data.

    Raises:
        PerfError: nothing of any variant could be measured.
    """
    console, effort = console or Console(), effort or Effort()
    machine, why_no_gpu = this_machine(), missing_gpu()
    skipped = _skipped(endpoints, why_no_gpu)
    for line in skipped:
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    chosen = [one for one in endpoints if not (one.variant.runtime.needs_gpu and why_no_gpu)]
    threads = sorted({count for one in chosen for count in _threads_of(one, machine)})
    peaks = [peak for count in track(threads, "matrix products", console) for peak in _cpu_peaks(count, effort)]
    bandwidths = [bandwidth(count, array_bytes=effort.array_bytes, runs=effort.runs) for count in threads]
    if any(one.variant.runtime.needs_gpu for one in chosen):
        peaks, bandwidths = [*peaks, *gpu_peaks()], [*bandwidths, gpu_bandwidth()]
    report = CeilingReport(
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        machine=machine,
        processor=instruction_sets(),
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES},
        window_ms=effort.window_ms,
        data={},
        peaks=peaks,
        bandwidths=bandwidths,
        variants=[],
        skipped=skipped,
        failures={},
    )
    measured = _Measured(report, folder, effort, workspace)
    for endpoint in track(chosen, "variants counted and measured", console):
        measured.add(endpoint)
    if not report.variants:
        reasons = "; ".join(f"{model}: {reason}" for model, reason in report.failures.items()) or "; ".join(skipped)
        raise PerfError(f"no variant has a ceiling: {reasons or 'none was chosen'}")
    return report


def _skipped(endpoints: Sequence[Endpoint], why_no_gpu: str) -> list[str]:
    """One line for all that needs a GPU."""
    if not why_no_gpu:
        return []
    engines = [one.model for one in endpoints if one.variant.runtime.needs_gpu]
    which = f" and {', '.join(engines)}" if engines else ""
    return [f"skipped, since they need a GPU: its peaks and bandwidth{which}: {why_no_gpu}"]


def _threads_of(endpoint: Endpoint, machine: Machine) -> tuple[int, int]:
    """(of one run, of all instances together); both 0 on a GPU."""
    if endpoint.variant.runtime.needs_gpu:
        return 0, 0
    serving_ = endpoint.recipe.serving
    one = min(serving_.threads, machine.cores)
    return one, min(serving_.threads * serving_.instances, machine.cores)


def _cpu_peaks(threads: int, effort: Effort) -> Iterator[Peak]:
    return cpu_peaks(threads, effort.shapes, effort.runs) if threads else iter(())


@dataclasses.dataclass
class _Measured:
    """Adds variants to a report, each ranker loaded once."""

    report: CeilingReport
    folder: Path
    effort: Effort
    workspace: Workspace
    asked: dict[str, Asked] = dataclasses.field(default_factory=dict)

    def add(self, endpoint: Endpoint) -> None:
        """A row, or why there is none."""
        name = endpoint.recipe.ranker
        try:
            if name not in self.asked:
                self.asked[name] = Asked.of(endpoint, self.folder, self.effort.requests)
                self.report.data[name] = self.asked[name].data.digest
            row = variant_ceiling(endpoint, self.asked[name], self.report, self.effort, self.workspace)
        except (PerfError, AnalyzerError, ServerError) as error:
            self.report.failures[endpoint.model] = str(error)
        else:
            self.report.variants.append(row)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A ranker with the requests that all its variants are counted and measured with.

    Attributes:
        data: judged; every query is one request.
        samples: of each request: graph name => its inputs.
    """

    ranker: Ranker
    data: JudgedQueries
    samples: Sequence[Mapping[str, Sample]]

    @staticmethod
    def of(endpoint: Endpoint, folder: Path, requests: int) -> Asked:
        """The first so many queries that may judge the endpoint's ranker. Raises: DatasetError."""
        data = judging_queries(endpoint.recipe, evaluation_data(endpoint.recipe.data, folder))
        data = data.only(list(data.queries)[:requests])
        ranker = load_ranker(endpoint.recipe)
        samples = [
            ranker.sample(data.request(query_id), [data.products[item_id] for item_id in item_ids])
            for query_id, item_ids in first_stage(data).items()
        ]
        return Asked(ranker, data, samples)

    def requests(self, reads: Iterable[str]) -> dict[str, Any]:
        """perf_analyzer's JSON. reads: names of the endpoint's inputs."""
        return evenly_mixed(requests_json(self.data, first_stage(self.data), list(reads)))


def variant_ceiling(
    endpoint: Endpoint, asked: Asked, report: CeilingReport, effort: Effort, workspace: Workspace = PROJECT
) -> VariantCeiling:
    """Count it, run it in process, and serve it.

    Raises:
        PerfError: its graphs cannot be counted, or have no peak, or perf_analyzer fails.
        ServerError: the server does not start.
    """
    files = served_scorers(endpoint, workspace)
    requests = asked.requests(endpoint_inputs(workspace.repository, endpoint.name))
    costs = request_costs(endpoint, asked, files, workspace)
    variant, (one, together) = endpoint.variant, _threads_of(endpoint, report.machine)
    types = {type_ for cost in costs for run in cost.served for type_ in run.ops}
    multiplied = {
        type_: multiplied_in(variant.runtime, variant.precision, type_, report.peaks) for type_ in sorted(types)
    }
    costs = [cost.as_multiplied(multiplied) for cost in costs]
    concurrency = max(CONCURRENCY, 2 * endpoint.recipe.serving.instances)
    roofs = [roof_of(variant.runtime, threads, report.peaks, report.bandwidths) for threads in (one, together)]
    sessions = sessions_of(endpoint.recipe, variant, asked.ranker, files)
    return VariantCeiling(
        model=endpoint.model,
        endpoint=endpoint.name,
        runtime=variant.runtime.name,
        instances=endpoint.recipe.serving.instances,
        threads=endpoint.recipe.serving.threads,
        concurrency=concurrency,
        multiplied_in=multiplied,
        kernels=kernel_types(endpoint, asked, files),
        counted=counted(costs, mean_candidates(requests)),
        reached=[
            reached(IN_PROCESS, one, costs, roofs[0], in_process(asked, sessions, effort.seconds)),
            reached(SERVED, together, costs, roofs[1], served(endpoint, requests, concurrency, effort, workspace)),
        ],
    )


# ---------------------------------------------------------------- counting
@dataclasses.dataclass(frozen=True)
class RequestCost:
    """One request.

    Attributes:
        served: every run of every network.
        without_padding: of each network a run with every row at its own length.
    """

    served: Sequence[Cost]
    without_padding: Sequence[Cost]

    def as_multiplied(self, types: Mapping[str, str]) -> RequestCost:
        """See :func:`perf.roofline.as_multiplied`."""
        return RequestCost(
            [as_multiplied(cost, types) for cost in self.served],
            [as_multiplied(cost, types) for cost in self.without_padding],
        )


def request_costs(
    endpoint: Endpoint, asked: Asked, files: Sequence[Path], workspace: Workspace = PROJECT
) -> list[RequestCost]:
    """Of each request. files: of the ranker's graphs, in their order. Raises: PerfError."""
    graphs = asked.ranker.graphs
    if len(files) != len(graphs):
        raise PerfError(
            f"{endpoint.name}: {len(files)} scorers' files in {workspace.repository}, wanted {len(graphs)}; run "
            "'make repository'"
        )
    sources = [onnx_of_plan(path, workspace) if path.suffix == ".plan" else path for path in files]
    opened = [(graph, CountedGraph(source)) for graph, source in zip(graphs, sources, strict=True)]
    found = []
    for samples in asked.samples:
        served_runs: list[Cost] = []
        whole: list[Cost] = []
        for graph, file in opened:
            sample = samples[graph.name]
            served_runs += [file.cost(_shapes(run)) for run in runs_of(graph, endpoint.variant, sample)]
            whole.append(packed(file.cost(_shapes(run)) for run in runs_without_padding(graph, sample)))
        found.append(RequestCost(served_runs, whole))
    return found


def kernel_types(endpoint: Endpoint, asked: Asked, files: Sequence[Path]) -> list[str]:
    """Types that the files' kernels multiply in, for the first run of the first request."""
    variant, computes_in, found = endpoint.variant, endpoint.variant.runtime.computes_in, set[str]()
    if computes_in is None:
        return []
    for graph, path in zip(asked.ranker.graphs, files, strict=True):
        found |= computes_in(path, variant.precision, runs_of(graph, variant, asked.samples[0][graph.name])[0])
    return sorted(found)


def _shapes(sample: Sample) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in sample.items()}


def counted(costs: Sequence[RequestCost], candidates: float) -> Counted:
    """Means over the requests."""
    runs = [run for cost in costs for run in cost.served]
    return Counted(
        requests=len(costs),
        candidates=candidates,
        ops=_mean_ops(runs, len(costs)),
        ops_without_padding=_mean_ops([run for cost in costs for run in cost.without_padding], len(costs)),
        runs=len(runs) / len(costs),
        weight_bytes=sum(run.weight_bytes for run in runs) / len(costs),
        tensor_bytes=sum(run.tensor_bytes for run in runs) / len(costs),
    )


def _mean_ops(runs: Iterable[Cost], requests: int) -> dict[str, float]:
    total: Counter[str] = Counter()
    for run in runs:
        total.update(run.ops)
    return {type_: ops / requests for type_, ops in sorted(total.items())}


# ---------------------------------------------------------------- measuring
@dataclasses.dataclass(frozen=True)
class Rate:
    """So many requests were answered, and so many a second."""

    requests: int
    requests_per_s: float


def reached(where: str, threads: int, costs: Sequence[RequestCost], roof: Roof, watched: Watched[Rate]) -> Reached:
    """A rate beside the limits of the mean request."""
    return Reached(
        where=where,
        threads=threads,
        requests=watched.found.requests,
        requests_per_s=watched.found.requests_per_s,
        least_ms=_mean_ms(roof.least_s(cost.served) for cost in costs),
        least_ms_without_padding=_mean_ms(roof.least_s(cost.without_padding) for cost in costs),
        foreign_share=watched.foreign_share,
        measured_times=watched.runs,
    )


def _mean_ms(seconds: Iterable[float]) -> float:
    listed = list(seconds)
    return sum(listed) / len(listed) * 1e3


def in_process(asked: Asked, sessions: Mapping[str, Session], seconds: float) -> Watched[Rate]:
    """Whole passes over the requests, after one that is not measured, for at least ``seconds``."""

    def passes() -> Rate:
        count, taken_s = 0, 0.0
        while taken_s < seconds or not count:
            start_s = time.perf_counter()
            _pass(asked, sessions)
            taken_s += time.perf_counter() - start_s
            count += len(asked.samples)
        return Rate(count, count / taken_s)

    _pass(asked, sessions)
    return undisturbed(passes)


def _pass(asked: Asked, sessions: Mapping[str, Session]) -> None:
    """Every request once, graph by graph, each fed the ones before it."""
    for samples in asked.samples:
        outputs: Sample = {}
        for graph in asked.ranker.graphs:
            outputs = sessions[graph.name].run({**samples[graph.name], **outputs})


def served(
    endpoint: Endpoint, requests: Mapping[str, Any], concurrency: int, effort: Effort, workspace: Workspace
) -> Watched[Rate]:
    """A closed loop of perf_analyzer against a server that serves nothing else. Raises: AnalyzerError, ServerError."""
    with tempfile.TemporaryDirectory(prefix="tritonrank_ceiling_") as folder:
        file = Path(folder) / "requests.json"
        write_requests(requests, file)
        with serving([endpoint.name], workspace) as server:
            asked: Callable[[], Measurement] = functools.partial(
                measure, server.grpc_url, endpoint.name, file, concurrency=concurrency, window_ms=effort.window_ms
            )
            watched = undisturbed(asked)
    rate = Rate(watched.found.latencies_ms.size, watched.found.requests_per_s)
    return Watched(rate, watched.foreign_share, watched.runs)


def ceiling_json(report: CeilingReport) -> str:
    """With what is derived of each row: shares, operations a second, intensity."""
    content = report.model_dump(mode="json")
    for row, kept in zip(content["variants"], report.variants, strict=True):
        row["counted"]["ops_per_byte"] = kept.counted.intensity
        for side, one in zip(row["reached"], kept.reached, strict=True):
            side["gops_per_s"] = kept.counted.total_ops * one.requests_per_s / 1e9
            side["share"], side["share_without_padding"] = one.share, one.share_without_padding
    return json.dumps(content, indent=2) + "\n"
