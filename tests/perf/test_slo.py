"""The highest rate that holds a percentile: the search on made-up trials, and a real one on a small server."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from builders.core.workspace import Workspace
from perf import analyzer, slo
from perf.analyzer import Measurement, RequestsFailed, Step
from perf.errors import PerfError
from perf.machine import Machine
from perf.slo import (
    RESOLUTION,
    Limit,
    Search,
    SloReport,
    Trial,
    judged_trial,
    read_slo,
    result_text,
    run_slo,
    search_all,
    slo_table,
)
from tests.support.figures import judged_queries, small_endpoints
from tests.support.small_repository import CODE, seal, write_endpoint

LIMIT = Limit(ms=50.0)


def trial(rate_per_s: float, held: bool) -> Trial:
    return Trial(rate_per_s=rate_per_s, held=held, foreign_share=0.0, runs=1)


def searched(capacity_per_s: float, holds: Callable[[float, int], bool]) -> tuple[Search, list[Trial]]:
    """A whole search; ``holds`` of a rate and the number of its trial."""
    trials: list[Trial] = []
    while (rate := Search(capacity_per_s, trials).next_rate()) is not None:
        assert len(trials) < 100
        trials.append(trial(rate, holds(rate, sum(one.rate_per_s == rate for one in trials))))
    return Search(capacity_per_s, trials), trials


# ---------------------------------------------------------------- the search
@pytest.mark.parametrize("highest", [3.7, 25.0, 61.3, 98.0, 100.0, 130.0, 410.0])
def test_the_search_ends_within_its_resolution_below_the_true_rate(highest: float) -> None:
    search, trials = searched(100.0, lambda rate, _: rate <= highest)
    low, high = search.interval
    assert low == search.highest_held <= highest < (high or 0)
    assert high is not None and high - low <= 1.1 * RESOLUTION * high  # rates have three digits
    assert len(trials) <= 2 * 12


def test_a_rate_is_tried_until_two_trials_of_it_agree() -> None:
    _, trials = searched(100.0, lambda rate, number: rate < 60 if number != 1 else rate >= 60)
    counts = {rate: len(list(group)) for rate, group in itertools.groupby(trials, lambda one: one.rate_per_s)}
    assert set(counts.values()) == {3}


def test_trials_that_disagree_widen_the_interval() -> None:
    """Above 40 one trial of three breaks, above 60 all but one do."""
    search, _ = searched(
        100.0, lambda rate, number: rate < 40 or (number != 1 if rate < 60 else number == 1 and rate < 80)
    )
    low, high = search.interval
    assert low < 40 <= search.highest_held < 60 < (high or 0)


def test_a_search_of_which_no_rate_holds_gives_up() -> None:
    search, _ = searched(100.0, lambda rate, _: False)
    assert search.highest_held == 0
    assert search.interval == (0.0, min(search.held))


# ---------------------------------------------------------------- a trial
def test_a_limit_asks_for_thirty_requests_beyond_its_percentile() -> None:
    assert (LIMIT.requests, LIMIT.name) == (3000, "p99")
    assert Limit(ms=5, percentile=99.9).requests == 30000


def test_a_trial_holds_where_the_percentile_is_within_the_limit() -> None:
    latencies_ms = np.array([10.0] * 2980 + [60.0] * 20)
    found = Measurement(latencies_ms, 20.0, (Step("a", 1.0, 2.0), Step("b", 0.5, 3.0)), sent_per_s=20.1)
    held = judged_trial(20.0, LIMIT, found, 0.02, 1)
    assert (held.held, held.requests, held.limited_ms, held.queue_ms, held.compute_ms) == (True, 3000, 10.0, 1.5, 5.0)
    late = judged_trial(20.0, LIMIT, dataclasses.replace(found, latencies_ms=latencies_ms * 6), 0.2, 3)
    assert (late.held, late.why, late.disturbed) == (False, "p99 60.0 ms > 50 ms", True)


def test_a_trial_of_which_a_request_failed_does_not_hold() -> None:
    refused = judged_trial(20.0, LIMIT, RequestsFailed("Exceeds maximum queue size"), 0.0, 1)
    assert (refused.held, refused.requests, refused.why) == (False, 0, "Exceeds maximum queue size")


# ---------------------------------------------------------------- variants take turns, and trials are kept
@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, float]]]:
    """Searches two variants' files, of which one holds 90/s and one 60/s; returns which were tried, in order."""

    def search(fails_at: int | None = None) -> list[tuple[str, float]]:
        tried: list[tuple[str, float]] = []

        def recorded(url: str, report: SloReport, rate_per_s: float, requests_file: Path) -> Trial:
            if len(tried) == fails_at:
                raise PerfError("cut")
            tried.append((report.endpoint, rate_per_s))
            return trial(rate_per_s, held=rate_per_s <= {"quick": 90, "slow": 60}[report.endpoint])

        monkeypatch.setattr(slo, "_tried", recorded)
        monkeypatch.setattr(slo, "_capacity", lambda *_: 100.0)
        paths = {tmp_path / f"{name}.json": name for name in ("quick", "slow")}
        reports = {path: read_slo(path) or slo_report(name) for path, name in paths.items()}
        search_all("", reports, dict.fromkeys(paths.values(), tmp_path / "requests.json"), Console(quiet=True))
        assert {path: read_slo(path) for path in paths} == reports
        return tried

    return search


