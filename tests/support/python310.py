"""A Python 3.10, the last that TensorRT 8 has a package for, where this machine has one; and an environment of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from builders.core.workspace import REPOSITORY_ROOT
from deploy.airgap.interpreter import PythonMissing, find_python

ENVIRONMENT = REPOSITORY_ROOT / "build" / "python310"
PACKAGES = ("numpy==1.26.4", "onnx==1.23.2", "ml_dtypes", "polygraphy==0.53.6", "filelock")


def _found() -> tuple[str | None, str]:
    try:
        return find_python(None), ""
    except PythonMissing as error:
        return None, str(error)


PYTHON_310, WHY_NO_PYTHON_310 = _found()


def environment_310() -> Path:
    """Its Python; made on first use, and the test skipped where PyPI cannot be reached."""
    python = ENVIRONMENT / "bin" / "python"
    if (ENVIRONMENT / ".ready").is_file():
        return python
    subprocess.run([str(PYTHON_310), "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        pytest.skip(f"'{' '.join(command[3:])}' failed, is PyPI reachable? {ended.stderr[-300:]}")
    (ENVIRONMENT / ".ready").touch()
    return python
