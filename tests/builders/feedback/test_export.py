"""What is written is what the kit reads: judged queries, products as they were served, purchases."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from builders.__main__ import app
from builders.data.beir import DatasetError, Product, load_judged
from builders.data.purchase_log import purchase_log
from builders.data.purchases import PURCHASES, load_purchases
from builders.feedback.events import Click, Purchase, Shown
from builders.feedback.export import REPORT, export
from builders.feedback.log import joined
from tests.support.feedback import START, click, purchase, shown

CORPUS = {
    "a": Product("a", "Lamp", brand="Old", price=9.0, category=("Home", "Light")),
    "b": Product("b", "Bulb", fields={"stock": 3}),
    "c": Product("c", "Chair"),
}


def searches(count: int = 20, **fields: Any) -> list[Shown | Click | Purchase]:
    """Of which "a" is clicked always."""
    lists = [shown(f"r{number}", "ab", **fields) for number in range(count)]
    return [*lists, *(click(f"r{number}", "a") for number in range(count))]


def test_an_export_is_read_back_as_judged_queries_with_the_whole_corpus(tmp_path: Path) -> None:
    exported = export(joined([*searches(), purchase("r0", "a")]), tmp_path / "out", CORPUS)
    judged = load_judged(tmp_path / "out")
    (query_id,) = judged.queries
    assert judged.queries[query_id] == "lamp"
    assert judged.judgements == {query_id: {"a": 3, "b": 0}}
    assert judged.products == CORPUS
    assert any("1 of grade 3, 0 of grade 2, 0 of grade 1, 1 of grade 0" in note for note in exported.notes)
    assert json.loads((tmp_path / "out" / REPORT).read_text())["bias"] == "none"


def test_items_have_the_latest_fields_that_they_were_ranked_by_over_those_of_the_corpus(tmp_path: Path) -> None:
    later = START + datetime.timedelta(hours=1)
    events = [
        shown("later", "ab", time=later, features={"a": {"price": 5.0, "brand": None, "sold_today": 7}}),
        *searches(features={"a": {"price": 4.0}, "b": {"title": "Served bulb"}}),
    ]
    exported = export(joined(events), tmp_path / "out", CORPUS)
    products = load_judged(tmp_path / "out").products
    assert products["a"] == Product("a", "Lamp", price=5.0, category=("Home", "Light"), fields={"sold_today": 7})
    assert products["b"] == Product("b", "Served bulb", fields={"stock": 3})
    assert "1 items were ranked by fields that changed: the latest are kept" in exported.notes


def test_a_log_with_features_needs_no_corpus(tmp_path: Path) -> None:
    events = searches(features={"a": {"title": "Lamp"}, "b": {"title": "Bulb", "price": 2.0}})
    export(joined(events), tmp_path / "out")
    assert load_judged(tmp_path / "out").products == {"a": Product("a", "Lamp"), "b": Product("b", "Bulb", price=2.0)}


def test_items_without_fields_are_left_out_with_a_count_and_refused_where_none_has_any(tmp_path: Path) -> None:
    exported = export(joined(searches()), tmp_path / "out", {"a": CORPUS["a"]})
    assert any(note.startswith("1 items, 'b', have no 'features'") for note in exported.notes)
    with pytest.raises(DatasetError, match=r"no fields of 2 graded items, first 'a', 'b': .*--corpus"):
        export(joined(searches()), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_fields_that_no_product_can_have_are_refused_by_item_and_request(tmp_path: Path) -> None:
    events = searches(features={"a": {"title": "Lamp", "price": "cheap"}})
    with pytest.raises(DatasetError, match="features of 'a' in request 'r0': 'price' is 'cheap'"):
        export(joined(events), tmp_path / "out")


def test_lists_with_a_history_and_no_query_become_purchases_with_what_was_passed_over(tmp_path: Path) -> None:
    lists = [shown("h1", "abc", history=[], user="u1"), shown("h2", "ab", history=["c"])]
    exported = export(joined([*lists, click("h1", "b"), purchase("h1", "c"), *searches()]), tmp_path / "out", CORPUS)
    rows = load_purchases(tmp_path / "out").to_pylist()
    assert [(row["customer_id"], row["stock_code"], row["label"]) for row in rows] == [
        ("u1", "a", False),
        ("u1", "b", True),
        ("u1", "c", True),
        (None, "a", False),
        (None, "b", False),
    ]
    assert {row["invoice_date"] for row in rows} == {START.replace(tzinfo=None)}
    assert [row["description"] for row in rows[:3]] == ["Lamp", "Bulb", "Chair"]
    assert len(load_judged(tmp_path / "out").queries) == 1
    assert any("2 lists without a query as 5 lines" in note for note in exported.notes)


def test_exported_purchases_are_a_purchase_log_with_what_was_passed_over(tmp_path: Path) -> None:
    events: list[Shown | Click | Purchase] = []
    for day in range(20):
        time = START + datetime.timedelta(days=day)
        events += [shown(f"h{day}", ["a", f"n{day}", "b"], history=["a"], user=f"u{day % 2}", time=time)]
        events += [click(f"h{day}", f"n{day}")]
    export(joined(events), tmp_path / "out", CORPUS)
    log = purchase_log(tmp_path / "out")
    assert sum(map(len, log.histories.values())) == 18
    assert sorted(log.positives.values()) == [("n18",), ("n19",)]
    assert log.passed_over("u0") == ["a", "b"]


def test_a_history_beside_a_query_is_told_as_not_written(tmp_path: Path) -> None:
    exported = export(joined(searches(history=["c"], query="lamp")), tmp_path / "out", CORPUS)
    assert "20 lists have a query and a history: the query is written, the history is not" in exported.notes
    assert not (tmp_path / "out" / PURCHASES).exists()


def test_an_earlier_export_is_replaced_and_anything_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(joined([shown("h1", "ab", history=[], user="u1"), click("h1", "b"), *searches()]), out, CORPUS)
    export(joined(searches()), out, CORPUS)
    assert not (out / PURCHASES).exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"holds 'notes\.txt', wanted a new or empty folder"):
        export(joined(searches()), out, CORPUS)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_log_in_which_nothing_was_clicked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nothing was clicked or bought in 1 lists"):
        export(joined([shown("r1", "ab")]), tmp_path / "out", CORPUS)


def test_the_verb_exports_a_log_with_its_propensities(tmp_path: Path) -> None:
    lists = [shown(f"r{number}", "ab" if number % 2 else "ba", query="Lamp") for number in range(80)]
    events = [*lists, *(click(f"r{number}", "ab"[number % 4 // 2]) for number in range(80))]
    log, corpus = tmp_path / "log.jsonl", tmp_path / "corpus.jsonl"
    log.write_text("".join(event.model_dump_json() + "\n" for event in events), encoding="utf-8")
    corpus.write_text('{"_id": "a", "title": "Lamp"}\n{"_id": "b", "title": "Bulb"}\n', encoding="utf-8")
    arguments = ["--corpus", str(corpus), "--bias", "inverse-propensity", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["feedback", str(log), *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    assert list(load_judged(tmp_path / "out").queries.values()) == ["Lamp"]
    assert json.loads((tmp_path / "out" / REPORT).read_text())["propensities"] == pytest.approx([1, 1], abs=0.05)
