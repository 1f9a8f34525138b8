"""Keeps a library busy that is called in process, in that library's own environment.

``python -m perf.peers.in_process MODULE FOLDER ARGUMENTS...``: each line on stdin is JSON, ``numbers`` of the requests
and how many ``clients`` (threads) ask them; its answer is a line on stdout.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path

from perf.peers.peer import bodies_in, drive


def main(module: str, folder: str, *arguments: str) -> None:
    """Until stdin ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the library prints is no answer
    ask = importlib.import_module(module).opened(Path(folder), *arguments)
    bodies = bodies_in(Path(folder))
    for line in sys.stdin:
        wanted = json.loads(line)
        found = drive([lambda number: ask(bodies[number])] * wanted["clients"], wanted["numbers"])
        print(json.dumps(dataclasses.asdict(found)), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
