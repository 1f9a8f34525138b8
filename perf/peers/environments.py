"""An environment a peer, made once from its pinned requirements; where that fails, the reason is kept instead."""

from __future__ import annotations

import hashlib
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from perf.errors import PerfError
from perf.kit.data import REPOSITORY_ROOT, write_atomically
from perf.peers.peer import Environment
from server.environment import find_environment

REQUIREMENTS = Path(__file__).parent / "requirements"
TORCH = REPOSITORY_ROOT / "requirements" / "torch.txt"
"""With what it needs besides: a CUDA build of a package index brings its libraries."""
MADE, FAILED = ".made", ".failed"
"""Files that say of which requirements an environment was made, and why not."""
REASON_LINES = 5


class NotInstalled(PerfError):
    """A peer's packages cannot be installed here; the message is pip's."""


def python_of(
    environment: Environment,
    folder: Path,
    say: Callable[[str], object] = print,
    requirements: Path = REQUIREMENTS,
) -> Path:
    """The interpreter that runs a peer, its environment made first where it is not there.

    Args:
        folder: environments lie in it, each under its name.
        requirements: holds ``<name>.txt``.

    Raises:
        NotInstalled: now, or the last time that these requirements were tried.
        EnvironmentUnfit: it is the server's, which is not there.
    """
    if not environment.name:
        return find_environment().bin / "python" if environment.base == "server" else Path(sys.executable)
    wanted = requirements / f"{environment.name}.txt"
    key = hashlib.sha256(wanted.read_bytes()).hexdigest()
    target, failed = folder / environment.name, folder / f"{environment.name}{FAILED}"
    python = target / "bin" / "python"
    if _first_line(target / MADE) == key and python.exists():
        return python
    if _first_line(failed) == key:
        reason = failed.read_text(encoding="utf-8").partition("\n")[2]
        raise NotInstalled(f"{reason}\n(tried before; remove {failed} to try again)")
    say(f"installing {wanted.name} into {target} (minutes, once)")
    try:
        _make(environment, target, wanted)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(target, ignore_errors=True)
        reason = _reason(error)
        write_atomically(failed, f"{key}\n{reason}")
        raise NotInstalled(reason) from error
    failed.unlink(missing_ok=True)
    write_atomically(target / MADE, key)
    return python


def _make(environment: Environment, target: Path, requirements: Path) -> None:
    venv.create(target, clear=True)
    if environment.base == "kit":  # behind its own packages
        [own] = target.glob("lib/python3.*/site-packages")
        (own / "kit.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    if environment.torch:
        _install(target, "--requirement", TORCH)
    _install(target, "--no-deps", "--requirement", requirements)


def _install(target: Path, *what: str | Path) -> None:
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        target / "bin" / "python",
        "install",
        "--ignore-installed",
    ]
    command += ["--quiet", "--disable-pip-version-check", *what]
    subprocess.run(command, check=True, capture_output=True, text=True)


def _reason(error: subprocess.CalledProcessError) -> str:
    lines = [line for line in f"{error.stdout}\n{error.stderr}".splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("ERROR")] or lines
    return "\n".join(told[-REASON_LINES:]) or f"pip ended with {error.returncode}"


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0] if path.is_file() else ""
