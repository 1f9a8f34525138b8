"""The HTML page: what it holds, that it fetches nothing, and that a browser draws it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from perf.report import render_report
from tests.support.figures import TEST_QUERY, TITLE, judged_queries, perf_report, served_quality

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(judged_queries(), served_quality(), perf_report())


def own_markup(page: str) -> str:
    """The page without its scripts, plotly's three megabytes among them."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_figures_stand_in_the_page(page: str) -> None:
    wanted = (
        *("0.7001", "+0.1025 [+0.0412, +0.1633]", "61.5", "2.01 (1.90-2.20)"),
        *("largest difference 3e-07", "Request timeout expired"),
    )
    for figure in wanted:
        assert figure in own_markup(page)


def test_the_published_ranker_is_shown_by_group_of_queries(page: str) -> None:
    assert "<td>query length</td>" in own_markup(page)
    assert "Worst slice: none, no group that can be judged is below the rest." in own_markup(page)


def test_titles_are_escaped(page: str) -> None:
    assert TITLE not in page
    assert "Brush &lt;b&gt;&amp; handle&lt;/b&gt; &lt;script&gt;" in page


def test_the_page_forbids_the_browser_to_fetch_anything(page: str) -> None:
    assert "default-src 'none'; script-src 'unsafe-inline'" in page
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", own_markup(page))


def test_generated_data_brings_a_banner() -> None:
    assert "the quality figures on this page mean nothing" in render_report(
        judged_queries(), served_quality(generated=True)
    )


def test_real_data_is_attributed(page: str) -> None:
    assert "Shopping Queries Data Set (ESCI)" in page
    assert "mean nothing" not in page


def test_a_failed_check_shows() -> None:
    page = render_report(judged_queries(), served_quality(passed=False))
    assert '<b class="fail">FAIL</b>' in page
    assert "0 of 1" in page


def test_without_speed_the_page_says_how_to_measure_it() -> None:
    assert "make perf" in render_report(judged_queries(), served_quality())


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_a_browser_draws_the_page_and_its_plots(page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    drawn = subprocess.run(
        [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            *("--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"),
            *("--dump-dom", (tmp_path / "report.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=50,
    ).stdout
    assert TEST_QUERY in drawn
    assert drawn.count('class="main-svg"') >= 3  # drawn by plotly: differences, latency, steps
