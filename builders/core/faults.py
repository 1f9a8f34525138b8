"""The faults of a recipe as a user reads them: where, what was found, what was wanted, the nearest known name."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pydantic

from builders.core.errors import WRONG_RECIPE, BuilderError

DERIVED = {"root": "it is where the recipe lies: the project for the kit's own recipes, else the recipe's folder"}
"""Fields of a model that no file sets => where their value comes from."""


class RecipeError(BuilderError):
    """A recipe cannot be used; every fault is in the message."""

    exit_code = WRONG_RECIPE


def faults_of(error: pydantic.ValidationError, model: type[pydantic.BaseModel], *within: str) -> list[str]:
    """``<table>.<number>.<field>: <fault>`` of each fault. within: the table that was validated."""
    return [
        f"{'.'.join(map(str, (*within, *fault['loc']))) or 'recipe'}: {_told(fault, model)}" for fault in error.errors()
    ]


def unknown_name(name: str, known: Iterable[str], what: str = "field") -> str:
    """That a name is not known, with the nearest one that is, or with all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"unknown {what}; " + (f"did you mean '{near[0]}'?" if near else f"wanted one of {', '.join(names)}")


def fields_of(model: type[pydantic.BaseModel]) -> list[str]:
    """Names of the fields that a file may set."""
    return [name for name in model.model_fields if name not in DERIVED]


def models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    """The models that a field's type is made of, each once for each place."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from models_in(part)


def tag_of(model: type[pydantic.BaseModel]) -> str:
    """The value of ``step`` that picks the model among others; empty where nothing does."""
    field = model.model_fields.get("step")
    return str(typing.get_args(field.annotation)[0]) if field else ""


def _told(fault: Any, model: type[pydantic.BaseModel]) -> str:
    if fault["type"] == "extra_forbidden":
        return _stranger(str(fault["loc"][-1]), _owner(model, fault["loc"][:-1]))
    if fault["type"] == "union_tag_invalid":
        known = [part.strip(" '") for part in fault["ctx"]["expected_tags"].split(",")]
        return f"{fault['msg']}; {unknown_name(fault['ctx']['tag'], known, 'step')}"
    return str(fault["msg"]).removeprefix("Value error, ")


def _owner(model: type[pydantic.BaseModel], location: Sequence[int | str]) -> type[pydantic.BaseModel]:
    """The model of the table that lies at ``location``."""
    found = [model]
    for part in location:
        if isinstance(part, int):
            continue
        fields = [each.model_fields[part] for each in found if part in each.model_fields]
        if fields:
            found = [inner for field in fields for inner in models_in(field.annotation)]
        else:
            found = [each for each in found if tag_of(each) == part]
    return found[0]


def _stranger(name: str, owner: type[pydantic.BaseModel]) -> str:
    derived = getattr(owner, name, None)
    if isinstance(derived, property):
        return f"derived, not set ({(derived.__doc__ or '').splitlines()[0].rstrip('.')}); leave it out"
    return unknown_name(name, fields_of(owner))
