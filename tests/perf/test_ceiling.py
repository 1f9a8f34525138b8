"""A small ranker end to end, on the real server: counted, run in process, served, told and drawn."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from builders.core.recipe import load_recipe
from builders.core.workspace import Workspace
from builders.data.synthetic import write_generated
from builders.rankers.base import Sample
from perf.ceiling import (
    IN_PROCESS,
    SERVED,
    Asked,
    CeilingReport,
    Effort,
    Rate,
    Reached,
    RequestCost,
    VariantCeiling,
    counted,
    reached,
    request_costs,
    run_ceiling,
)
from perf.ceiling_page import ceiling_table, notes, peaks_table, roofline_figure, write_ceiling
from perf.endpoints import Endpoint, chosen_endpoints
from perf.errors import PerfError
from perf.foreign_load import Watched
from perf.gpu_ceiling import missing_gpu
from perf.gpu_figures import flops_of
from perf.graph_cost import Cost
from perf.kit.rankers import runs_without_padding
from perf.machine import Machine
from perf.roofline import Roof
from tests.support.figures import small_endpoints
from tests.support.own_ranker import built_own_ranker
from tests.support.small_rankers import cross_encoder

EFFORT = Effort(requests=3, window_ms=500, seconds=0.0, shapes=((64, 64, 64),), runs=1, array_bytes=2**20)


# ---------------------------------------------------------------- arithmetic
def test_a_share_is_the_least_time_of_a_request_times_the_rate() -> None:
    cost = RequestCost([Cost({"fp32": 2e6}, 10.0, 1.0)] * 2, [Cost({"fp32": 1e6}, 10.0, 1.0)])
    roof = Roof({"fp32": 1e9}, 1e9)
    found = reached(SERVED, 2, [cost, cost], roof, Watched(Rate(50, 100.0), 0.02, 1))
    assert (found.least_ms, found.least_ms_without_padding) == pytest.approx((4.0, 1.0))
    assert (found.share, found.share_without_padding) == pytest.approx((0.4, 0.1))
    assert (found.requests, found.requests_per_s, found.foreign_share) == (50, 100.0, 0.02)


def test_counts_are_means_over_the_requests() -> None:
    run = Cost({"int8": 6.0, "fp32": 2.0}, 100.0, 10.0)
    found = counted([RequestCost([run, run], [run]), RequestCost([run], [run])], candidates=7.5)
    assert (found.requests, found.candidates, found.runs) == (2, 7.5, 1.5)
    assert (found.ops, found.ops_without_padding) == ({"fp32": 3.0, "int8": 9.0}, {"fp32": 2.0, "int8": 6.0})
    assert (found.weight_bytes, found.tensor_bytes, found.intensity) == (150.0, 15.0, 12 / 165)


def test_without_padding_every_row_is_as_long_as_its_own_tokens(tmp_path: Path) -> None:
    graph = cross_encoder(tmp_path).graphs[0]
    lengths = (3, 9, 3, 16)
    mask = np.array([[1] * length + [0] * (16 - length) for length in lengths], np.int32)
    sample: Sample = {tensor.name: mask for tensor in graph.contract.inputs}
    runs = runs_without_padding(graph, sample)
    assert [run["attention_mask"].shape for run in runs] == [(1, 16), (1, 9), (2, 3)]
    assert (
        sum(int(run["attention_mask"].sum()) for run in runs)
        == sum(lengths)
        == sum(run["attention_mask"].size for run in runs)
    )


def test_a_reader_is_told_of_types_that_are_not_multiplied_as_asked() -> None:
    machine = Machine("a CPU", 2, 7.8, "Linux", 0.1, {"Triton": "2.51.0"})
    row = VariantCeiling(
        model="small_int8_openvino",
        endpoint="rank_small_int8_openvino",
        runtime="openvino",
        instances=1,
        threads=2,
        concurrency=4,
        multiplied_in={"bf16": "fp32", "int8": "int8"},
        kernels=["fp32"],
        counted=counted([RequestCost([Cost({"int8": 6.0}, 1.0, 1.0)], [])], candidates=40.0),
        reached=[
            Reached(
                where=SERVED,
                threads=2,
                requests=9,
                requests_per_s=600.0,
                least_ms=2.0,
                least_ms_without_padding=1.0,
                foreign_share=0.0,
                measured_times=1,
            )
        ],
    )
    report = CeilingReport(
        written="some day",
        machine=machine,
        processor=("x86_64",),
        libraries={},
        window_ms=1,
        data={},
        peaks=[],
        bandwidths=[],
        variants=[row],
        skipped=["skipped, no GPU"],
        failures={"gone": "does not start"},
    )
    assert list(notes(report)) == [
        "small_int8_openvino: bf16 products are computed in fp32 here, so their limit is fp32's",
        "small_int8_openvino: no kernel of it multiplies in int8 as its graph asks, but in fp32: that part of its "
        "limit is out of reach",
        "small_int8_openvino: a share above 1 is of weights that stay in the cache from run to run",
        "counted over 1 requests of 40 candidates on average",
        "not measured: gone: does not start",
        "skipped, no GPU",
    ]


# ---------------------------------------------------------------- what is chosen
def test_variants_are_named_as_users_know_them() -> None:
    endpoints = small_endpoints()
    assert chosen_endpoints((), endpoints) == endpoints
    assert chosen_endpoints(["rank_small_int8_onnx", "small_int8_onnx"], endpoints) == [endpoints[1]]
    with pytest.raises(PerfError, match="variant gone is not published; wanted of small_fp32_onnx"):
        chosen_endpoints(["gone"], endpoints)


# ---------------------------------------------------------------- end to end
@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Endpoint, Workspace, Path]:
    """A published endpoint of a small ranker, and a folder of the data that it is judged on."""
    folder = tmp_path_factory.mktemp("own")
    _, workspace = built_own_ranker(folder)
    write_generated(folder / "data")
    recipe = load_recipe(folder / "every_kind.toml")
    return Endpoint(recipe, recipe.variants[0]), workspace, folder / "data"


@pytest.mark.server
def test_a_published_variant_has_its_share_in_process_and_served(own: tuple[Endpoint, Workspace, Path]) -> None:
    endpoint, workspace, data = own
    console = Console(file=io.StringIO(), width=250)
    report = run_ceiling([endpoint], data, EFFORT, workspace, console)
    [row] = report.variants
    assert (row.model, row.multiplied_in, report.failures) == ("every_kind_fp32_onnx", {"fp32": "fp32"}, {})
    assert (row.counted.requests, row.kernels) == (3, ["fp32"])
    assert [(side.where, side.threads) for side in row.reached] == [(IN_PROCESS, 2), (SERVED, 2)]
    assert all(side.requests > 0 and side.share > 0 for side in row.reached)

    asked = Asked.of(endpoint, data, EFFORT.requests)
    [graph] = asked.ranker.graphs
    by_torch = [flops_of(graph, samples[graph.name]) for samples in asked.samples]
    assert row.counted.ops == {"fp32": pytest.approx(sum(by_torch) / 3)}

    console.print(peaks_table(report), ceiling_table(report), *notes(report))
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert "every_kind_fp32_onnx" in told and "GOP/s" in told and "memory, triad (STREAM)" in told
    if why := missing_gpu():
        assert f"skipped, since they need a GPU: its peaks and bandwidth: {why}" in told

    written = write_ceiling(report, workspace)
    assert [path.name for path in written] == ["ceiling.json", "ceiling.html"]
    kept = json.loads(written[0].read_text(encoding="utf-8"))
    assert kept["variants"][0]["reached"][1]["share"] == row.reached[1].share
    assert {"machine", "processor", "libraries", "peaks", "bandwidths", "window_ms", "data"} <= kept.keys()
    drawn = {trace.name for trace in roofline_figure(report).data}
    assert drawn >= {"every_kind_fp32_onnx", "limit of fp32, 2 threads"}


@pytest.mark.skipif(not missing_gpu(), reason="this machine has a GPU")
def test_an_engine_on_a_machine_without_a_gpu_is_skipped_by_name(own: tuple[Endpoint, Workspace, Path]) -> None:
    endpoint, workspace, data = own
    engine = Endpoint(endpoint.recipe, endpoint.variant.model_copy(update={"name": "fp32_trt"}))
    with pytest.raises(PerfError, match=r"no variant has a ceiling: skipped, .* and every_kind_fp32_trt: "):
        run_ceiling([engine], data, EFFORT, workspace, Console(file=io.StringIO()))


def test_files_that_are_not_those_of_the_graphs_are_refused(own: tuple[Endpoint, Workspace, Path]) -> None:
    endpoint, workspace, data = own
    asked = Asked.of(endpoint, data, 1)
    with pytest.raises(PerfError, match=r"0 scorers' files in .*, wanted 1; run 'make repository'"):
        request_costs(endpoint, asked, [], workspace)
