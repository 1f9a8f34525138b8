"""`python -m perf gpu-report`: builds every engine, runs the GPU tests and the sweeps, and writes down what came of it.

Parts: build times with and without timing cache; the tests marked ``gpu``; latency, rate and share of the measured
matrix-product peak of torch, ONNX Runtime and TensorRT at many shapes; the served endpoints under perf_analyzer. A part
that fails leaves its reason in the report and the others in peace. Written to ``build/report/gpu.json`` and ``gpu.md``.

On a machine without an NVIDIA GPU it says what is missing, and measures nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import jinja2
import torch
from rich.console import Console

from builders.compress.chain import parity_samples
from builders.core.contract import USUAL_CANDIDATES
from builders.core.files import write_atomically
from builders.core.recipe import Recipe, load_recipes
from builders.core.workspace import PROJECT, REPOSITORY_ROOT, Workspace
from builders.data.evaluation import evaluation_data
from builders.data.find import find_data
from builders.rankers.base import Graph, Ranker, Sample
from builders.rankers.load import load_ranker
from perf.bench import Figure
from perf.endpoints import published_endpoints
from perf.errors import PerfError
from perf.gpu_figures import (
    Latency,
    Run,
    first_line,
    measure_column,
    measured_peak,
    onnx_provider,
    onnx_run,
    tensorrt_run,
    torch_run,
)
from perf.sweep import PerfReport, Sweep, run_sweep
from server.plans import MANIFEST, PLAN, served_versions

T = TypeVar("T")
TEMPLATES = Path(__file__).parent / "templates"
SUFFIX = "_trt"
STORE = "engines"
"""Folder of ``build`` with plans and timing caches, see ``builders/engines/store.py``."""
SWEEP = Sweep(concurrencies=(1, 4, 16), window_ms=2000, rounds=3)
GPU_FIELDS = (
    "name", "driver_version", "compute_cap", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem",
    "power.limit", "temperature.gpu",
)  # fmt: skip
"""Of ``nvidia-smi --query-gpu``; clocks in MHz, power in W, temperature in degrees Celsius."""
PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "polygraphy", "nvidia-modelopt")
EAGER, COMPILED = "torch eager fp16", "torch.compile fp16"
FP16, INT8 = "TensorRT fp16", "TensorRT int8"
REBUILD_LIMIT_S, CACHED_BUILD_LIMIT = 5.0, 0.25
EAGER_LIMIT, COMPILED_LIMIT, INT8_LIMIT = 2.0, 1.3, 1.0
LONGEST, LARGEST = 64, 512


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What the figures were measured on: :data:`GPU_FIELDS` before and after, and versions."""

    before: Mapping[str, str]
    after: Mapping[str, str]
    cuda: str
    versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class BuildTimes:
    """Seconds of three builds of every engine: without timing cache, with it, and with nothing to do."""

    cold_s: float
    with_timing_cache_s: float
    repeated_s: float


@dataclasses.dataclass(frozen=True)
class TestRun:
    """The tests marked ``gpu``; ``failed`` names those that did not pass."""

    __test__ = False  # no test of pytest's
    passed: int
    skipped: int
    failed: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Engine:
    """A plan as published, with what its manifest says."""

    model: str
    plan: Path
    manifest: Mapping[str, Any]

    @property
    def column(self) -> str:
        """`cross_encoder_int8_trt` => "TensorRT int8"."""
        return f"TensorRT {self.model.removesuffix(SUFFIX).rsplit('_', 1)[-1]}"


@dataclasses.dataclass(frozen=True)
class GpuReport:
    """Everything; a part that failed is None or empty, with a line in ``failures``."""

    gpu: Gpu
    engines: Sequence[Engine]
    builds: BuildTimes | None
    tests: TestRun | None
    peak_flops_per_s: float | None
    latencies: Sequence[Latency]
    served: PerfReport | None
    failures: Sequence[str]


