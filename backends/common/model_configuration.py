"""What every drop-in reads of a model configuration, and how it refuses one.

The files of backends/common are copied beside each drop-in's own (server/backend_directory.py), so that a drop-in is
one flat folder, as Triton wants it.
"""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

ROW_CAP = "max_rows_per_run"


class Unsupported(ValueError):
    """The configuration asks for what this backend, or the C++ one, cannot do."""


class ConfigurationMismatch(ValueError):
    """The model configuration does not fit the model file. Says what each of them has, and what to do."""


def parameter(config: dict[str, Any], name: str) -> str | None:
    """Return a parameter's text, None where it is not set."""
    found = config.get("parameters", {}).get(name)
    return None if found is None else found["string_value"]


def row_cap(config: dict[str, Any], takes_any_rows: bool) -> int | None:
    """Return the most rows of one run, from parameter max_rows_per_run (the drop-ins' own); None for no limit.

    takes_any_rows: the first dimension of every tensor is the rows, and the model takes any number of them.
    """
    text = parameter(config, ROW_CAP) or "0"
    try:
        cap = int(text)
    except ValueError as error:
        raise Unsupported(f"parameter {ROW_CAP}: failed to convert '{text}' to integral number") from error
    if cap < 0 or (cap > 0 and not takes_any_rows):
        raise Unsupported(
            f"parameter {ROW_CAP} is {cap}, wanted 0 (no limit) or more, and with it a model that takes any number of "
            "rows (see backends/CONFORMANCE.md)"
        )
    return cap or None


def refuse_unsupported_features(config: dict[str, Any]) -> None:
    """Raise Unsupported for features of the C++ backends that no drop-in has."""
    for feature in ("sequence_batching", "batch_input", "batch_output"):
        if config.get(feature):
            raise Unsupported(f"'{feature}' is set, which this drop-in does not do; serve with the Triton container")
    for io in config["input"]:
        if io.get("allow_ragged_batch"):
            raise Unsupported(
                f"input '{io['name']}' has allow_ragged_batch, which this drop-in does not do; serve with the container"
            )


class LoadErrors:
    """Turns what goes wrong while loading into Triton's exception, prefixed with the model's name."""

    def __init__(self, model: str):
        self.model = model

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            raise pb_utils.TritonModelException(f"unable to load model '{self.model}': {error}") from error
