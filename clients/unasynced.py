"""Writes ``tritonrank_client/_sync`` from ``_async``: one client in two forms (unasync, as elasticsearch-py has it).

python clients/unasynced.py
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

PACKAGE = Path(__file__).resolve().parent / "tritonrank_client"
BY_HAND = {"_waiting.py", "__init__.py"}
"""Waiting is what differs."""
NAMES = {
    "AsyncRankClient": "RankClient",
    "AsyncGrpcTransport": "GrpcTransport",
    "AsyncTransport": "Transport",
    "AsyncEndpoint": "Endpoint",
    "AsyncCaller": "Caller",
    "AsyncSend": "Send",
    "AsyncStep": "Step",
    "AsyncLock": "Lock",
    "AsyncBackground": "Background",
    "AsyncRetrying": "Retrying",
    "infer_hedged_async": "infer_hedged",
    "run_async": "run",
}
TYPES = {r"Awaitable\[((?:[^\[\]]|\[[^\[\]]*\])*)\]": r"\1", r"import Awaitable, ": "import ", r"grpc\.aio\b": "grpc"}
WORDS = {
    **{rf"\b{name}\b": sync for name, sync in NAMES.items()},
    r"\bawait ": "",
    "tasks of one event loop": "threads",
}
"""Of comments and docstrings, which unasync leaves alone."""


def main(folder: Path = PACKAGE / "_sync") -> None:
    """Write the files into `folder`, each formatted."""
    with tempfile.TemporaryDirectory() as temporary:
        sources = Path(temporary) / "_async"
        shutil.copytree(PACKAGE / "_async", sources, ignore=shutil.ignore_patterns("__pycache__", *BY_HAND))
        files = [str(path) for path in sorted(sources.glob("*.py"))]
        unasync.unasync_files(files, [unasync.Rule("/_async/", "/_sync/", additional_replacements=NAMES)])
        for path in sorted((Path(temporary) / "_sync").glob("*.py")):
            (folder / path.name).write_text(_rest(path.read_text(encoding="utf-8")), encoding="utf-8")
            for command in (["check", "--select=I,F401", "--fix"], ["format"]):
                subprocess.run([sys.executable, "-m", "ruff", *command, "--quiet", folder / path.name], check=True)


def _rest(text: str) -> str:
    for pattern, sync in {**TYPES, **WORDS}.items():
        text = re.sub(pattern, sync, text)
    return text


if __name__ == "__main__":
    main()
