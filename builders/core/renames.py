"""Names of a recipe's fields and steps until 0.1 => their names of now. Read for one release, each with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

VARIANT = {"trial": "experimental"}
STEP = {"rate": "learning_rate"}
STEP_NAMES = {"distil": "distill", "factorise": "low_rank"}
TRAINING = {
    "passes": "epochs",
    "rate": "learning_rate",
    "distil_epochs": "distill_epochs",
    "distil_batch": "distill_batch",
    "distil_rate": "distill_learning_rate",
    "tune_rate": "tune_learning_rate",
}
"""Of the kit's own trainers; a ``[training]`` table of a user's own trainer stays as it is."""


def with_names_of_now(content: Mapping[str, Any], file: str, own_trainer: bool) -> tuple[dict[str, Any], list[str]]:
    """A recipe's content under the names of now, and the faults: a field that stands there under both.

    Args:
        file: for the warnings.
        own_trainer: the user's, whose table is not looked at.
    """
    renaming = _Renaming(file)
    new = dict(content)
    if isinstance(content.get("variants"), list):
        new["variants"] = [
            renaming.variant(each, f"variants.{row}") if isinstance(each, Mapping) else each
            for row, each in enumerate(content["variants"])
        ]
    if isinstance(content.get("training"), Mapping) and not own_trainer:
        new["training"] = renaming.table(content["training"], TRAINING, "training")
    return new, renaming.faults


class _Renaming:
    def __init__(self, file: str) -> None:
        self.file = file
        self.faults: list[str] = []

    def variant(self, content: Mapping[str, Any], where: str) -> dict[str, Any]:
        new = self.table(content, VARIANT, where)
        if isinstance(new.get("steps"), list):
            new["steps"] = [
                self.step(each, f"{where}.steps.{row}") if isinstance(each, Mapping) else each
                for row, each in enumerate(new["steps"])
            ]
        return new

    def step(self, content: Mapping[str, Any], where: str) -> dict[str, Any]:
        new = self.table(content, STEP, where)
        name = new.get("step")
        if isinstance(name, str) and name in STEP_NAMES:
            self._warn(f"{where}: step '{name}' is now called '{STEP_NAMES[name]}'")
            new["step"] = STEP_NAMES[name]
        return new

    def table(self, content: Mapping[str, Any], names: Mapping[str, str], where: str) -> dict[str, Any]:
        new: dict[str, Any] = {}
        for name, value in content.items():
            now = names.get(name, name)
            if now != name and now in content:
                self.faults.append(f"{where}.{name}: is the name of '{now}' until 0.1, and both stand there; keep one")
            elif now != name:
                self._warn(f"{where}.{name} is now called '{now}'")
                new[now] = value
            else:
                new[name] = value
        return new

    def _warn(self, message: str) -> None:
        warnings.warn(f"{self.file}: {message}; the old name goes with 0.3", FutureWarning, stacklevel=2)
