"""Memory of a server with all the processes that it started."""

from __future__ import annotations

import dataclasses

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
