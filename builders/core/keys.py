"""What a stored product depends on, as one key: the only place where such a key is made.

A key names everything that a computation reads, by name, so that a product which is out of date can say what changed.
Standard library only.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from builders.core.files import sha256

DIGITS = 12
"""Hexadecimal digits of a key."""
Inputs = Mapping[str, object]
"""Name => what a computation reads under it: text, number, file (its content counts, not its name), model, dataclass,
mapping, sequence or set of these."""


def key_of(inputs: Inputs) -> str:
    """12 hexadecimal digits that change when any input does. What :func:`digests` gave may stand in for its input."""
    return _shortened([json.dumps(digests(inputs), sort_keys=True)])


def digests(inputs: Inputs) -> dict[str, str]:
    """Name => 12 hexadecimal digits of that input alone.

    Raises:
        TypeError: an input is of a kind whose content cannot be told.
    """
    return {name: _shortened(_json(value)) for name, value in inputs.items()}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names whose digests differ, or that stand on one side only, in order."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def code_files(kind: type[Any]) -> tuple[Path, ...]:
    """Of a class and those it derives from. What is installed as a package is not looked at: its version is a fact of
    the environment."""
    files = [getattr(sys.modules.get(each.__module__), "__file__", None) for each in kind.__mro__]
    return tuple(sorted(path for path in {Path(file) for file in files if file} if not _installed(path)))


def code_of(*things: object) -> list[Path]:
    """The files that define the classes of these, and of a network those of its parts: an edited one is a change."""
    kinds: set[type[Any]] = {type(part) for thing in things for part in (thing, *_parts(thing))}
    return sorted({path for kind in kinds for path in code_files(kind)})


def _parts(thing: object) -> Iterable[object]:
    modules = getattr(thing, "modules", None)  # of a torch network
    return modules() if callable(modules) else ()


def _installed(path: Path) -> bool:
    return "site-packages" in path.parts or path.is_relative_to(sysconfig.get_path("stdlib"))


def _json(value: object) -> Iterator[str]:
    """``json.dumps(_content(value), sort_keys=True)`` in pieces: of a mapping of a catalogue's size, an entry each."""
    if not isinstance(value, Mapping) or hasattr(value, "model_dump"):
        yield json.dumps(_content(value), sort_keys=True)
        return
    between = "{"
    for name, each in sorted(value.items(), key=lambda entry: str(entry[0])):
        yield f"{between}{json.dumps(str(name))}: {json.dumps(_content(each), sort_keys=True)}"
        between = ", "
    yield "}" if value else "{}"


def _content(value: object) -> Any:
    """As JSON takes it."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return sha256(value)
    if callable(dump := getattr(value, "model_dump", None)):  # a pydantic model
        return _content(dump(mode="json"))
    if isinstance(value, datetime.date):
        return value.isoformat()
    if getattr(value, "shape", None) == () and callable(item := getattr(value, "item", None)):  # a NumPy number
        return item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _content(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _content(each) for name, each in value.items()}
    if isinstance(value, Set):
        return sorted(json.dumps(_content(each), sort_keys=True) for each in value)
    if isinstance(value, Sequence):
        return [_content(each) for each in value]
    raise TypeError(f"{type(value).__name__} has no content that a key could be made of")


def _shortened(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()[:DIGITS]
