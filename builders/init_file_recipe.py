"""A ``.onnx`` or ``.pt2`` file => a recipe with a ``[[features]]`` entry for each of its inputs, to be completed: the
file says dtypes and shapes, not which fields of an item its training put there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from builders.compress.context import Say
from builders.core.files import write_atomically
from builders.core.recipe import load_recipe
from builders.rankers.imported import exported_program, onnx_file
from builders.rankers.imported.declared_inputs import FileTensor
from builders.rankers.imported.folder import Found

TEMPLATE = "init_file_recipe.toml.j2"
GUESSED_TOKENS = 64
_SOURCES = {"query": "query", "hist": "history", "user": "user", "customer": "user", "context": "context"}
"""What a name may begin with => the source that this lets guess."""
_FLOATS = ("FP32", "FP16", "FP64")


@dataclasses.dataclass(frozen=True)
class Guess:
    """A ``[[features]]`` entry, as far as the file tells."""

    input: FileTensor
    table: dict[str, Any]


def write_file_recipe(found: Found, name: str, target: Path, environment: jinja2.Environment, say: Say = print) -> Path:
    """Say what the file has, write the recipe, say what is left to do. Raises: CheckpointError."""
    inputs, outputs = _tensors(found)
    guesses = [guessed(one) for one in inputs]
    for one in inputs:
        say(f"found input {one}")
    for one in outputs:
        say(f"found output {one}")
    score = next((one for one in outputs if one.dtype in _FLOATS), outputs[0])
    text = environment.get_template(TEMPLATE).render(
        name=name, found=found, guesses=guesses, outputs=outputs, score=score, heads=_heads(score)
    )
    write_atomically(target, text)
    load_recipe(target)  # as the next command will
    say(
        f"written: {target}. Its {len(guesses)} [[features]] are guesses by name and shape: complete fields, source "
        f"and vocabularies as in training, then: python -m builders build {target}"
    )
    return target


def _tensors(found: Found) -> tuple[Sequence[FileTensor], Sequence[FileTensor]]:
    if found.format == "onnx":
        model = onnx_file.load_onnx(found.path)
        return onnx_file.inputs_of(model), onnx_file.outputs_of(model)
    program = exported_program.load_program(found.path)
    return exported_program.inputs_of(program), exported_program.outputs_of(program)


def guessed(one: FileTensor) -> Guess:
    """Ids become sparse, multi_hot or tokens by their width, numbers dense or vector; the name tells the source."""
    name = re.sub(r"[^a-z0-9]+", "_", one.name.lower()).strip("_")
    name = name if name[:1].isalpha() else f"input_{name}"
    source = next((source for start, source in _SOURCES.items() if name.startswith(start)), "item")
    width = one.dims[1] if len(one.dims) > 1 else 1
    own = {} if name == one.name else {"input": one.name}
    table = {"name": name, **own, **_kind(one, width, source), "fields": [name]}
    if source in ("query", "history"):
        table.pop("fields")  # they have one of their own
    return Guess(one, {**table, "source": source})


def _kind(one: FileTensor, width: int | str, source: str) -> dict[str, Any]:
    if source == "query":
        return {"kind": "tokens", "size": width if isinstance(width, int) else GUESSED_TOKENS}
    if source == "history":
        return {"kind": "multi_hot", "size": width if isinstance(width, int) else GUESSED_TOKENS}
    if one.dtype in _FLOATS:
        wide = isinstance(width, int) and width > 1 and source != "context"
        return {"kind": "vector", "size": width} if wide else {"kind": "dense"}
    if width == 1 or source == "context":
        return {"kind": "sparse"}
    return (
        {"kind": "multi_hot", "size": width} if isinstance(width, int) else {"kind": "tokens", "size": GUESSED_TOKENS}
    )


def _heads(score: FileTensor) -> int:
    width = score.dims[1] if len(score.dims) > 1 else 1
    return width if isinstance(width, int) else 1
