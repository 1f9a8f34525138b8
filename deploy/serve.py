"""The container's entry point: checks that a repository is as it was published, and its TensorRT engines, then runs
tritonserver on it under ``server/guard.py``, which watches it, and drains it at SIGTERM.

Usage: serve.py REPOSITORY [OPTION OF TRITONSERVER...]

What is served is what ``server/plans.py`` names: REPOSITORY, or a view of it without the engines that this machine
cannot load. $TRITONRANK_VERIFY (off, hash, signature; hash unless told) and $TRITONRANK_PUBLIC_KEY say how
``server/verify.py`` checks it first, $TRITONRANK_DRAIN_S for how many seconds it answers after SIGTERM (5). Triton asks
for the admin key in the file $TRITONRANK_ADMIN_KEY_FILE, see ``server/admin_key.py``. Standard library only, for it
runs in Triton's container. Knows nothing of what makes an engine loadable.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SERVER = Path(__file__).resolve().parent.parent / "server"
DRAIN_VARIABLE, DRAIN_S, ANSWER_WITHIN_S = "TRITONRANK_DRAIN_S", "5", 30
LOAD, CONFIG_NAME = "--load-model=", "--model-config-name="


def main(repository: str, options: Sequence[str]) -> None:
    """Become the guard of ``tritonserver OPTIONS --model-repository=<what can be served>``; end with a check's code if
    it fails."""
    mode = os.environ.get("TRITONRANK_VERIFY") or "hash"
    verify(repository, mode, options)
    checked = checked_repository(repository)
    drain = f"--drain-s={os.environ.get(DRAIN_VARIABLE) or DRAIN_S}"
    guard = [
        sys.executable, "-IS", str(SERVER / "guard.py"), drain, f"--answer-within-s={ANSWER_WITHIN_S}", "--",
    ]  # fmt: skip
    # Published configurations lack nothing, and to complete one Triton would first start each Python model once more.
    complete = [] if mode == "off" else ["--disable-auto-complete-config"]
    triton = ["tritonserver", *options, *complete, *admin_options(), f"--model-repository={checked}"]
    os.execv(sys.executable, [*guard, *triton])


def verify(repository: str, mode: str, options: Sequence[str]) -> None:
    """End this program where what tritonserver would load is not as it was published."""
    command = [sys.executable, str(SERVER / "verify.py"), "--repository", repository]
    command += ["--verify", mode]
    if key := os.environ.get("TRITONRANK_PUBLIC_KEY"):
        command += ["--public-key", key]
    for option in options:
        if option.startswith(LOAD):
            command += ["--load", option.removeprefix(LOAD)]
        elif option.startswith(CONFIG_NAME):
            command += ["--config-name", option.removeprefix(CONFIG_NAME)]
    if code := subprocess.run(command).returncode:
        sys.exit(code)


def admin_options() -> list[str]:
    """The options by which tritonserver asks for the admin key; none where $TRITONRANK_OPEN_APIS is 1."""
    asked = subprocess.run(
        [sys.executable, "-m", "server.admin_key"], cwd=SERVER.parent, stdout=subprocess.PIPE, text=True
    )
    if asked.returncode:
        sys.exit(asked.returncode)
    return asked.stdout.split()


def checked_repository(repository: str) -> str:
    """The path to serve. Its view lies in a new temporary folder, and outlives this program as long as tritonserver."""
    view = tempfile.mkdtemp(prefix="tritonrank_")
    command = [sys.executable, str(SERVER / "plans.py"), "--repository", repository, "--view", view]
    checked = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if checked.returncode:
        sys.exit(checked.returncode)
    return checked.stdout.strip()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("error: no repository given, wanted: serve.py REPOSITORY [OPTION OF TRITONSERVER...]")
    main(sys.argv[1], sys.argv[2:])
