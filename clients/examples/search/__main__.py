"""`make search`: a search page over a Triton of its own, the first stage's order beside the re-ordered one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from builders.core.errors import told_in_one_line
from perf.errors import roots

console = Console()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def search(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page, on 127.0.0.1; 0 = a free one.")] = 8080,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with the data; else TRITONRANK_DATA, ../shared/data, ...")
    ] = None,
) -> None:
    """Build what is missing, start Triton and the page, and print its address. Ctrl-C ends both."""
    from builders.core.workspace import PROJECT
    from builders.data.find import find_data
    from clients.examples.search.run import running
    from clients.examples.search.triton import keep_up

    source = find_data(data)
    console.print(source.note, style="bold red" if source.generated else "")
    with running(PROJECT, source, console, port) as (server, address):
        console.print(f"search page: {address}", style="bold", highlight=False)
        console.print(
            f"Ctrl-C ends it. 'kill {server.pid}' ends Triton alone: the page goes on without, until it is back"
        )
        keep_up(server, console.print)


def main() -> None:
    """An error that a user can cause is one line on stderr."""
    with told_in_one_line(roots):
        app()


if __name__ == "__main__":
    main()
