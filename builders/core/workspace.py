"""Where a build reads and writes: the project, its build folder, Triton's repository, the item store."""

from __future__ import annotations

import dataclasses
from pathlib import Path

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
SERVED_CODE = REPOSITORY_ROOT / "served"
DROP_INS = REPOSITORY_ROOT / "backends"
SHARED_CODE = (
    SERVED_CODE / "served.py",
    SERVED_CODE / "byte_tensors.py",
    DROP_INS / "common" / "counters.py",
    DROP_INS / "common" / "deadlines.py",
)
"""Beside every served model."""
"""The code that Triton runs, written by hand; publishing copies it."""


@dataclasses.dataclass(frozen=True)
class Workspace:
    """Folders that a build writes: ONNX files and figures, Triton's repository, the item store."""

    build: Path = REPOSITORY_ROOT / "build"
    repository: Path = REPOSITORY_ROOT / "model_repository"
    item_store: Path = REPOSITORY_ROOT / "item_store"

    def ranker_folder(self, ranker: str) -> Path:
        """ONNX files and figures of one recipe."""
        return self.build / "rankers" / ranker


PROJECT = Workspace()
