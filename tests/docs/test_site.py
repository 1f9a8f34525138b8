"""The site builds without a broken link, reads without a network, and links to files of the repository that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import hooks

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=\"(?:https?:)?//[^\"]*"
    r"|<link\b[^>]*\brel=\"(?:stylesheet|preconnect|preload|icon|dns-prefetch)\"[^>]*\bhref=\"(?:https?:)?//[^\"]*"
    r"|<link\b[^>]*\bhref=\"(?:https?:)?//[^\"]*\"[^>]*\brel=\"(?:stylesheet|preconnect|preload|icon|dns-prefetch)"
)
"""What a browser fetches by itself when it shows the page."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as ``make docs`` builds it."""
    folder = tmp_path_factory.mktemp("site")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


def test_every_page_is_built(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in sorted((ROOT / "docs").rglob("*.md"))]
    elsewhere = [Path(page).with_suffix(".html") for page in hooks.PAGES.values()]

    assert [page for page in [*pages, *elsewhere] if not (site / page).is_file()] == []


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))

    assert len(pages) > 20
    assert {page.name: found for page in pages if (found := _FETCHED.findall(page.read_text(encoding="utf-8")))} == {}


def test_no_stylesheet_fetches_anything_from_elsewhere(site: Path) -> None:
    sheets = sorted(site.rglob("*.css"))

    assert sheets
    assert [sheet.name for sheet in sheets if re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text())] == []


def test_no_code_of_the_generators_is_in_the_site(site: Path) -> None:
    assert list(site.rglob("*.py")) == []


@pytest.mark.parametrize(
    ("page", "link", "in_the_site"),
    [
        ("how-to/a.md", "[it](../reference/b.md#c)", "[it](../reference/b.md#c)"),
        ("how-to/a.md", "[client](../../clients/README.md)", "[client](../reference/client.md)"),
        ("reference/changelog.md", "[page](docs/how-to/load-test.md)", "[page](../how-to/load-test.md)"),
        ("index.md", "[steps](../builders/core/steps.py)", "steps"),
        ("index.md", "[gone](../builders/no_such_file.py)", "[gone](../builders/no_such_file.py)"),
    ],
)
def test_a_link_of_the_repository_becomes_one_of_the_site(page: str, link: str, in_the_site: str) -> None:
    assert hooks._LINK.sub(lambda found: hooks.site_link(found, page), link) == in_the_site


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(path: Path) -> None:
    targets = re.findall(r"\]\(([^)\s:#]+)(?:#[^)\s]*)?\)", path.read_text(encoding="utf-8"))

    assert [target for target in targets if not (path.parent / target).exists()] == []
