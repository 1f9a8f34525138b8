"""A key changes with everything that it names, and with nothing else; what changed can be told."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from builders.core.keys import changed, code_of, digests, key_of
from builders.core.recipe import Variant
from builders.core.steps import Int8


@dataclasses.dataclass(frozen=True)
class Item:
    title: str
    price: float | None = None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a", "b"),
        ("1", 1),
        (None, ""),
        (["ab", "c"], ["a", "bc"]),
        (["a", "b"], ["b", "a"]),
        ({"a": 1}, {"b": 1}),
        (Item("mug", 1.0), Item("mug", 2.0)),
        ([Item("mug")], [Item("cup")]),
        (Variant(name="int8_onnx", steps=(Int8(),)), Variant(name="int8_onnx", steps=(Int8(calibration_queries=2),))),
        (datetime.datetime(2010, 11, 1), datetime.datetime(2010, 11, 2)),
    ],
)
def test_another_value_is_another_key(one: object, other: object) -> None:
    assert key_of({"read": one}) != key_of({"read": other})
    assert key_of({"read": one}) == key_of({"read": one})


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"x", "y"}, {"y", "x"}),
        (np.float64(0.5), 0.5),
        ((1, 2), [1, 2]),
    ],
)
def test_the_same_content_in_another_form_is_the_same_key(one: object, same: object) -> None:
    assert key_of({"read": one}) == key_of({"read": same})


def test_of_a_file_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    first.write_bytes(b"graph")
    second.write_bytes(b"graph")
    before = key_of({"file": first})
    assert before == key_of({"file": second})
    first.write_bytes(b"other")
    assert before != key_of({"file": first})


def test_what_changed_is_told_by_name() -> None:
    before = digests({"data": "a", "libraries": {"torch": "2"}, "gone": 1})
    now = digests({"data": "a", "libraries": {"torch": "3"}, "new": 1})
    assert changed(before, now) == ["gone", "libraries", "new"]


def test_what_has_no_content_is_refused() -> None:
    with pytest.raises(TypeError, match="function has no content that a key could be made of"):
        key_of({"read": lambda: None})


def test_code_is_of_the_class_and_of_those_it_derives_from_but_not_of_packages() -> None:
    from tests.support.small_rankers import Priced, priced_ranker

    found = {path.name for path in code_of(priced_ranker(), Priced())}
    assert found == {"feature_ranker.py", "base.py", "small_rankers.py"}


def test_a_mapping_read_entry_by_entry_has_the_key_of_its_json() -> None:
    for mapping in ({}, {"b": Item("mug", 1.0), "a": [1, {"y": 2, "x": "ü"}]}, {2: "two", 10: "ten"}):
        as_json = json.dumps({str(name): as_plain(each) for name, each in mapping.items()}, sort_keys=True)
        assert digests({"read": mapping})["read"] == hashlib.sha256(as_json.encode()).hexdigest()[:12]


def as_plain(value: object) -> object:
    return dataclasses.asdict(value) if isinstance(value, Item) else value