# ---------------------------------------------------------------- the whole
def run_gpu_report(workspace: Workspace = PROJECT, console: Console | None = None) -> list[Path]:
    """Measure, write, and return what was written.

    Raises:
        PerfError: this machine has no GPU, or lacks what the figures need.
    """
    check_machine()
    say = (console or Console()).print
    failures: list[str] = []
    before = gpu_state()
    builds = _part("build times", failures, say, lambda: build_times(workspace))
    _part("model repository", failures, say, lambda: _run_or_raise([sys.executable, "-m", "builders", "repository"]))
    tests = _part("tests", failures, say, run_gpu_tests)
    peak = _part("matrix products", failures, say, lambda: measured_peak("cuda"))
    latencies = _part("latencies", failures, say, lambda: all_latencies(workspace, failures, say)) or []
    served = _part("served", failures, say, lambda: served_figures(workspace, console))
    gpu = Gpu(before, gpu_state(), str(torch.version.cuda), versions())
    report = GpuReport(gpu, published_engines(workspace), builds, tests, peak, latencies, served, failures)
    return write_gpu_report(report, workspace)


def check_machine() -> None:
    """Raises: PerfError, with everything that is missing here."""
    if missing := missing_here():
        raise PerfError(
            f"nothing of a GPU can be measured on this machine: {'; '.join(missing)}. Run 'make gpu-report' on a "
            "machine with an NVIDIA GPU that has these; what needs none is measured by 'make perf' and 'make bench'"
        )


def missing_here() -> list[str]:
    """What the report needs and this machine lacks; empty where there is everything."""
    missing = [] if torch.cuda.is_available() else [f"torch {torch.__version__} sees no CUDA GPU"]
    missing += [f"package {name} is not installed" for name in ("tensorrt", "polygraphy") if not _installed(name)]
    try:
        gpu_state()
    except (OSError, subprocess.CalledProcessError) as error:
        missing.append(f"nvidia-smi does not run ({first_line(error)})")
    return missing


def write_gpu_report(report: GpuReport, workspace: Workspace = PROJECT) -> list[Path]:
    """``gpu.json`` and ``gpu.md`` in ``build/report``."""
    folder = workspace.build / "report"
    write_atomically(folder / "gpu.json", json.dumps(dataclasses.asdict(report), indent=2, default=str) + "\n")
    write_atomically(folder / "gpu.md", render_gpu_report(report))
    return [folder / "gpu.json", folder / "gpu.md"]


