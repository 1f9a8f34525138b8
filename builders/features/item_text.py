"""What an item says: a template over its raw fields => text.

Standard library only: copied beside the served pre-processing, so that text which comes in a request is made as the
stored one was.
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Mapping
from typing import Any

_BETWEEN = re.compile(r"(?P<closing>[)\]}»”'\"]*)(?P<separator>[^\w(\[{«“]*)(?P<label>.*)", re.DOTALL)


class TemplateError(ValueError):
    """A template that cannot be used; the message says what was found and what was wanted."""


@dataclasses.dataclass(frozen=True)
class _Part:
    """A field with what stands around it: the separator from the field before, its label, its closing brackets."""

    field: str
    spec: str
    separator: str
    label: str
    closing: str = ""


class ItemTemplate:
    """``"{title}. {brand} ({color})"``: any raw field; one that is missing leaves no trace of its punctuation.

    Between two fields stand, in this order: brackets that close after the first, a separator (punctuation and spaces),
    and a label of the second (from its first letter, digit or opening bracket on). A label goes with its field, a
    separator stands only between two fields that are there. ``{price:.2f}`` formats a number as Python does.

    Args:
        template: with one field at least; ``""`` = the title, and the brand where the title does not name it.

    Raises:
        TemplateError: it is no format string, has no field, or a field has no plain name.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        self._parts, self._end = _parsed(template) if template else ([], "")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the raw fields that it reads, each once."""
        return tuple(dict.fromkeys(part.field for part in self._parts)) or ("title", "brand")

    def text(self, fields: Mapping[str, Any]) -> str:
        """The item's text; "" where it has none of the fields.

        Raises:
            TemplateError: a value does not go with its field's format, such as text with ``:.2f``.
        """
        if not self.template:
            return _title_and_brand(_shown(fields.get("title")), _shown(fields.get("brand")))
        text = ""
        for part in self._parts:
            value = _shown(fields.get(part.field), part)
            if value:
                text += f"{part.separator if text else ''}{part.label}{value}{part.closing}"
        return f"{text}{self._end}".strip() if text else ""


def _title_and_brand(title: str, brand: str) -> str:
    if brand and brand.casefold() not in title.casefold():
        return f"{title} {brand}".strip()
    return title


def _parsed(template: str) -> tuple[list[_Part], str]:
    """Its fields, and what ends the text."""
    parts: list[_Part] = []
    literal = end = ""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise TemplateError(f"template {template!r}: {error}, wanted text with fields such as {{title}}") from None
    for before, field, spec, conversion in [*pieces, ("", None, None, None)]:
        literal += before  # a doubled brace ends a piece
        if field is None and before:
            continue
        if field is not None and (not field.isidentifier() or conversion):
            found = f"{field}!{conversion}" if conversion else field
            raise TemplateError(f"template {template!r}: field {{{found}}}, wanted the plain name of an item's field")
        if parts:
            closing, separator, label = _split(literal)
            if field is None:  # words at the end, such as " USD", go with the last field
                closing, end = (literal, "") if label else (closing, separator)
            parts[-1] = dataclasses.replace(parts[-1], closing=closing)
        if field is not None:
            parts.append(_Part(field, spec or "", *((separator, label) if parts else ("", literal))))
        literal = ""
    if not parts:
        raise TemplateError(f"template {template!r}: no field, wanted one at least, such as {{title}}")
    return parts, end


def _split(literal: str) -> tuple[str, str, str]:
    """What stands between two fields: closing brackets of the first, separator, label of the second."""
    between = _BETWEEN.fullmatch(literal)
    assert between is not None  # each of its parts may be empty
    return between["closing"], between["separator"], between["label"]


def _shown(value: Any, part: _Part | None = None) -> str:
    """A raw value as text: a list's values with spaces between; "" for what is not there."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if isinstance(value, list | tuple):
        return " ".join(filter(None, map(_shown, value)))
    try:
        return format(value, part.spec if part else "").strip()
    except (ValueError, TypeError) as error:
        assert part is not None  # without a format anything can be shown
        raise TemplateError(
            f"field {{{part.field}:{part.spec}}}: {value!r} does not go with this format ({error})"
        ) from None
