"""Numerical parity: two sets of tensors that should agree, compared by name, shape and value.

Knows nothing of rankings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from builders.core.errors import BuilderError, listed


class ParityError(BuilderError):
    """Two sets of tensors that should agree do not."""


class NameMismatch(ParityError):
    """A tensor is missing or not known."""


class ShapeMismatch(ParityError):
    """A tensor has another shape, or nothing in it."""


class ValueMismatch(ParityError):
    """A tensor's values differ by more than the tolerance, or are NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """What :func:`check_parity` measured.

    Attributes:
        max_abs_difference: tensor name to the largest difference of one element.
        atol: the tolerance that all of them kept.
    """

    max_abs_difference: dict[str, float]
    atol: float


def check_parity(reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], atol: float) -> ParityReport:
    """Compares tensors by name, then shape, then value (absolute difference, in float64).

    Raises:
        NameMismatch, ShapeMismatch, ValueMismatch: the first of the three that fails, naming every tensor at fault.
    """
    _check_names(reference, found)
    _check_shapes(reference, found)
    return _check_values(reference, found, atol)


def _check_names(reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> None:
    if set(found) != set(reference) or not reference:
        raise NameMismatch(
            f"found tensors {listed(found)}, wanted {listed(reference)}, at least one. "
            "If a contract changed after the export, run 'make export'"
        )


def _check_shapes(reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> None:
    faults = [
        f"'{name}' has shape {list(found[name].shape)}, wanted {list(wanted.shape)}, not empty"
        for name, wanted in reference.items()
        if found[name].shape != wanted.shape or wanted.size == 0
    ]
    if faults:
        raise ShapeMismatch(f"{'; '.join(faults)}. If a contract changed after the export, run 'make export'")


def _check_values(reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], atol: float) -> ParityReport:
    differences: dict[str, float] = {}
    faults: list[str] = []
    for name, wanted in reference.items():
        faults += [
            f"{side} '{name}' holds {bad} values that are NaN or infinite, wanted none"
            for side, tensor in (("found", found[name]), ("reference", wanted))
            if (bad := int(np.count_nonzero(~np.isfinite(tensor))))
        ]
        with np.errstate(invalid="ignore"):  # inf minus inf: named above
            difference = np.abs(found[name].astype(np.float64) - wanted.astype(np.float64))
        differences[name] = float(difference.max())
        if differences[name] > atol:
            place = np.unravel_index(int(difference.argmax()), difference.shape)
            faults.append(
                f"'{name}' differs by {differences[name]:.3g} at {[int(axis) for axis in place]} "
                f"(found {found[name][place]:.6g}, wanted {wanted[place]:.6g}), tolerance {atol:g}"
            )
    if faults:
        raise ValueMismatch(f"{'; '.join(faults)}. If the checkpoint changed after the export, run 'make export'")
    return ParityReport(differences, atol)
