"""Feedback logs as files: what is read, and which records are refused, by file and line."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.data.beir import DatasetError
from builders.feedback.log import read_feedback
from builders.feedback.reading import STRUCTURES, read_events

ROOT = Path(__file__).resolve().parents[3]
SHOWN: dict[str, Any] = {
    "event": "shown",
    "request_id": "r1",
    "time": "2026-03-01T09:30:00+01:00",
    "endpoint": "rank",
    "variant": "two_tower_fp32_onnx@3",
    "query": "lamp",
    "item_ids": ["a", "b", "c"],
}
CLICK = {"event": "click", "request_id": "r1", "time": "2026-03-01T08:31:00Z", "item_id": "b"}
PURCHASE = {"event": "purchase", "request_id": "r1", "time": "2026-03-01T08:40:00Z", "item_id": "b", "revenue": 12.5}
FULL = {
    **SHOWN,
    "user": "u1",
    "history": ["x"],
    "scores": [3.0, 2.5, -1.0],
    "features": {"a": {"title": "Lamp", "price": 3.5}, "b": {"title": "Bulb", "price": 1.5}},
    "teams": {"1": "baseline", "2": "candidate"},
    "randomised": True,
}


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DatasetError) as refused:
        list(read_events([path]))
    return str(refused.value)


def test_json_lines_parquet_and_csv_of_the_same_records_are_read_alike(tmp_path: Path) -> None:
    records = [FULL, {**SHOWN, "request_id": "r2"}, CLICK, PURCHASE]
    names = list(dict.fromkeys(name for record in records for name in record))
    pq.write_table(
        pa.table({name: [record.get(name) for record in records] for name in names}), tmp_path / "nested.parquet"
    )
    as_text = [
        {name: json.dumps(value) if name in STRUCTURES else value for name, value in each.items()} for each in records
    ]
    pq.write_table(pa.table({name: [row.get(name) for row in as_text] for name in names}), tmp_path / "text.parquet")
    with (tmp_path / "log.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(as_text)
    expected = list(read_events([lines(tmp_path / "log.jsonl", *records)]))
    assert len(expected) == 4
    for name in ("nested.parquet", "text.parquet", "log.csv"):
        assert list(read_events([tmp_path / name])) == expected, name


def test_the_example_of_the_documents_is_a_log(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reference" / "feedback-log.md").read_text(encoding="utf-8")
    (tmp_path / "log.jsonl").write_text(page.split("```json\n")[1].split("```")[0], encoding="utf-8")
    log = read_feedback([tmp_path / "log.jsonl"])
    assert (log.lists[0].purchases, log.counts) == ({"B02": 31.5}, {})


def test_times_of_parquet_with_a_zone_are_read_and_those_without_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([CLICK])
    for zone in ("UTC", None):
        time = pa.array([0], pa.timestamp("us", tz=zone))
        pq.write_table(table.drop("time").append_column("time", time), tmp_path / f"{zone}.parquet")
    (event,) = read_events([tmp_path / "UTC.parquet"])
    assert event.time.timestamp() == 0
    assert re.search(r"None\.parquet: row 1: 'time' is .*timezone", refusal(tmp_path / "None.parquet"))


def test_several_files_with_a_byte_order_mark_and_a_blank_last_line_are_one_log(tmp_path: Path) -> None:
    clicks = lines(tmp_path / "clicks.jsonl", CLICK)
    clicks.write_bytes(b"\xef\xbb\xbf" + clicks.read_bytes() + b"\n")
    log = read_feedback([clicks, lines(tmp_path / "shown.jsonl", SHOWN)])
    assert [list(each.clicks) for each in log.lists] == [["b"]]
    assert log.counts == {}


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        pytest.param({**SHOWN, "event": "seen"}, "'seen'", id="unknown event"),
        pytest.param({**SHOWN, "colour": 1}, "'colour': Extra", id="unknown field"),
        pytest.param({**CLICK, "time": "2026-03-01T08:31:00"}, "'time' is .*timezone", id="time without zone"),
        pytest.param({**CLICK, "time": 1772350000}, "'time' is 1772350000: wanted ISO 8601", id="time as number"),
        pytest.param({**CLICK, "time": "1772350000"}, "'time' is '1772350000': wanted ISO 8601", id="number as text"),
        pytest.param({**CLICK, "item_id": 7}, "'item_id' is 7: .*string", id="id as number"),
        pytest.param({**CLICK, "item_id": "a\tb"}, "'item_id' is .*tabs", id="tab in id"),
        pytest.param({**CLICK, "item_id": "a" * 2000}, "2000 bytes, wanted at most", id="long id"),
        pytest.param({**SHOWN, "request_id": ""}, "'request_id' is ''", id="empty id"),
        pytest.param({**PURCHASE, "revenue": -1}, "'revenue' is -1", id="negative revenue"),
        pytest.param({**SHOWN, "item_ids": []}, "'item_ids' is", id="empty list"),
        pytest.param({**SHOWN, "item_ids": ["a", "a"]}, "'a' twice", id="item twice"),
        pytest.param({**SHOWN, "query": " "}, "neither 'query' nor 'history'", id="neither query nor history"),
        pytest.param({**SHOWN, "scores": [1]}, "1 scores of 3 items", id="scores"),
        pytest.param({**SHOWN, "scores": [1, 2, float("nan")]}, r"'scores\.2' is nan", id="score NaN"),
        pytest.param({**SHOWN, "features": {"z": {}}}, "'features' of 'z'", id="features of another item"),
        pytest.param({**SHOWN, "features": {"a": {"price": float("inf")}}}, "'features'", id="infinite feature"),
        pytest.param({**SHOWN, "teams": {"4": "baseline"}}, "'teams' of '4'", id="team of no position"),
        pytest.param({**SHOWN, "teams": {"a": "other"}}, r"'teams\.a' is 'other'", id="unknown team"),
        pytest.param({"event": "shown"}, r"'request_id': Field required \(and 4 more\)", id="nothing in it"),
        pytest.param(["shown"], "", id="no object"),
    ],
)
def test_a_broken_record_is_refused_by_file_and_line(tmp_path: Path, record: Any, fault: str) -> None:
    found = refusal(lines(tmp_path / "log.jsonl", SHOWN, record, CLICK))
    assert re.search(rf"log\.jsonl:2: .*{fault}", found)
    assert "1 broken records" in found


@pytest.mark.parametrize("broken", [b"{", b"\xff", b"", b'{"event": "\\ud800"}'], ids=repr)
def test_a_line_that_is_not_json_is_refused_by_file_and_line(tmp_path: Path, broken: bytes) -> None:
    path = lines(tmp_path / "log.jsonl", SHOWN, CLICK)
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + broken + b"\n" + second + b"\n")
    assert "log.jsonl:2: " in refusal(path)


def test_the_first_faults_of_all_files_and_their_count_are_one_error(tmp_path: Path) -> None:
    one = lines(tmp_path / "one.jsonl", SHOWN, {}, {}, CLICK)
    two = lines(tmp_path / "two.jsonl", {}, CLICK, {})
    with pytest.raises(DatasetError) as refused:
        read_feedback([one, two])
    assert re.search(r"one\.jsonl:2.*one\.jsonl:3.*two\.jsonl:1.*and 1 more: 4 broken records", str(refused.value))


def test_rows_of_csv_and_parquet_are_told_by_number(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("event,request_id,time,item_id\nclick,r1,2026-03-01T08:31:00Z,b\nclick,,,\n")
    assert "log.csv:3: 'request_id'" in refusal(tmp_path / "log.csv")
    (tmp_path / "wide.csv").write_text("event,request_id,time,item_id\nclick,r1,2026-03-01T08:31:00Z,b,c\n")
    assert "wide.csv:2: 'cells without a column'" in refusal(tmp_path / "wide.csv")
    pq.write_table(pa.Table.from_pylist([CLICK, {**CLICK, "item_id": None}]), tmp_path / "log.parquet")
    assert "log.parquet: row 2: 'item_id'" in refusal(tmp_path / "log.parquet")


@pytest.mark.parametrize("name", ["absent.jsonl", "log.txt", "empty.jsonl", "no.parquet", "head.csv", "latin.csv"])
def test_a_file_that_is_no_log_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "log.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "no.parquet").write_text("x")
    (tmp_path / "head.csv").write_text("event,request_id\n")
    (tmp_path / "latin.csv").write_bytes(b"event\n\xff\n")
    assert name in refusal(tmp_path / name)


def test_a_log_without_shown_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no shown list.*1 clicks left out"):
        read_feedback([lines(tmp_path / "log.jsonl", CLICK)])
