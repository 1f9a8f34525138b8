"""A log joins the data that a retraining reads, and nothing of the data is touched or lost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.data.beir import DatasetError, JudgedQueries, Product, load_judged, write_judged
from builders.data.purchases import PURCHASES, load_purchases
from builders.feedback.beside import Feedback
from builders.feedback.events import Click, Purchase, Shown
from tests.support.feedback import START, click, purchase, shown

PRODUCTS = {"a": Product("a", "Lamp", price=9.0), "b": Product("b", "Bulb"), "c": Product("c", "Chair")}
OWN = JudgedQueries({"q1": "Chair", "q2": "lamp  shade"}, PRODUCTS, {"q1": {"c": 3, "a": 0}, "q2": {"a": 1, "b": 0}})


def log(path: Path, events: Iterable[Shown | Click | Purchase]) -> Feedback:
    path.write_text("".join(event.model_dump_json() + "\n" for event in events), encoding="utf-8")
    return Feedback((path,))


def searches(name: str, query: str) -> list[Shown | Click | Purchase]:
    """Of which "a" is clicked always."""
    lists = [shown(f"{name}{number}", "ab", query=query, features={"a": {"price": 5.0}}) for number in range(20)]
    return [*lists, *(click(f"{name}{number}", "a") for number in range(20))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Judged queries in esci/, purchases beside it, and files of the user's own."""
    for place in ("esci", "online_retail"):
        (tmp_path / "data" / place).mkdir(parents=True)
    write_judged(OWN, tmp_path / "data/esci")
    lines = {"customer_id": ["u1", "u2"], "stock_code": ["a", "b"], "invoice_date": [START.replace(tzinfo=None)] * 2}
    pq.write_table(pa.table(lines), tmp_path / "data/online_retail" / PURCHASES)
    (tmp_path / "data/notes.txt").write_text("mine")
    (tmp_path / "data/esci/images.txt").write_text("also mine")
    return tmp_path / "data"


def test_new_queries_train_and_people_keep_what_they_judged(folder: Path, tmp_path: Path) -> None:
    feedback = log(tmp_path / "log.jsonl", [*searches("n", "Lamp"), *searches("o", "CHAIR")])
    told = feedback.write_beside("judged", folder, tmp_path / "beside")
    found = load_judged(tmp_path / "beside")
    (new,) = found.queries.keys() - OWN.queries.keys()
    assert found.queries[new].casefold() == "lamp"
    assert found.judgements == {**OWN.judgements, new: {"a": 2, "b": 0}}
    assert found.splits == {**{each: OWN.split_of(each) for each in OWN.queries}, new: "train"}
    assert found.products["a"].price == 5.0  # as it was ranked
    assert (
        told[-1]
        == "beside 2 judged queries: 1 of the log, for training alone; 1 that people judged keep their judgements"
    )


def test_the_data_stays_as_it_was_and_its_other_files_are_there(folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    feedback = log(tmp_path / "log.jsonl", searches("n", "lamp"))
    for _ in range(2):  # the second night takes the first one's place
        feedback.write_beside("judged", folder, tmp_path / "beside")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert (tmp_path / "beside/notes.txt").read_text() == "mine"
    assert (tmp_path / "beside/esci/images.txt").read_text() == "also mine"
    assert load_purchases(tmp_path / "beside").num_rows == 2


def test_lists_follow_the_purchases_and_one_purchase_counts_once(folder: Path, tmp_path: Path) -> None:
    lists = [shown("h1", "ab", history=[], user="u1"), shown("h2", "bc", history=["a"], user="u2")]
    events = [*lists, purchase("h1", "a"), purchase("h2", "c")]  # u1 has bought "a" on that day
    told = log(tmp_path / "log.jsonl", events).write_beside("purchases", folder, tmp_path / "beside")
    found = load_purchases(tmp_path / "beside").select(["customer_id", "stock_code", "label"]).to_pylist()
    assert [tuple(each.values()) for each in found] == [
        ("u1", "a", True), ("u2", "b", True), ("u1", "b", False), ("u2", "b", False), ("u2", "c", True),
    ]  # fmt: skip
    assert told[-1] == "beside 2 purchase lines: 3 of the log; 1 that the purchases hold, too, count once"


@pytest.mark.parametrize(
    ("kind", "events", "wanted"),
    [("judged", [shown("h1", "ab", history=[]), click("h1", "a")], "a query"),
     ("purchases", searches("n", "lamp"), "a history and no query")],
)  # fmt: skip
def test_a_log_of_the_other_kind_is_refused_and_nothing_is_written(
    folder: Path, tmp_path: Path, kind: str, events: list[Shown | Click | Purchase], wanted: str
) -> None:
    feedback = log(tmp_path / "log.jsonl", events)
    with pytest.raises(DatasetError, match=f"shown lists, none with {wanted}, which is what this recipe learns from"):
        feedback.write_beside(kind, folder, tmp_path / "beside")
    assert not (tmp_path / "beside").exists()
