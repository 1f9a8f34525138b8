"""What every drop-in reads of a model configuration, and how it refuses one.

The files of backends/common are copied beside each drop-in's own (server/backend_directory.py), so that a drop-in is
one flat folder, as Triton wants it.
"""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils
from batching import RunLimits

ROW_CAP = "max_rows_per_run"
TOKEN_CAP = "max_tokens_per_run"
ROW_INPUTS = "row_inputs"
PADDING_MASK, LENGTHS = "padding_mask", "lengths"


class Unsupported(ValueError):
    """The configuration asks for what this backend, or the C++ one, cannot do."""


class ConfigurationMismatch(ValueError):
    """The model configuration does not fit the model file. Says what each of them has, and what to do."""


def parameter(config: dict[str, Any], name: str) -> str | None:
    """Return a parameter's text, None where it is not set."""
    found = config.get("parameters", {}).get(name)
    return None if found is None else found["string_value"]


def run_limits(config: dict[str, Any], takes_any_rows: bool) -> RunLimits:
    """Return what one run may take, from the drop-ins' own parameters.

    max_rows_per_run, max_tokens_per_run: 0 or missing for no limit. row_inputs: names, separated by commas, of a model
    that does not batch: the inputs that a request is parted by. padding_mask, lengths: see RunLimits.
    takes_any_rows: the first dimension of every tensor is the rows, and the model takes any number of them.
    """
    caps = {name: _cap(config, name) for name in (ROW_CAP, TOKEN_CAP)}
    row_inputs = _row_inputs(config)
    for name, cap in caps.items():
        if cap and not (takes_any_rows or row_inputs):
            raise Unsupported(
                f"parameter {name} is {cap}, wanted 0 (no limit) or more, and with it a model that takes any number of "
                f"rows, or parameter {ROW_INPUTS} (see backends/CONFORMANCE.md)"
            )
    if row_inputs and not any(caps.values()):
        raise Unsupported(f"parameter {ROW_INPUTS} is set without {ROW_CAP} or {TOKEN_CAP}; leave it out, or set one")
    mask, lengths = _padding(config, may_part=takes_any_rows or bool(row_inputs))
    return RunLimits(caps[ROW_CAP], caps[TOKEN_CAP], row_inputs, mask, lengths)


def _cap(config: dict[str, Any], name: str) -> int | None:
    text = parameter(config, name) or "0"
    try:
        cap = int(text)
    except ValueError as error:
        raise Unsupported(f"parameter {name}: failed to convert '{text}' to integral number") from error
    if cap < 0:
        raise Unsupported(f"parameter {name} is {cap}, wanted 0 (no limit) or more")
    return cap or None


def _padding(config: dict[str, Any], *, may_part: bool) -> tuple[str, tuple[int, ...]]:
    """The mask and the lengths that a run may be cut to. Raises Unsupported."""
    mask, text = parameter(config, PADDING_MASK) or "", parameter(config, LENGTHS) or ""
    try:
        lengths = tuple(int(length) for length in filter(None, (one.strip() for one in text.split(","))))
    except ValueError as error:
        raise Unsupported(f"parameter {LENGTHS}: failed to convert '{text}' to integral numbers") from error
    if bool(mask) != bool(lengths) or any(length <= 0 for length in lengths) or sorted(set(lengths)) != list(lengths):
        raise Unsupported(
            f"parameter {PADDING_MASK} is '{mask}' and {LENGTHS} is '{text}', wanted both or none: an input, and the "
            "lengths that a run may be cut to, shortest first, separated by commas"
        )
    two_dimensions = 1 if config["max_batch_size"] > 0 else 2
    if mask and mask not in {io["name"] for io in config["input"] if len(io["dims"]) == two_dimensions}:
        raise Unsupported(f"parameter {PADDING_MASK} is {mask}, wanted the name of an input of rows and lengths")
    if mask and not may_part:
        raise Unsupported(
            f"parameter {PADDING_MASK} is set, but the rows of this model cannot be run apart; leave it out"
        )
    return mask, lengths


def _row_inputs(config: dict[str, Any]) -> frozenset[str]:
    """Names of inputs, each with a dynamic first dimension. Raises Unsupported."""
    text = parameter(config, ROW_INPUTS) or ""
    names = frozenset(filter(None, (name.strip() for name in text.split(","))))
    if names and config["max_batch_size"] > 0:
        raise Unsupported(
            f"parameter {ROW_INPUTS} is set and max_batch_size is above 0, where every input has the rows"
        )
    wrong = names - {io["name"] for io in config["input"] if io["dims"] and int(io["dims"][0]) == -1}
    if wrong:
        raise Unsupported(
            f"parameter {ROW_INPUTS} is {text}, but {', '.join(sorted(wrong))} is no tensor whose first dimension is "
            "-1; wanted names of inputs that have the rows as their first dimension"
        )
    return names


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
