"""The backend directory: Triton's Python backend with the right stub, and this repository's drop-in backends.

A folder `NAME/model.py` in a backend directory is a Python-based backend: it answers to `backend: "NAME"` in a
config.pbtxt, as the container's C++ backend of that name does. Copies, not links: Triton refuses a library that a
link takes out of the backend directory.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from server.environment import REPOSITORY_ROOT, ServerEnvironment

DROP_INS = REPOSITORY_ROOT / "backends"


def assemble_backends(environment: ServerEnvironment, directory: Path, drop_ins: Path = DROP_INS) -> Path:
    """Fill `directory` with the environment's Python backend, its stub and every drop-in; return it."""
    shutil.copytree(environment.python_backend, directory / "python", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(environment.stub, directory / "python")
    for model in sorted(drop_ins.glob("*/model.py")):
        name = model.parent.name
        shutil.copytree(model.parent, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    return directory
