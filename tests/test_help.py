"""``--help`` of each command and verb answers without the heavy libraries: a verb imports them when it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from builders.__main__ import app as builders_app
from perf.__main__ import app as perf_app

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "pandas", "scipy", "sklearn"}
VERBS = {
    name: sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for name, app in (("builders", builders_app), ("perf", perf_app))
}


def imported_by_help(package: str, *verb: str) -> tuple[set[str], str]:
    """First parts of every module that the process imported, and what it printed."""
    command = [sys.executable, "-X", "importtime", "-m", package, *verb, "--help"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'clients'}"}
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=True)
    names = [line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")]
    return {name.split(".")[0] for name in names}, ended.stdout


@pytest.mark.parametrize("package", ["builders", "gateway", "perf", "server"])
def test_help_of_a_command_imports_no_heavy_library(package: str) -> None:
    imported, told = imported_by_help(package)
    assert package in imported and not imported & HEAVY
    assert all(verb in told for verb in VERBS.get(package, ()))


@pytest.mark.parametrize(("package", "verb"), [(package, verb) for package in VERBS for verb in VERBS[package]])
def test_help_of_a_verb_imports_no_heavy_library(package: str, verb: str) -> None:
    imported, told = imported_by_help(package, verb)
    assert verb in told and not imported & HEAVY


def test_a_heavy_library_would_be_seen() -> None:
    probe = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import onnx"], capture_output=True, text=True, check=True
    )
    assert any(line.rpartition("|")[2].strip() == "onnx" for line in probe.stderr.splitlines())
