"""What got slower between two files of figures, beyond noise; files of different things are refused."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from perf.__main__ import app
from perf.analyzer import Measurement, Step
from perf.compare import Verdict, changes_table, compare, read_measured, slower, versions_note
from perf.errors import PerfError
from perf.machine import Machine
from perf.slo import Limit, SloReport, Trial
from perf.sweep import Load, PerfReport, points_of
from tests.support.figures import perf_report

MACHINE = Machine("a CPU", 2, 7.8, "Linux", 0.1, {"Triton": "2.51.0"})
CLOSED, OPEN = Load(2), Load(rate_per_s=20.0)
SOME, ENOUGH = 100, 1500


def rounds(scale: float, requests: int, spread: float = 0.02, foreign: float = 0.0) -> list[Measurement]:
    """Two rounds of recorded latencies around 10 ms times ``scale``, each with a rate to match."""
    draw = np.random.default_rng(7)
    return [
        Measurement(
            draw.gamma(20.0, 0.5, requests) * scale * drift, 100 / scale / drift, (Step("s", 0.1, 9.0),),
            foreign_share=foreign,
        )
        for drift in (1.0, 1.0 + spread)
    ]  # fmt: skip


def written(path: Path, found: dict[tuple[str, Load], list[Measurement]], **changes: Any) -> Path:
    """As ``perf sweep`` keeps it."""
    candidates = {name: 40.0 for name, _ in found}
    report = PerfReport(MACHINE, {"rank": "small_int8_onnx"}, points_of(found, {}, candidates), [], "digest", "load")
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(report, **changes))))
    return path


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """One endpoint under a closed and an open load."""
    return written(tmp_path / "before.json", {("rank", load): rounds(1.0, ENOUGH) for load in (CLOSED, OPEN)})


def verdicts(before: Path, after: Path, **options: bool) -> dict[str, Verdict]:
    changes = compare(read_measured(before), read_measured(after), **options)
    return {f"{change.row} {change.name}": change.verdict for change in changes}


def test_a_row_that_takes_a_third_longer_is_slower_and_the_other_is_the_same(before: Path, tmp_path: Path) -> None:
    after = written(
        tmp_path / "after.json", {("rank", CLOSED): rounds(1.33, ENOUGH), ("rank", OPEN): rounds(1.01, ENOUGH)}
    )
    found = verdicts(before, after)
    closed = {name for name, verdict in found.items() if verdict is Verdict.SLOWER}
    assert closed == {f"rank, 2 at once {name}" for name in ("p50 ms", "p90 ms", "p99 ms", "requests/s")}
    assert set(found) - closed == {f"rank, 20/s {name}" for name in ("p50 ms", "p90 ms", "p99 ms")}
    assert {found[name] for name in set(found) - closed} == {Verdict.SAME}


def test_what_got_quicker_is_no_fault(before: Path, tmp_path: Path) -> None:
    after = written(tmp_path / "after.json", {("rank", load): rounds(0.6, ENOUGH) for load in (CLOSED, OPEN)})
    assert set(verdicts(before, after).values()) == {Verdict.FASTER}
    assert slower(compare(read_measured(before), read_measured(after))) == []


def test_rounds_that_differ_as_much_as_the_files_are_noise(tmp_path: Path) -> None:
    """By their order statistics alone the files differ: many requests of two drifting rounds."""
    first = written(tmp_path / "a.json", {("rank", CLOSED): rounds(1.0, ENOUGH, spread=0.5)})
    second = written(tmp_path / "b.json", {("rank", CLOSED): rounds(1.3, ENOUGH, spread=0.5)})
    assert set(verdicts(first, second).values()) == {Verdict.SAME}


def test_a_percentile_of_too_few_requests_is_not_judged(tmp_path: Path) -> None:
    first = written(tmp_path / "a.json", {("rank", CLOSED): rounds(1.0, SOME)})
    second = written(tmp_path / "b.json", {("rank", CLOSED): rounds(2.0, SOME)})
    found = verdicts(first, second)
    assert found["rank, 2 at once p99 ms"] is Verdict.TOO_FEW
    assert found["rank, 2 at once p50 ms"] is Verdict.SLOWER


def test_a_disturbed_row_is_not_judged_and_nothing_judged_is_an_error(before: Path, tmp_path: Path) -> None:
    busy = {("rank", load): rounds(2.0, ENOUGH, foreign=0.4) for load in (CLOSED, OPEN)}
    after = written(tmp_path / "after.json", busy)
    assert set(verdicts(before, after).values()) == {Verdict.DISTURBED}
    with pytest.raises(PerfError, match="none of 7 figures can be judged: not judged: other programs disturbed it"):
        slower(compare(read_measured(before), read_measured(after)))


# ---------------------------------------------------------------- what cannot be compared
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"machine": dataclasses.replace(MACHINE, cores=4)}, "cores: 2 and 4"),
        ({"data": "other"}, "data: digest and other"),
        ({"settings": "another"}, "load: load and another"),
        ({"published": {"rank": "small_fp32_onnx"}}, "served: rank = small_int8_onnx and rank = small_fp32_onnx"),
    ],
)
def test_figures_of_different_things_are_refused_unless_told(
    before: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    after = written(tmp_path / "after.json", {("rank", load): rounds(1, ENOUGH) for load in (CLOSED, OPEN)}, **changes)
    with pytest.raises(PerfError, match=f"are not of the same: {told}.*--anyway"):
        verdicts(before, after)
    assert set(verdicts(before, after, anyway=True).values()) == {Verdict.SAME}


def test_a_row_that_could_no_longer_be_measured_is_named_with_the_reason(before: Path, tmp_path: Path) -> None:
    after = written(tmp_path / "after.json", {("rank", CLOSED): rounds(1, ENOUGH)}, failures=["rank at 20/s: refused"])
    with pytest.raises(PerfError, match=r"rows: .*rank, 20/s and rank, 2 at once; not measured: rank at 20/s: refused"):
        verdicts(before, after)


def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text("[]")
    with pytest.raises(PerfError, match=r"odd\.json: .*wanted build/report/perf\.json"):
        read_measured(tmp_path / "odd.json")
    with pytest.raises(PerfError, match=r"gone\.json: cannot be read \(No such file or directory\)"):
        read_measured(tmp_path / "gone.json")
    old = {**dataclasses.asdict(perf_report()), "published": "small_int8_onnx"}
    (tmp_path / "old.json").write_text(json.dumps(old))
    with pytest.raises(PerfError, match=r"old\.json: measured by an earlier checkout, in another form"):
        read_measured(tmp_path / "old.json")


def test_versions_that_differ_are_told_and_no_reason_to_refuse(before: Path, tmp_path: Path) -> None:
    newer = dataclasses.replace(MACHINE, versions={"Triton": "2.60.0"})
    after = written(
        tmp_path / "after.json", {("rank", one): rounds(1, ENOUGH) for one in (CLOSED, OPEN)}, machine=newer
    )
    assert versions_note(read_measured(before), read_measured(after)) == "versions: Triton 2.51.0 => 2.60.0"
    assert set(verdicts(before, after).values()) == {Verdict.SAME}


# ---------------------------------------------------------------- searches, the table, the command
def slo_written(path: Path, held: float, broken: float) -> Path:
    trials = [
        Trial(rate_per_s=rate, held=rate == held, foreign_share=0.0, runs=1) for rate in (held, held, broken, broken)
    ]
    report = SloReport(
        endpoint="rank", limit=Limit(ms=50), key="k", machine=MACHINE, data="d", candidates=40, written="today",
        capacity_per_s=100, trials=trials,
    )  # fmt: skip
    path.write_text(report.model_dump_json())
    return path


def test_a_lower_rate_that_holds_is_slower(tmp_path: Path) -> None:
    first, second = slo_written(tmp_path / "a.json", 60, 62), slo_written(tmp_path / "b.json", 40, 42)
    assert verdicts(first, second) == {"rank requests/s with p99 <= 50 ms": Verdict.SLOWER}
    assert verdicts(second, first) == {"rank requests/s with p99 <= 50 ms": Verdict.FASTER}
    assert verdicts(first, first) == {"rank requests/s with p99 <= 50 ms": Verdict.SAME}


def test_requests_stand_beside_every_figure(before: Path) -> None:
    text = io.StringIO()
    measured = read_measured(before)
    Console(file=text, width=200).print(changes_table(compare(measured, measured)))
    assert text.getvalue().count(f"{2 * ENOUGH:,}") == 2 * len(measured.figures)


def test_the_command_ends_with_1_where_something_got_slower(before: Path, tmp_path: Path) -> None:
    after = written(tmp_path / "after.json", {("rank", load): rounds(1.5, ENOUGH) for load in (CLOSED, OPEN)})
    worse = CliRunner().invoke(app, ["compare", str(before), str(after)])
    assert isinstance(worse.exception, PerfError) and worse.exit_code == 1
    assert str(worse.exception).startswith("7 of 7 figures got slower beyond noise: rank, 2 at once: p50 ms; ")
    assert CliRunner().invoke(app, ["compare", str(before), str(before)]).exit_code == 0
