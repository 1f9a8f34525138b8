"""Pages of GPU runs are what the figures beside them give, and a run without a GPU gives none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.core.workspace import REPOSITORY_ROOT
from deploy.airgap.page import render, write_page

RUNS = sorted((REPOSITORY_ROOT / "perf" / "gpu").glob("*.json"))


@pytest.mark.parametrize("results", RUNS, ids=lambda path: path.stem)
def test_a_page_is_generated_from_the_file_beside_it(results: Path) -> None:
    found = json.loads(results.read_text())
    assert results.with_suffix(".md").read_text() == render(found, results.name) + "\n"
    assert found["smoke"]["gpu"]["name"].removeprefix("NVIDIA ") in (REPOSITORY_ROOT / "perf/gpu/README.md").read_text()


def test_a_run_without_a_gpu_is_no_page(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"no GPU": "no NVIDIA driver here"}))
    with pytest.raises(ValueError, match=r"no GPU gave these results .no NVIDIA driver here"):
        write_page(tmp_path / "results.json")
