"""The command line of perf: what it hands on to the measurements."""

from __future__ import annotations

import pytest

from perf.__main__ import _parts


def test_a_bench_part_is_read_under_its_name_until_0_1_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="bench's part 'once' is now called 'broadcast'"):
        assert _parts(["once", "memory"]) == ["broadcast", "memory"]


@pytest.mark.filterwarnings("error")
def test_a_bench_part_under_its_name_of_now_is_handed_on() -> None:
    assert _parts(["broadcast", "dcn"]) == ["broadcast", "dcn"]
