"""What a machine that builds engines has to have: the packages that building uses and no others; an older Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from builders.core.workspace import REPOSITORY_ROOT
from tests.support.python310 import PYTHON_310, WHY_NO_PYTHON_310, environment_310

NOT_NEEDED = ("onnxruntime", "scipy", "sklearn", "torch", "transformers")
STANDARD_LIBRARY_ALONE = (
    "builders.core.contract", "builders.core.cuda_runtime", "builders.core.files", "builders.core.versions",
    "builders.engines.gpu", "builders.engines.profiles", "builders.export.plan_manifest", "server", "server.plans",
    "server.self_test",
)  # fmt: skip
WITH_PACKAGES = (
    "builders.engines.build", "builders.engines.build_all", "builders.engines.edge_graph", "builders.engines.parity",
    "builders.engines.store", "perf.analyzer",
)  # fmt: skip
DROP_IN = ("batching", "profiles")
"""Of backends/tensorrt, what imports nothing of Triton's stub."""


def imports(python: str | Path, *modules: str, path: tuple[str, ...] = (".",)) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter imports the modules and prints which of NOT_NEEDED came along."""
    lines = [*(f"import {name}" for name in modules), f"print([n for n in {NOT_NEEDED} if n in sys.modules])"]
    return subprocess.run(
        [str(python), "-c", "\n".join(["import sys", f"sys.path[:0] = {list(path)}", *lines])],
        cwd=REPOSITORY_ROOT, capture_output=True, text=True,
    )  # fmt: skip


def test_building_engines_imports_no_other_runtime_and_nothing_that_judges() -> None:
    ended = imports(sys.executable, *WITH_PACKAGES, *STANDARD_LIBRARY_ALONE)
    assert (ended.stdout.strip(), ended.stderr) == ("[]", "")


@pytest.mark.skipif(PYTHON_310 is None, reason=WHY_NO_PYTHON_310)
@pytest.mark.parametrize("module", STANDARD_LIBRARY_ALONE)
def test_runs_on_python_3_10_without_a_package(module: str) -> None:
    ended = imports(PYTHON_310, module)
    assert (ended.stdout.strip(), ended.stderr) == ("[]", "")


@pytest.mark.skipif(PYTHON_310 is None, reason=WHY_NO_PYTHON_310)
def test_a_files_digest_on_python_3_10_is_that_of_the_newer_ones(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 2**20)
    program = "import sys, pathlib; from builders.core.files import sha256; print(sha256(pathlib.Path(sys.argv[1])))"
    digests = [
        subprocess.check_output([python, "-c", program, tmp_path / "file"], cwd=REPOSITORY_ROOT, text=True)
        for python in (PYTHON_310, sys.executable)
    ]
    assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.skipif(PYTHON_310 is None, reason=WHY_NO_PYTHON_310)
def test_engines_can_be_built_and_served_on_tensorrt_8s_python() -> None:
    """With NumPy, onnx, Polygraphy and filelock alone; the first run installs them."""
    python = environment_310()
    ended = imports(python, *WITH_PACKAGES, *STANDARD_LIBRARY_ALONE)
    assert (ended.stdout.strip(), ended.stderr) == ("[]", "")
    folders = ("backends/tensorrt", "backends/common")
    ended = imports(python, *DROP_IN, path=tuple(str(REPOSITORY_ROOT / folder) for folder in folders))
    assert (ended.stdout.strip(), ended.stderr) == ("[]", "")
