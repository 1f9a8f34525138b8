"""Memory of a server with all the processes that it started."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import psutil


@dataclasses.dataclass(frozen=True)
class TreeMemory:
    """Sums over a process tree: resident pages, and with shared pages shared out."""

    rss_bytes: int
    pss_bytes: int
    processes: int


def tree_memory(pid: int) -> TreeMemory:
    """Of a process and all its descendants, now."""
    root = psutil.Process(pid)
    spaces = []
    for process in [root, *root.children(recursive=True)]:
        try:
            spaces.append(process.memory_full_info())
        except psutil.NoSuchProcess:
            continue
    return TreeMemory(sum(space.rss for space in spaces), sum(space.pss for space in spaces), len(spaces))


def tree_anonymous_bytes(pid: int) -> int:
    """Memory that no file stands behind, of a process and all its descendants: what a mapped store or index costs is
    the system's to give up, and not among it."""
    root = psutil.Process(pid)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))
    return total