def slo_report(endpoint: str) -> SloReport:
    machine = Machine("a CPU", 2, 7.8, "Linux", 0.1, {})
    return SloReport(endpoint=endpoint, limit=LIMIT, key="k", machine=machine, data="d", candidates=40, written="today")


def test_variants_take_turns_trial_by_trial(kept: Callable[..., list[tuple[str, float]]]) -> None:
    tried = kept()
    assert [name for name, _ in tried[:8]] == ["quick", "slow"] * 4
    assert tried[:4] == [("quick", 50.0), ("slow", 50.0)] * 2  # twice each, which decides


def test_a_search_that_was_cut_goes_on_where_it_stopped(kept: Callable[..., list[tuple[str, float]]]) -> None:
    with pytest.raises(PerfError, match="cut"):
        kept(fails_at=5)
    rest = kept()
    assert ("quick", 50.0) not in rest and rest[:2] == [("quick", 100.0), ("slow", 100.0)]
    assert kept() == []


# ---------------------------------------------------------------- the real thing
QUICK = Limit(ms=60.0, percentile=50.0)
"""Sixty requests a trial."""


@pytest.mark.server
def test_a_real_search_is_kept_under_all_that_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (slo, "RESOLUTION", 0.6), (slo, "CAPACITY_WINDOW_MS", 300),
        (analyzer, "WARM_UP_REQUESTS", 10),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    answering = "    def respond(self, request, requests):\n"
    code = CODE.replace(answering, f"{answering}        time.sleep(0.003)\n")
    write_endpoint(tmp_path / "models", "rank", code, model="small_int8_onnx")
    seal(tmp_path / "models")
    workspace = Workspace(tmp_path / "build", tmp_path / "models", tmp_path / "store")

    def search(limit: Limit) -> tuple[SloReport, Path]:
        judged, endpoints = judged_queries(), small_endpoints()
        [found] = run_slo([], limit, lambda kind: judged, endpoints, workspace=workspace, console=Console(quiet=True))
        return found

    report, path = search(QUICK)
    assert path.name == f"rank-p50-60ms-{report.key}.json"
    assert path.with_suffix(".html").stat().st_size > 0
    assert {one.requests for one in report.trials} <= {0, QUICK.requests}
    assert all(one.held == (not one.why) for one in report.trials)
    assert report.search.next_rate() is None and report.search.held
    monkeypatch.setattr(slo, "serving", None)  # nothing is started any more
    assert search(QUICK) == (report, path)
    with pytest.raises(TypeError):
        search(Limit(ms=61.0, percentile=50.0))


def test_the_table_and_the_answer_say_how_many_requests_each_trial_had() -> None:
    found = Measurement(np.array([10.0] * 3000), 20.0, (Step("a", 1.0, 2.0),), sent_per_s=20.0)
    refused = judged_trial(24.0, LIMIT, RequestsFailed("Exceeds maximum queue size"), 0.4, 3)
    trials = [judged_trial(20.0, LIMIT, found, 0.0, 1)] * 2 + [refused] * 2
    report = slo_report("rank").model_copy(update={"capacity_per_s": 40.0, "trials": trials})
    assert result_text(report) == (
        "rank holds p99 <= 50 ms at 20 requests/s (every trial held up to 20/s, none from 24/s; 3,000 requests a trial "
        "of 40 candidates)"
    )
    text = io.StringIO()
    Console(file=text, width=140).print(slo_table(report))
    assert text.getvalue().count("3,000") == 2
    assert text.getvalue().count("! 40% (3 runs)") == 2
    none = report.model_copy(update={"trials": [refused, refused]})
    assert result_text(none) == "rank: no rate held p99 <= 50 ms, down to 24/s"
