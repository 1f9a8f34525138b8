"""The container's entry point: checks the TensorRT engines of a repository, then becomes tritonserver on it.

Usage: serve.py REPOSITORY [OPTION OF TRITONSERVER...]

What is served is what ``server/plans.py`` names: REPOSITORY, or a view of it without the engines that this machine
cannot load. Standard library only, for it runs in Triton's container. Knows nothing of what makes an engine loadable.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PLANS = Path(__file__).resolve().parent.parent / "server" / "plans.py"


def main(repository: str, options: Sequence[str]) -> None:
    """Become ``tritonserver OPTIONS --model-repository=<what can be served>``; end with plans.py's code if it fails."""
    checked = checked_repository(repository)
    os.execvp("tritonserver", ["tritonserver", *options, f"--model-repository={checked}"])


def checked_repository(repository: str) -> str:
    """The path to serve. Its view lies in a new temporary folder, and outlives this program as long as tritonserver."""
    view = tempfile.mkdtemp(prefix="tritonrank_")
    command = [sys.executable, str(PLANS), "--repository", repository, "--view", view]
    checked = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if checked.returncode:
        sys.exit(checked.returncode)
    return checked.stdout.strip()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("error: no repository given, wanted: serve.py REPOSITORY [OPTION OF TRITONSERVER...]")
    main(sys.argv[1], sys.argv[2:])
