"""``docs/reference/recipe.md``: every table and field of a recipe, written from the models that parse one.

A field's meaning is its line under ``Attributes:`` in the docstring of the class that declares it, and stands nowhere
else. ``python -m builders recipe-reference`` writes the page.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import annotated_types
import pydantic
from pydantic.fields import FieldInfo

from builders.core import recipe, renames, steps
from builders.core.faults import fields_of, models_in, tag_of
from builders.core.training_settings import TRAINERS
from builders.core.workspace import REPOSITORY_ROOT

PAGE = REPOSITORY_ROOT / "docs" / "reference" / "recipe.md"
TABLES: Sequence[tuple[str, type[pydantic.BaseModel]]] = (
    ("Top level", recipe.Recipe),
    ("`[text]`", recipe.Text),
    ("`[reference]`", recipe.Reference),
    ("`[[features]]`", recipe.FeatureTable),
    ("`[[variants]]`", recipe.Variant),
    ("`[[variants]]`, `gate`", recipe.OwnLimits),
    ("`[gate]`", recipe.Gate),
    ("`[serving]`", recipe.Serving),
    ("`[similar]`", recipe.Similar),
    ("`[postprocess]`", recipe.Postprocess),
    ("`[postprocess.rules]`", recipe.RuleDefaults),
    ("`[machine]`", recipe.Machine),
)
STEPS: Sequence[type[pydantic.BaseModel]] = tuple(models_in(steps.Step))
HEAD = """<!-- Written by 'python -m builders recipe-reference' from the docstrings of the models in builders/core. -->
# Recipe reference

A recipe is one TOML file a ranker. Every field that is not listed here is refused, with the nearest known name.
"""
IN_A_VARIANT = 'In a variant: `steps = [{ step = "<name>", <field> = <value> }, ...]`.'


def reference() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    parts += [_section(f"## {title}", model) for title, model in TABLES]
    parts += [f"## Compression steps\n\n{_paragraph(steps.__doc__ or '', 1)}\n\n{IN_A_VARIANT}\n", _papers()]
    parts += [_section(f"### `{tag_of(model)}`", model) for model in STEPS]
    parts += [_section("### A teacher of `distill`", steps.Teacher)]
    parts += ["## `[training]`\n\nWhat the recipe's `trainer` reads. The table of a trainer of your own is free.\n"]
    parts += [_section(f"### `{trainer}`", model) for trainer, model in TRAINERS.items()]
    parts += [_renamed()]
    return "\n".join(parts)


def write_reference(path: Path = PAGE) -> Path:
    """Write the page; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(reference(), encoding="utf-8")
    return path


def models() -> list[type[pydantic.BaseModel]]:
    """Every model that the page tells of."""
    return [*(model for _, model in TABLES), *STEPS, steps.Teacher, *TRAINERS.values()]


def meanings(model: type[pydantic.BaseModel]) -> dict[str, str]:
    """Field => what ``Attributes:`` says of it, in the class or one that it derives from."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        for names, text in _attributes(vars(owner).get("__doc__") or ""):
            found |= dict.fromkeys(names, text)
    return {name: found[name] for name in told_fields(model) if name in found}


def told_fields(model: type[pydantic.BaseModel]) -> list[str]:
    """The fields that have a row: all that a file may set but ``step``, which is the heading."""
    return [name for name in fields_of(model) if not (name == "step" and tag_of(model))]


def papers(model: type[pydantic.BaseModel]) -> list[str]:
    """arXiv numbers and venues that a step's docstring names."""
    return re.findall(r"arXiv:\d{4}\.\d{5}|Cao et al\., ICML 2007", inspect.getdoc(model) or "")


def _section(heading: str, model: type[pydantic.BaseModel]) -> str:
    rows = [_row(model, name) for name in told_fields(model)]
    table = ["| field | type | default | range | meaning |", "| --- | --- | --- | --- | --- |", *rows] if rows else []
    text = _linked(_paragraph(inspect.getdoc(model) or "", 0))
    return "\n".join([heading, "", text, *(["", *table] if table else []), ""])