def render_gpu_report(report: GpuReport) -> str:
    """Markdown."""
    environment = jinja2.Environment(  # nothing of it is HTML
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("gpu_report.md.j2").render(
        report=report,
        peak=report.peak_flops_per_s,
        figures=figures_to_reach(report),
        networks=dict.fromkeys(one.network for one in report.latencies),
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def figures_to_reach(report: GpuReport) -> list[Figure]:
    """Those that could be measured, each with its limit."""
    found = []
    if report.builds:
        share = report.builds.with_timing_cache_s / report.builds.cold_s
        found.append(Figure("repeated build of every engine", report.builds.repeated_s, "s", REBUILD_LIMIT_S))
        found.append(Figure("build with timing cache over without", share, "", CACHED_BUILD_LIMIT))
    for network in dict.fromkeys(one.network for one in report.latencies):
        found += _speedups(network, {(one.column, one.rows, one.length): one for one in report.latencies})
    return found


def _speedups(network: str, latencies: Mapping[tuple[str, int, int], Latency]) -> Iterator[Figure]:
    lengths = [length for _, _, length in latencies]
    usual = (USUAL_CANDIDATES, LONGEST if LONGEST in lengths else 0)
    largest = (LARGEST, usual[1])
    for name, slow, fast, shape, limit in (
        (f"{FP16} over {EAGER}", EAGER, FP16, usual, EAGER_LIMIT),
        (f"{FP16} over {COMPILED}", COMPILED, FP16, usual, COMPILED_LIMIT),
        (f"{INT8} over {FP16}", FP16, INT8, largest, INT8_LIMIT),
    ):
        pair = [latencies.get((column, *shape)) for column in (slow, fast)]
        if pair[0] and pair[1] and pair[0].network == pair[1].network == network:
            detail = f"{network}, {shape[0]} rows" + (f" of length {shape[1]}" if shape[1] else "")
            yield Figure(name, pair[0].p50_ms / pair[1].p50_ms, "x", limit, at_least=True, detail=detail)


# ---------------------------------------------------------------- its parts
def build_times(workspace: Workspace) -> BuildTimes:
    """Seconds of ``builders engines``, each time as a user runs it. Raises: PerfError when a build fails."""
    with _emptied(workspace.build / STORE) as store:
        cold_s = _timed_build()
        for plan in store.glob(f"*/{PLAN}"):
            shutil.rmtree(plan.parent)
        return BuildTimes(cold_s, _timed_build(), _timed_build())


@contextlib.contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """An empty folder; what it held comes back where the block ends with an error, and goes where it does not."""
    aside = folder.with_name(f".{folder.name}.before")
    if folder.exists():
        folder.rename(aside)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if aside.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _timed_build() -> float:
    start_s = time.perf_counter()
    _run_or_raise([sys.executable, "-m", "builders", "engines", "--require-tensorrt"])
    return time.perf_counter() - start_s


def run_gpu_tests() -> TestRun:
    """``make test-gpu``. Raises: PerfError when pytest does not get as far as to run them."""
    with tempfile.TemporaryDirectory(prefix="tritonrank_") as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={results}"]
        ended = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True)
        if not results.is_file():
            raise PerfError(f"'{' '.join(command)}' ended with code {ended.returncode}: {ended.stdout[-600:]}")
        return read_test_run(results.read_text(encoding="utf-8"))


def read_test_run(junit_xml: str) -> TestRun:
    """What pytest's ``--junitxml`` says."""
    cases = list(ElementTree.fromstring(junit_xml).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    names = [f"{case.get('classname')}::{case.get('name')}" for case in failed]
    return TestRun(len(cases) - len(failed) - len(skipped), len(skipped), names)


def published_engines(workspace: Workspace) -> list[Engine]:
    """The plans that ``workspace.repository`` serves, whose manifests can be read."""
    found = []
    for model in sorted({path.parent.parent for path in workspace.repository.glob(f"*/*/{PLAN}")}):
        folder = model / str(served_versions(model)[-1])
        with contextlib.suppress(OSError, ValueError):
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            found.append(Engine(model.name, folder / PLAN, manifest))
    return found


def all_latencies(workspace: Workspace, failures: list[str], say: Callable[..., object]) -> list[Latency]:
    """Of every network that has an engine, in every runtime."""
    engines = {engine.model: engine for engine in published_engines(workspace)}
    found: list[Latency] = []
    for recipe in load_recipes().values():
        variants = [one for one in recipe.variants if one.name.endswith(SUFFIX) and not one.network_steps]
        mine = {
            graph.name: [
                engines[f"{graph.name}_{one.name}"] for one in variants if f"{graph.name}_{one.name}" in engines
            ]
            for graph in (load_ranker(recipe).graphs if variants else ())
        }
        if any(mine.values()):
            ranker, samples = _ranker_with_samples(recipe)
            for graph in ranker.graphs:
                say(f"measuring {graph.name} at every shape")
                onnx = workspace.ranker_folder(recipe.ranker) / f"{graph.name}_{recipe.variants[0].name}.onnx"
                latencies, missed = network_latencies(graph, samples[graph.name], onnx, mine[graph.name], "cuda")
                found += latencies
                failures += missed
    return found


def network_latencies(
    graph: Graph, sample: Sample, onnx: Path, engines: Sequence[Engine], device: str, **shapes: Any
) -> tuple[list[Latency], list[str]]:
    """One network in every runtime that the device has; shapes: as for :func:`measure_column`."""
    found: list[Latency] = []
    failures: list[str] = []
    for column, opened in columns(graph, onnx, engines, device):
        try:
            with opened() as run:
                latencies, missed = measure_column(graph, column, run, sample, **shapes)
        except Exception as error:  # each runtime has exceptions of its own
            latencies, missed = [], [f"{graph.name}, {column}: {first_line(error)}"]
        found += latencies
        failures += missed
    return found, failures


Opened = Callable[[], contextlib.AbstractContextManager[Run]]


def columns(graph: Graph, onnx: Path, engines: Sequence[Engine], device: str) -> list[tuple[str, Opened]]:
    """What to measure, in the order of the table: name, and what opens it."""
    provider = onnx_provider(device).removesuffix("ExecutionProvider")

    def lazily(make: Callable[..., Run], *arguments: Any, **options: Any) -> Opened:
        return lambda: contextlib.nullcontext(make(*arguments, **options))

    listed = [("torch eager fp32", lazily(torch_run, graph, device))]
    if device != "cpu":
        listed.append((EAGER, lazily(torch_run, graph, device, half=True)))
        listed.append((COMPILED, lazily(torch_run, graph, device, half=True, compiled=True)))
    listed.append((f"ONNX Runtime fp32 ({provider})", lazily(onnx_run, onnx, device)))
    for engine in engines:
        listed.append((engine.column, lambda one=engine: tensorrt_run(one.plan, one.manifest["profiles"])))  # type: ignore[misc]
    return listed


def served_figures(workspace: Workspace, console: Console | None) -> PerfReport:
    """perf_analyzer on every endpoint with an engine, and on its reference. Raises: PerfError, ServerError."""
    folder = find_data().folder
    published = published_endpoints(load_recipes(), workspace, data=None)
    endpoints = [one for one in published if one.is_reference or one.model.endswith(SUFFIX)]
    if not any(one.model.endswith(SUFFIX) for one in endpoints):
        raise PerfError(
            f"{workspace.repository}: no endpoint is served from an engine; run 'make build-engines repository'"
        )
    chosen = SWEEP.model_copy(update={"endpoints": tuple(one.name for one in endpoints)})
    return run_sweep(
        chosen, lambda kind: evaluation_data(kind, folder), endpoints, workspace=workspace, console=console
    )


# ---------------------------------------------------------------- the machine
def gpu_state() -> dict[str, str]:
    """:data:`GPU_FIELDS` of the first GPU now. Raises: OSError, CalledProcessError."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits", "--id=0"]
    line = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(zip(GPU_FIELDS, (field.strip() for field in line.split(",")), strict=True))


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES if _installed_distribution(name)}


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _installed_distribution(name: str) -> bool:
    return next(iter(importlib.metadata.distributions(name=name)), None) is not None


def _ranker_with_samples(recipe: Recipe) -> tuple[Ranker, dict[str, Sample]]:
    """The ranker, and a real request of a usual size."""
    ranker = load_ranker(recipe)
    judged = evaluation_data(recipe.data, find_data().folder)
    return ranker, parity_samples(ranker, judged)[1]


def _part(name: str, failures: list[str], say: Callable[..., object], measure: Callable[[], T]) -> T | None:
    """What ``measure`` gives; None, and a line in ``failures``, where it cannot."""
    say(f"{name} ...")
    try:
        return measure()
    except Exception as error:  # the other parts shall be measured whatever went wrong in this one
        failures.append(f"{name}: {first_line(error)}")
        say(f"{failures[-1]}", style="bold red", markup=False, soft_wrap=True)
        return None


def _run_or_raise(command: list[str]) -> None:
    ended = subprocess.run(command, cwd=REPOSITORY_ROOT, env=dict(os.environ), capture_output=True, text=True)
    if ended.returncode:
        raise PerfError(
            f"'{' '.join(command)}' ended with code {ended.returncode}: {(ended.stdout + ended.stderr)[-600:]}"
        )
