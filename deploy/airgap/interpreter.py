"""Which Python 3.10 the kit carries. Standard library only."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

VERSION = "3.10"
PYENV = Path.home() / ".pyenv" / "versions"


class PythonMissing(ValueError):
    """No Python of the release that TensorRT's package is for."""


def find_python(named: str | None) -> str:
    """Path of a Python 3.10 that can be carried: ``named``, else the newest of pyenv's, else the one on PATH.

    Raises:
        PythonMissing: there is none, or ``named`` is of another release.
    """
    candidates = [named] if named else [*map(str, sorted(PYENV.glob(f"{VERSION}.*/bin/python{VERSION}"), reverse=True))]
    candidates += [] if named else [path for path in [shutil.which(f"python{VERSION}")] if path]
    if not candidates:
        raise PythonMissing(
            f"no Python {VERSION} found, neither below {PYENV} nor on PATH; TensorRT 8's packages are for that release "
            f"at the latest. Install one ('pyenv install {VERSION}') or name it with --python"
        )
    found = release_of(candidates[0])
    if found != VERSION:
        raise PythonMissing(f"{candidates[0]} is Python {found or 'that does not start'}, wanted {VERSION}")
    return candidates[0]


def release_of(python: str) -> str:
    """``3.10``; empty where it does not start."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