def _row(model: type[pydantic.BaseModel], name: str) -> str:
    field = model.model_fields[name]
    cells = (
        f"`{name}`",
        _word(field.annotation),
        _default(field),
        _range(field),
        _linked(meanings(model).get(name, "")),
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _papers() -> str:
    rows = [f"| `{tag_of(model)}` | {', '.join(map(_linked, papers(model)))} |" for model in STEPS]
    return "\n".join(["| step | paper |", "| --- | --- |", *rows, ""])


def _renamed() -> str:
    places = (
        ("a variant", renames.VARIANT),
        ("a step", renames.STEP),
        ("a step's name", renames.STEP_NAMES),
        ("`[training]`", renames.TRAINING),
    )
    rows = [f"| {place} | `{old}` | `{new}` |" for place, names in places for old, new in names.items()]
    text = "Read until 0.3, each with a warning; both names at once are refused."
    return "\n".join(["## Names until 0.1", "", text, "", "| in | until 0.1 | now |", "| --- | --- | --- |", *rows, ""])


# ---------------------------------------------------------------- docstrings
def _paragraph(docstring: str, number: int) -> str:
    """One paragraph in one line, as Markdown: single backticks, a class's name without Sphinx's role."""
    paragraphs = [part for part in inspect.cleandoc(docstring).split("\n\n") if not part.startswith("Attributes:")]
    return _markdown(paragraphs[number]) if number < len(paragraphs) else ""


def _markdown(text: str) -> str:
    plain = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split()))
    return re.sub(r'(`[^`]+`)|("[^"]+")', lambda found: found[1] or f"`{found[2]}`", plain.replace("``", "`"))


def _attributes(docstring: str) -> Iterator[tuple[list[str], str]]:
    """(names, text) of each entry under ``Attributes:``; a longer entry goes on, indented more."""
    _, _, section = inspect.cleandoc(docstring).partition("Attributes:\n")
    for entry in re.split(r"\n(?= {4}\S)", section.split("\n\n")[0]):
        names, _, text = entry.strip().partition(":")
        if text:
            yield [name.strip() for name in names.split(",")], _markdown(text)


def _linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


# ---------------------------------------------------------------- types
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", dict: "table"}
_BOUNDS: Sequence[tuple[type, str, str]] = (
    (annotated_types.Ge, "ge", "at least {}"),
    (annotated_types.Gt, "gt", "above {}"),
    (annotated_types.Le, "le", "at most {}"),
    (annotated_types.Lt, "lt", "below {}"),
    (annotated_types.MinLen, "min_length", "entries: at least {}"),
    (annotated_types.MaxLen, "max_length", "entries: at most {}"),
)


def _word(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _word(arguments[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(f'`"{value}"`' for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return _either(arguments)
    if origin is tuple:
        return f"list of {_plural(arguments[0])}"
    if origin is dict:
        return "table" if arguments[1] is Any else f"table of {_word(arguments[0])} => {_word(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return "table"
    return _WORDS[annotation]


def _either(arguments: Sequence[Any]) -> str:
    return " or ".join(dict.fromkeys(_word(each) for each in arguments if each is not type(None)))


def _plural(annotation: Any) -> str:
    word = _word(annotation)
    irregular = {"text": "texts", "path": "paths", "list of texts": "lists of texts"}
    return irregular.get(word, f"{word}s")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value == () or value == {}:
        return "none"
    if isinstance(value, pydantic.BaseModel):
        return "its defaults"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, pydantic.BaseModel):
        return "{}"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _range(field: FieldInfo) -> str:
    optional = typing.get_origin(field.annotation) in (types.UnionType, typing.Union)
    within = ", ".join(_bounds(_inner(field.annotation)))
    own = ", ".join(_bounds(field.metadata))
    return "; ".join(filter(None, (own, within if optional or not within else f"each {within}")))


def _bounds(metadata: Iterable[Any]) -> Iterator[str]:
    for kind, name, told in _BOUNDS:
        yield from (told.format(_number(getattr(each, name))) for each in metadata if isinstance(each, kind))
    yield from (f"`{each.pattern}`" for each in metadata if getattr(each, "pattern", None))


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _inner(annotation: Any) -> list[Any]:
    """What an ``Annotated`` within a list's, a table's or an optional type says."""
    found: list[Any] = []
    for part in typing.get_args(annotation):
        metadata = getattr(part, "__metadata__", ())
        found += [each for info in metadata for each in getattr(info, "metadata", [info])]
    return found
