"""Makes merging certain, and finds the processes that answer requests."""

from __future__ import annotations

import re
from pathlib import Path

from server import TritonServer


def waits_for(rows: int) -> str:
    """A batcher that runs as soon as it holds so many rows, and else waits ten seconds: merging without chance."""
    return f"dynamic_batching {{ preferred_batch_size: [{rows}] max_queue_delay_microseconds: 10000000 }}"


def stubs_of(server: TritonServer, model: str) -> list[Path]:
    """The /proc folders of a model's instances: the server's children that name the instance in their command."""
    children = [
        Path("/proc", pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    ]
    children += [
        Path("/proc", pid)
        for task in Path(f"/proc/{server.pid}/task").iterdir()
        if task.name != str(server.pid)
        for pid in (task / "children").read_text().split()
    ]
    instance = re.compile(rf"{model}_\d+(_\d+)?")
    return [child for child in children if any(map(instance.fullmatch, arguments_of(child)))]


def arguments_of(process: Path) -> list[str]:
    return (process / "cmdline").read_text().split("\0")
