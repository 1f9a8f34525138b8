"""Templates of an item's text: separators, labels and brackets of what is missing leave no trace."""

from __future__ import annotations

from typing import Any

import pytest

from builders.features.item_text import ItemTemplate, TemplateError

FULL = {"title": "Mug", "brand": "Acme", "text": "Stoneware.", "color": "red", "price": 3}


@pytest.mark.parametrize(
    ("template", "missing", "wanted"),
    [
        ("{title}. {brand}. {text}", (), "Mug. Acme. Stoneware."),
        ("{title}. {brand}. {text}", ("brand",), "Mug. Stoneware."),
        ("{title}. {brand}. {text}", ("title", "text"), "Acme"),
        ("{title}. {brand}. {text}", ("title", "brand", "text"), ""),
        ("{title} ({brand}) {text}", (), "Mug (Acme) Stoneware."),
        ("{title} ({brand}) {text}", ("brand",), "Mug Stoneware."),
        ("{title} [{color}]", ("color",), "Mug"),
        ("Title: {title}. Brand: {brand}.", (), "Title: Mug. Brand: Acme."),
        ("Title: {title}. Brand: {brand}.", ("title",), "Brand: Acme."),
        ("Title: {title}. Brand: {brand}.", ("brand",), "Title: Mug."),
        ("{title} - {price:.2f} USD", (), "Mug - 3.00 USD"),
        ("{title} - {price:.2f} USD", ("price",), "Mug"),
        ("{title} | {title}", (), "Mug | Mug"),
        ("{{{title}}}", (), "{Mug}"),
    ],
)
def test_a_missing_field_leaves_no_trace(template: str, missing: tuple[str, ...], wanted: str) -> None:
    fields = {name: None if name in missing else value for name, value in FULL.items()}
    assert ItemTemplate(template).text(fields) == wanted


@pytest.mark.parametrize("absent", [None, "", "  ", [], ()])
def test_what_counts_as_missing(absent: Any) -> None:
    assert ItemTemplate("{title}, {color}").text({"title": "Mug", "color": absent}) == "Mug"


def test_zero_false_and_lists_are_values() -> None:
    template = ItemTemplate("{stock} {new} {category}")
    assert template.text({"stock": 0, "new": False, "category": ["Home", "", "Mugs"]}) == "0 False Home Mugs"


def test_without_a_template_the_brand_stands_where_the_title_does_not_name_it() -> None:
    plain = ItemTemplate("")
    assert plain.text({"title": "Trail shoe", "brand": "Acme"}) == "Trail shoe Acme"
    assert plain.text({"title": "ACME trail shoe", "brand": "Acme"}) == "ACME trail shoe"
    assert plain.fields == ("title", "brand")


@pytest.mark.parametrize("template", ["no field", "{", "{}", "{0}", "{a.b}", "{a[0]}", "{title!r}"])
def test_what_is_no_template_is_refused(template: str) -> None:
    with pytest.raises(TemplateError, match="template"):
        ItemTemplate(template)


def test_a_value_that_does_not_go_with_its_format_is_named() -> None:
    with pytest.raises(TemplateError, match=r"field \{price:\.2f\}: 'three'"):
        ItemTemplate("{price:.2f}").text({"price": "three"})
