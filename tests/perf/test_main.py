"""The command line of perf: what it hands on to the measurements."""

from __future__ import annotations

from pathlib import Path

import pytest
from tritonrank_client import InvalidRequest

from perf.__main__ import _parts, _running
from perf.errors import PerfError
from perf.sweep import RunningServer


def test_a_bench_part_is_read_under_its_name_until_0_1_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="bench's part 'once' is now called 'broadcast'"):
        assert _parts(["once", "memory"]) == ["broadcast", "memory"]


@pytest.mark.filterwarnings("error")
def test_a_bench_part_under_its_name_of_now_is_handed_on() -> None:
    assert _parts(["broadcast", "dcn"]) == ["broadcast", "dcn"]


def test_a_sweep_starts_a_server_unless_one_is_named() -> None:
    assert _running(None, None, None, None) is None
    assert _running("ranker:8001", None, None, None) == RunningServer("ranker:8001")


def test_a_sweeps_certificates_are_for_a_named_server_and_must_be_there() -> None:
    with pytest.raises(PerfError, match="are for a server at --url; name it"):
        _running(None, Path("ca.pem"), None, None)
    with pytest.raises(InvalidRequest, match=r"found no certificate in ca='none\.pem'"):
        _running("ranker:8001", Path("none.pem"), None, None)
