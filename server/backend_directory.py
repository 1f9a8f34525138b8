"""The backend directory: Triton's Python backend with the right stub, and this repository's drop-in backends.

A folder `NAME/model.py` in a backend directory is a Python-based backend: it answers to `backend: "NAME"` in a
config.pbtxt, as the container's C++ backend of that name does. The files of backends/common are what several drop-ins
use; they are copied into each one's folder, the only one that it can import from. Copies, not links: Triton refuses a
library that a link takes out of the backend directory.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from server.environment import REPOSITORY_ROOT, ServerEnvironment

DROP_INS = REPOSITORY_ROOT / "backends"
COMMON = "common"


def assemble_backends(environment: ServerEnvironment, directory: Path, drop_ins: Path = DROP_INS) -> Path:
    """Fill `directory` with the environment's Python backend, its stub and the complete drop-ins; return it."""
    _copy(environment.python_backend, directory / "python")
    shutil.copy(environment.stub, directory / "python")
    for model in sorted(drop_ins.glob("*/model.py")):
        if (drop_ins / COMMON).is_dir():
            _copy(drop_ins / COMMON, directory / model.parent.name)
        _copy(model.parent, directory / model.parent.name)
    return directory


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
