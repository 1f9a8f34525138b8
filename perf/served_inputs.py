"""What the figures of a served endpoint depend on, as a fingerprint: its files, the requests, the machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from perf.kit.data import fingerprint, sha256
from perf.kit.served import steps_of
from perf.machine import Machine
from server.backend_directory import DROP_INS

SHARED_BY_DROP_INS = "common"


def figures_key(repository: Path, endpoint: str, requests: Path, machine: Machine, settings: Sequence[str]) -> str:
    """12 hexadecimal digits; the time of day and the load of the machine are left out.

    Args:
        settings: of the measurement.
    """
    versions = {key: value for key, value in dataclasses.asdict(machine).items() if key != "load_average"}
    parts = [*settings, json.dumps(versions), sha256(requests)]
    return fingerprint([*parts, *map(sha256, served_files(repository, endpoint))])


def served_files(repository: Path, endpoint: str) -> list[Path]:
    """Files of the versions that the endpoint's steps name, their configurations, and the drop-ins that run them."""
    steps = steps_of(repository, endpoint)
    files = [path for step in steps for path in (step.config, *step.files)]
    backends = sorted({SHARED_BY_DROP_INS, *(step.backend for step in steps)})
    return [*files, *(path for backend in backends for path in sorted((DROP_INS / backend).glob("*.py")))]
