"""Progress on anything longer than a few seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import rich.progress
from rich.console import Console

T = TypeVar("T")


def track(items: Sequence[T], label: str, console: Console | None) -> Iterator[T]:
    """The items, with a bar on a terminal and a line elsewhere; silent without a console."""
    if console is None or console.quiet:
        yield from items
    elif console.is_terminal:
        yield from rich.progress.track(items, f"{label:<36}", console=console, transient=True)
    else:
        console.print(f"{label}: {len(items)} to do", style="dim")
        yield from items
